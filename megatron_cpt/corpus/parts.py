"""Datasets that are the parts of one: PREFIX-00001-of-00007 to PREFIX-00007-of-00007.

`prepare --parts N` divides the order of a dataset into N ranges. Their documents, laid end to end by the number of the
part, are those of the one dataset in its order. PREFIX names all of them where no dataset has that name itself, and
PREFIX.validation their held-out documents.
"""

import glob
from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.corpus.indexed import idx_path, manifest_path
from megatron_cpt.corpus.manifest import Manifest, SourceFile, read_manifest

HELD_OUT = ".validation"
"""Ending of the prefixes that `prepare --holdout` writes."""


def part_prefixes(prefix: Path, of: int) -> list[Path]:
    """The prefixes of so many parts, in their order; of one, the prefix itself."""
    if of == 1:
        return [prefix]
    return [prefix.with_name(f"{prefix.name}-{number:05d}-of-{of:05d}") for number in range(1, of + 1)]


def parts_there(prefix: str) -> list[str]:
    """The prefixes of all parts of a dataset that are on disk, in their order; none where it is not in parts.

    Args:
        prefix: PREFIX, or PREFIX.validation for their held-out documents.
    """
    held_out = HELD_OUT if prefix.endswith(HELD_OUT) else ""
    digits = "[0-9]" * 5
    stem = glob.escape(prefix.removesuffix(HELD_OUT))
    return sorted(name.removesuffix(".idx") for name in glob.glob(f"{stem}-{digits}-of-{digits}{held_out}.idx"))


def named_by(prefix: str) -> list[str]:
    """The prefixes that a name without wildcards stands for: itself, or all the parts that it is in.

    Raises BadInput where parts are missing, of another dataset, or there in two divisions; IntegrityFault where a
    manifest is damaged.
    """
    if idx_path(prefix).is_file():
        return [prefix]
    there = parts_there(prefix)
    refuse(part_faults([Path(name) for name in there]) or _name_faults(prefix, there))
    return there or [prefix]


def _name_faults(prefix: str, there: Sequence[str]) -> list[Fault]:
    """What is wrong with the parts of a prefix by their names: of some there may be no manifest, or another's."""
    if not there:
        return []
    numbers = [tuple(map(int, name.removesuffix(HELD_OUT).rsplit("-", 3)[1::2])) for name in there]
    divisions = {of for _, of in numbers}
    if len(divisions) > 1:
        rule = f"is there in different numbers of parts: {_listed([f'{of:,}' for of in sorted(divisions)])}."
        return [Fault(prefix, rule, "Take the files of the other divisions away.")]
    (of,) = divisions
    missing = [str(number) for number in range(1, of + 1) if (number, of) not in numbers]
    if missing or len(there) != of:
        found = f"part {_listed(missing)} is not there" if missing else "there are others"
        return [Fault(prefix, f"is in {of:,} parts, and {found}.", "Put all of them there.")]
    manifests = [read_manifest(name) if manifest_path(name).is_file() else None for name in there]
    parts = [None if manifest is None else manifest.part for manifest in manifests]
    first = next((part for part in parts if part is not None), None)
    for name, place, part in zip(there, numbers, parts, strict=True):
        if first is not None and (part is None or part.job != first.job):
            return [Fault(name, f"is no part of the dataset that {there[0]} is of.", "Put the parts of one there.")]
        if part is not None and (part.number, part.of) != place:
            return [Fault(name, f"is part {part.number} of {part.of} by its manifest.", "Give it its own name again.")]
    return []


def part_faults(prefixes: Sequence[Path]) -> list[Fault]:
    """What is wrong where some of these datasets are parts of one: others are missing, or it is there in two divisions.

    Raises IntegrityFault where a manifest is damaged.
    """
    found: dict[tuple[str, bool], dict[int, dict[int, Path]]] = {}
    for prefix in prefixes:
        manifest = read_manifest(prefix) if manifest_path(prefix).is_file() else None
        if manifest is not None and manifest.part is not None:
            part = manifest.part
            of_job = found.setdefault((part.job, bool(manifest.held_out)), {})
            of_job.setdefault(part.of, {})[part.number] = prefix
    faults = []
    for divisions in found.values():
        for of, named in divisions.items():
            missing = [str(number) for number in range(1, of + 1) if number not in named]
            number, prefix = next(iter(named.items()))
            if missing:
                rule = f"is part {number} of {of}, and part {_listed(missing)} of that dataset is not among the paths."
                remedy = "Name PREFIX, which stands for all parts, and put all of them there."
                faults.append(Fault(str(prefix), rule, remedy))
        if len(divisions) > 1:
            first, second = (next(iter(named.values())) for named in list(divisions.values())[:2])
            rule = f"is part of the same dataset as {second}, in another number of parts."
            faults.append(Fault(str(first), rule, "Name one division alone."))
    return faults


def source_files(prefix: Path, manifest: Manifest) -> list[SourceFile] | None:
    """The files that a dataset was made from; of a part, those that the first part names. None: it is not known.

    Raises IntegrityFault where the manifest of the first part is damaged.
    """
    if manifest.sources is not None or manifest.part is None:
        return manifest.sources
    held_out = HELD_OUT if prefix.name.endswith(HELD_OUT) else ""
    stem = prefix.name.removesuffix(HELD_OUT).rsplit("-", 3)[0]
    first = part_prefixes(prefix.with_name(stem), manifest.part.of)[0]
    first = first.with_name(first.name + held_out)
    if not manifest_path(first).is_file():
        return None
    named = read_manifest(first)
    return named.sources if named.part is not None and named.part.job == manifest.part.job else None


def held_out_faults(prefixes: Sequence[Path]) -> list[Fault]:
    """The datasets among these that are the held-out documents of another one of them."""
    remedy = "Leave it out: what validates is not to be trained on."
    named = set(prefixes)
    return [
        Fault(f"{prefix}{HELD_OUT}", f"is held out from {prefix}, which is read too.", remedy)
        for prefix in prefixes
        if prefix.with_name(prefix.name + HELD_OUT) in named
    ]


_MOST_LISTED = 8


def _listed(numbers: Sequence[str]) -> str:
    more = f" and {len(numbers) - _MOST_LISTED:,} more" if len(numbers) > _MOST_LISTED else ""
    return ", ".join(numbers[:_MOST_LISTED]) + more
