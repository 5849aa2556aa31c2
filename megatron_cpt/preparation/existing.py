"""What is there already under the names that a call writes: used again, replaced, or a reason to refuse the call."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, refuse
from megatron_cpt.corpus.indexed import idx_path, invalidate, manifest_path
from megatron_cpt.corpus.manifest import (
    Manifest,
    SourceFile,
    documents_column,
    load_manifest,
    loss_spans,
    read_manifest,
)
from megatron_cpt.corpus.parts import HELD_OUT, part_prefixes, parts_there
from megatron_cpt.preparation.contamination import read_contamination
from megatron_cpt.preparation.decisions import Decisions
from megatron_cpt.preparation.job import (
    Job,
    PrepareSettings,
    holds_out,
    is_held_out,
    unfinished_settings,
    validation_prefix,
)
from megatron_cpt.preparation.join import Joined
from megatron_cpt.runs.folder import lock_of, sweep

_LISTS = ("rejected.jsonl", "duplicates.jsonl", "near_duplicates.jsonl", "contaminated.jsonl")
"""Endings of the lists beside a dataset."""
_WRITTEN = ("bin", "idx", "manifest.json", "documents.npy", "loss_spans.npy", "ids.jsonl", "contamination.json")
"""Endings of the files of a dataset."""


def files_of(output: Path) -> list[Path]:
    """Every file that a dataset, its held-out part and its lists may consist of."""
    return [output.with_name(f"{output.name}{part}.{name}") for name in (*_WRITTEN, *_LISTS) for part in ("", HELD_OUT)]


def prefixes_of(output: Path, parts: int) -> set[Path]:
    """Every dataset that a call writes or could replace, resolved: of one and of all parts, held-out ones too."""
    prefixes = [name for prefix in (output, *part_prefixes(output, parts)) for name in _names(prefix)]
    prefixes += [Path(name) for prefix in _names(output) for name in parts_there(str(prefix))]
    return {prefix.resolve() for prefix in prefixes}


def sweep_files(job: Job) -> None:
    """Removes what killed calls left under the names of the datasets, of which the caller is the only writer."""
    _sweep_partial([job.output, *job.datasets])
    for settings in unfinished_settings(job.output):
        _sweep_unfinished(job.output, settings)


def _sweep_partial(prefixes: Sequence[Path]) -> None:
    """Removes files under temporary names, and locks, that killed calls left beside datasets."""
    sweep(file for prefix in prefixes for file in files_of(prefix))
    for prefix in prefixes:
        lock_of(prefix).unlink(missing_ok=True)


def sweep_other_divisions(job: Job) -> None:
    """Removes what killed calls left of the datasets in other numbers of parts, which nobody joins now."""
    for settings in unfinished_settings(job.output):
        if settings.parts != job.settings.parts:
            _sweep_unfinished(job.output, settings)


def _sweep_unfinished(output: Path, settings: PrepareSettings) -> None:
    """Removes the datasets that a killed call with these settings was putting in place and that have no manifest, with
    their held-out parts. They are no use to anyone: what that call finished is in its pieces."""
    _sweep_partial(part_prefixes(output, settings.parts))
    for prefix in part_prefixes(output, settings.parts):
        if manifest_path(prefix).is_file():
            continue
        held_out = validation_prefix(prefix)
        manifest = _manifest_of(held_out)
        if settings.holds_out and (manifest is None or is_held_out(manifest)):
            _remove_dataset(held_out)
        _remove_dataset(prefix)


def _remove_dataset(prefix: Path) -> None:
    """Removes the files of a dataset, those first without which it does not open; not its lists, nor scores."""
    invalidate(prefix)
    for ending in _WRITTEN:
        prefix.with_name(f"{prefix.name}.{ending}").unlink(missing_ok=True)


def whole_result(job: Job) -> list[Joined] | None:
    """The datasets of an earlier call, if all are whole and were made from the same things."""
    if job.reads_standard_input:
        return None
    found = [_whole_dataset(job.settings, prefix) for prefix in job.datasets]
    there = [one for one in found if one is not None]
    return there if len(there) == len(found) and not any(_all_differences(job, one) for one in there) else None


def whole_part(job: Job, decisions: Decisions, number: int) -> Joined | None:
    """Part `number`, from 1, if it is there, whole, and was written by these decisions."""
    if job.settings.parts == 1:
        return None
    found = _whole_dataset(job.settings, job.datasets[number - 1])
    return found if found and _job_of(found.training) == (decisions.identity, job.settings.parts) else None


def are_joined(job: Job, joined: Joined) -> bool:
    """Whether all parts are there, given one of them. Their manifests are read, as one is written of a part that is
    whole."""
    if not all(manifest_path(prefix).is_file() for prefix in job.datasets):
        return False  # Each task asks: most need not read those of all others.
    manifests = [_manifest_of(prefix) for prefix in job.datasets]
    return all(manifest is not None and _job_of(manifest) == _job_of(joined.training) for manifest in manifests)


def _job_of(manifest: Manifest) -> tuple[str, int] | None:
    return None if manifest.part is None else (manifest.part.job, manifest.part.of)


def _all_differences(job: Job, joined: Joined) -> list[str]:
    manifests = [joined.training] if joined.validation is None else [joined.training, joined.validation]
    return [difference for manifest in manifests for difference in _differences(job, manifest)]


def finished(output: Path, parts: int | None) -> list[Joined] | None:
    """The whole datasets of a call of which nothing is known but its output, and of how many parts; None: of any.

    None where they are not there, or one is damaged.
    """
    there = [output] if _is_there(output) else [Path(name) for name in parts_there(str(output))]
    first = _manifest_of(there[0]) if there else None
    if first is None or first.settings is None or is_held_out(first):
        return None
    of = 1 if first.part is None else first.part.of
    if parts not in (None, of) or there != part_prefixes(output, of):
        return None
    found = [joined for prefix in there if (joined := _finished_dataset(prefix)) is not None]
    of_one_job = {_job_of(joined.training) for joined in found} == {_job_of(first)}
    return found if len(found) == of and of_one_job else None


def _finished_dataset(prefix: Path) -> Joined | None:
    manifest = _manifest_of(prefix)
    if manifest is None or manifest.settings is None:
        return None
    known = {field.name for field in fields(PrepareSettings)}
    settings = PrepareSettings(**{name: value for name, value in manifest.settings.items() if name in known})
    return _whole_dataset(settings, prefix)


def _whole_dataset(settings: PrepareSettings, prefix: Path) -> Joined | None:
    """A dataset that is whole, with its held-out part where documents are held out."""
    manifests: list[Manifest] = []
    for one in (prefix, *([validation_prefix(prefix)] if settings.holds_out else [])):
        if not manifest_path(one).is_file():
            return None
        try:
            manifest = load_manifest(one)
            documents_column(one, manifest)
            if manifest.loss_spans_sha256 is not None:
                loss_spans(one, manifest)
        except (BadInput, IntegrityFault):
            return None
        manifests.append(manifest)
    if settings.decontaminate and read_contamination(prefix, manifests[0]) is None:
        return None
    return Joined(manifests[0], manifests[1] if settings.holds_out else None)


def refuse_others_files(job: Job, prefixes: Sequence[Path]) -> None:
    """Raises BadInput where a file would go that no call of this prefix made: one of the inputs, or the dataset of
    another call that has the name of the held-out part. Also where the dataset is there in another number of parts.

    Args:
        prefixes: of the datasets that are to be written, of all that are the job's.
    """
    faults = []
    written = {path.resolve() for prefix in (job.output, *prefixes) for path in files_of(prefix) if path.exists()}
    for source in job.sources:
        if Path(source.path) in written:
            rule = f"is an input, and a file that --output {job.output} writes."
            faults.append(Fault(source.path, rule, "Give another --output, or rename the input."))
    if job.settings.parts > 1 and job.output.name.endswith(HELD_OUT):
        rule = f"would name the held-out documents of the parts of {job.output.name.removesuffix(HELD_OUT)} too."
        faults.append(Fault(f"--output {job.output}", rule, "Give a name without this ending."))
    for prefix in prefixes:
        held_out = validation_prefix(prefix)
        if job.settings.holds_out and _is_there(held_out) and not _is_own_held_out_part(job, prefix):
            rule = f"is a dataset that --output {job.output} did not make, and would be replaced by its held-out part."
            faults.append(Fault(str(held_out), rule, "Give another --output, or rename that dataset."))
    others = [Path(name) for text in _names(job.output) for name in parts_there(str(text))]
    if job.settings.parts > 1:
        others += [prefix for prefix in _names(job.output) if _is_there(prefix)]
    own = {name for prefix in job.datasets for name in _names(prefix)}
    for other in [name for name in others if name not in own][:1]:
        rule = f"is there, and {job.output} would be there twice, in different numbers of parts."
        faults.append(Fault(str(other), rule, "Give another --output, or take the files of the other division away."))
    refuse(faults)


def _names(prefix: Path) -> list[Path]:
    """A dataset and its held-out part."""
    return [prefix, validation_prefix(prefix)]


def _is_there(prefix: Path) -> bool:
    return manifest_path(prefix).is_file() or idx_path(prefix).is_file()


def _is_own_held_out_part(job: Job, prefix: Path) -> bool:
    """Whether what has the name of the held-out part of a dataset is one."""
    manifest, made = _manifest_of(validation_prefix(prefix)), _manifest_of(prefix)
    if manifest is None:
        # Its own manifest is missing, or damaged: then this prefix made it, or a killed call of this very job.
        return job.is_replacing or (made is not None and holds_out(made))
    return is_held_out(manifest)


def _manifest_of(prefix: Path) -> Manifest | None:
    """What a manifest says; None where there is no readable one."""
    try:
        return read_manifest(prefix) if manifest_path(prefix).is_file() else None
    except IntegrityFault:
        return None


def refuse_to_replace(job: Job, prefixes: Sequence[Path]) -> None:
    """Raises BadInput where finished datasets that were made otherwise would go, or their held-out parts.

    Args:
        prefixes: of the datasets that are to be written.
    """
    if job.is_replacing:
        return  # What stands there is what a killed call had written of this very job.
    for prefix in prefixes:
        refuse(_replaced(job, prefix))


def _replaced(job: Job, output: Path) -> list[Fault]:
    faults = []
    for prefix in _names(output):
        if not _is_there(prefix):
            continue
        manifest = _manifest_of(prefix)
        if prefix != output and (manifest is None or not is_held_out(manifest)):
            continue  # It is left alone: what replaces none of it was made sure before.
        foreign = manifest is None or manifest.settings is None
        differing = [] if manifest is None else _differences(job, manifest)
        if foreign and output in _unfinished(job):
            rule = (
                "may be what a killed call was writing, and was given a manifest since, as one that was made elsewhere."
            )
        elif foreign:
            rule = "is a dataset that was made elsewhere."
        elif job.reads_standard_input:
            rule = "is a finished dataset, and whether it was made from the same text cannot be known."
        elif differing:
            rule = f"is a finished dataset that was made otherwise (other {', '.join(differing)})."
        elif prefix == output:
            return []  # This job's own, damaged or with a damaged part beside it.
        else:
            continue
        remedy = "Give another --output, or --overwrite to replace it with its held-out part and its lists."
        faults.append(Fault(str(prefix), rule, remedy))
    return faults


def _differences(job: Job, manifest: Manifest) -> list[str]:
    """What a dataset was made of that is other in this job, in words; none: it is this job's."""
    differing = []
    if manifest.sources is None and manifest.sources_sha256 is not None:
        differing += ["input"] if manifest.sources_sha256 != job.sources_sha256 else []
    elif (sources := manifest.sources or []) != job.sources:
        differing.append(f"input: {_first_other(sources, job.sources)}")
    made_by = {"tokenizer": manifest.tokenizer, "bos": manifest.bos, "eod": manifest.eod}
    differing += [name for name, value in made_by.items() if value != getattr(job, name)]
    if manifest.settings is None:
        return [*differing, "settings"]
    # A dataset of an earlier version does not know of settings that came later: they were at their defaults.
    before, now = asdict(PrepareSettings()) | manifest.settings, asdict(job.settings)
    return differing + [name for name in before | now if before.get(name) != now.get(name) and name not in differing]


def _unfinished(job: Job) -> set[Path]:
    """The datasets that killed calls were putting in place."""
    found = unfinished_settings(job.output)
    return {prefix for settings in found for prefix in part_prefixes(job.output, settings.parts)}


def _first_other(before: Sequence[SourceFile], now: Sequence[SourceFile]) -> str:
    """The first file in which two inputs differ."""
    known = {source.path: source for source in before}
    for source in now:
        if source.path not in known:
            return f"{source.path} was not in it"
        before_it = known[source.path]
        if before_it.size != source.size:
            return f"{source.path} has changed since, from {before_it.size:,} to {source.size:,} bytes"
        if before_it != source:
            return f"{source.path} was written again since, as its modification time says; its size is the same"
    gone = [path for path in known if path not in {source.path for source in now}]
    return f"{gone[0]} was in it" if gone else "in another order"
