"""What a run reads, opened without a GPU and without touching a token: model folder, datasets, selections.

Also which tasks and validation sets the training sources overlap, as `prepare --decontaminate` counted it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from glob import glob
from pathlib import Path
from typing import Literal, TypeVar

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import RunConfig, SourceSettings
from megatron_cpt.corpus.indexed import IndexedDataset, idx_path
from megatron_cpt.corpus.manifest import Described, Manifest
from megatron_cpt.corpus.parts import part_faults, parts_there
from megatron_cpt.corpus.selection import SUFFIX
from megatron_cpt.corpus.stream import TokenStream, expand_paths
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.mixture.phases import source_of
from megatron_cpt.mixture.quality import open_source
from megatron_cpt.preparation.contamination import NGRAM_WORDS, SetOverlap, read_contamination
from megatron_cpt.runs.folder import file_sha256
from megatron_cpt.tasks.task_files import Task, open_tasks
from megatron_cpt.tokenizer.tokenizer import Tokenizer

Opened = TypeVar("Opened")
_OPENERS = 8
"""Sources opened at a time: indices are hashed outside Python's lock, and network file systems answer late."""


@dataclass(frozen=True)
class RunInputs:
    """What could be opened; `faults` says why the rest could not."""

    shape: ModelShape | None
    """Shape of the model."""
    tokenizer: Tokenizer | None
    """The model's tokenizer."""
    sources: Mapping[str, TokenStream]
    """Streams of the training sources by name, a stream for each bucket of a source with `quality`."""
    portions: Mapping[str, Fraction]
    """Part of its source's weight that each stream has, by its name."""
    validation_sets: Mapping[str, TokenStream]
    """Streams of the validation sets, by name."""
    tasks: Mapping[str, Sequence[Task]]
    """The tasks of each file, by the file's name in the config."""
    faults: tuple[Fault, ...]
    """One for everything that is missing or unreadable."""

    def manifests(self) -> list[tuple[str, Manifest]]:
        """What every dataset says of itself, with the setting that names it; those of a source's buckets once."""
        streams = [(f"data.sources.{source_of(name)}", stream) for name, stream in self.sources.items()]
        streams += [(f"validation.sets.{name}", stream) for name, stream in self.validation_sets.items()]
        found = {
            (name, each.data_sha256, each.index_sha256): (name, each)
            for name, stream in streams
            for each in stream.manifests
        }
        return list(found.values())

    def datasets(self) -> list[tuple[IndexedDataset, Manifest]]:
        """Every dataset with its manifest, those that several streams read more than once."""
        streams = (*self.sources.values(), *self.validation_sets.values())
        return [dataset for stream in streams for dataset in stream.datasets]


def open_inputs(
    config: RunConfig, assumed: Mapping[str, int] | None = None, described: Described | None = None
) -> RunInputs:
    """Opens everything that a config names and collects what is wrong with it.

    Args:
        assumed: tokens of sources and validation sets that are not on this machine, by name; a validation set in the
            place of a source of the same name is `NAME.validation`. Where any are given, validation sets with a budget
            that are not here are assumed to hold it.
        described: as `open_dataset` takes it.
    Raises:
        IntegrityFault: files are there and corrupt.
    """
    assumed = assumed or {}
    faults: list[Fault] = list(_assumption_faults(config, assumed))
    shape, tokenizer = None, None
    folder = Path(config.model.hf)
    if folder.is_dir():
        shape = _attempt(partial(read_shape, folder, config.model.rope), faults)
        tokenizer = _attempt(partial(Tokenizer.load, folder), faults)
    else:
        rule = "there is no such folder."
        remedy = "Give a local Hugging Face model folder, with config.json, tokenizer and weights."
        faults.append(Fault(f"model.hf = {config.model.hf}", rule, remedy))
    sources, portions = open_sources(config, faults, assumed, described)
    validation_sets = _open_validation_sets(config, assumed, described, faults)
    for stream in (*sources.values(), *validation_sets.values()):
        stream.rows = None if shape is None else shape.vocabulary
    return RunInputs(
        shape,
        tokenizer,
        sources,
        portions,
        validation_sets,
        _open_tasks(config, shape, tokenizer, faults),
        tuple(faults),
    )


def missing_data(config: RunConfig) -> list[str]:
    """The sources and validation sets of which nothing is on this machine, by their names in `--assume`."""
    named = {name: source.paths for name, source in config.data.sources.items()}
    named |= {f"{name}.validation": settings.paths for name, settings in config.validation.sets.items()}
    return [name for name, paths in named.items() if not any(_is_there(path) for path in paths)]


def _is_there(path: str) -> bool:
    return bool(glob(path) or idx_path(path).exists() or parts_there(path))


def open_sources(
    config: RunConfig,
    faults: list[Fault],
    assumed: Mapping[str, int] | None = None,
    described: Described | None = None,
) -> tuple[dict[str, TokenStream], dict[str, Fraction]]:
    """The streams of the training sources by name and their portions; `faults` gets what is wrong.

    Raises IntegrityFault where files are there and corrupt.
    """
    sources: dict[str, TokenStream] = {}
    portions: dict[str, Fraction] = {}
    assumed = assumed or {}
    here = {name: source for name, source in config.data.sources.items() if name not in assumed}
    with ThreadPoolExecutor(_OPENERS) as openers:
        packed_length = None if config.data.packing is None else config.data.sequence_length
        opening = partial(_open_source, packed_length=packed_length, described=described)
        opened = dict(zip(here, openers.map(opening, here, here.values()), strict=True))
        for name in config.data.sources:
            streams, parts, found = opened.get(name) or ({name: TokenStream.assumed(assumed[name])}, {}, [])
            sources |= streams
            portions |= parts
            faults += found
    return sources, portions


def _open_source(
    name: str, settings: SourceSettings, packed_length: int | None, described: Described | None
) -> tuple[dict[str, TokenStream], dict[str, Fraction], list[Fault]]:
    setting = f"data.sources.{name}.paths"
    try:
        return *open_source(name, settings, packed_length, described), _division_faults(setting, settings.paths)
    except BadInput as error:
        return {}, {}, _path_faults(setting, settings.paths, error)


def _assumption_faults(config: RunConfig, assumed: Mapping[str, int]) -> Iterator[Fault]:
    """Names that nothing has, and sources whose buckets only their scores can tell."""
    known = [*config.data.sources, *(f"{name}.validation" for name in config.validation.sets)]
    for name, tokens in assumed.items():
        shown = f"--assume {name}={tokens}"
        if name not in known:
            yield Fault(shown, "names no source and no validation set.", f"Name one of {', '.join(known)}.")
        elif name in config.data.sources and config.data.sources[name].quality is not None:
            remedy = "Plan it where the scores are, or without `quality`."
            yield Fault(shown, "its buckets follow from the scores of its documents.", remedy)


def _open_validation_sets(
    config: RunConfig, assumed: Mapping[str, int], described: Described | None, faults: list[Fault]
) -> dict[str, TokenStream]:
    streams = {}
    for name, settings in config.validation.sets.items():
        if f"{name}.validation" in assumed:
            streams[name] = TokenStream.assumed(assumed[f"{name}.validation"])
            continue
        try:
            streams[name] = TokenStream(settings.paths, described=described)
            faults += _division_faults(f"validation.sets.{name}.paths", settings.paths)
        except BadInput as error:
            if assumed and settings.tokens is not None:
                streams[name] = TokenStream.assumed(settings.tokens + 1)  # the label of the last token
            else:
                faults += _path_faults(f"validation.sets.{name}.paths", settings.paths, error)
    return streams


def _division_faults(setting: str, paths: Sequence[str]) -> list[Fault]:
    """Parts of a dataset that are named without the others. A selection may be of any part."""
    prefixes = [path for path in expand_paths(paths) if not str(path).endswith(SUFFIX)]
    remedy = "For a part alone, name a selection of it."
    return [
        Fault(f"{setting}: {fault.value}", fault.rule, f"{fault.remedy} {remedy}") for fault in part_faults(prefixes)
    ]


def _path_faults(setting: str, paths: Sequence[str], error: BadInput) -> list[Fault]:
    found = _faults_of_each(paths) or error.faults
    return [Fault(f"{setting}: {fault.value}", fault.rule, fault.remedy) for fault in found]


def _open_tasks(
    config: RunConfig, shape: ModelShape | None, tokenizer: Tokenizer | None, faults: list[Fault]
) -> dict[str, list[Task]]:
    """Tasks are ids of the model's tokenizer: without a model there are none."""
    if shape is None or tokenizer is None:
        return {}
    opened = {}
    for name, settings in config.tasks.files.items():
        try:
            opened[name] = open_tasks(name, settings, tokenizer, shape.max_positions)
        except BadInput as error:
            faults += [Fault(f"tasks.files.{name}: {one.value}", one.rule, one.remedy) for one in error.faults]
    return opened


def _faults_of_each(paths: Sequence[str]) -> list[Fault]:
    """A stream stops at the first path that is wrong; this finds all of them."""
    faults: list[Fault] = []
    for path in paths:
        _attempt(partial(TokenStream, [path]), faults)
    return faults


def _attempt(read: Callable[[], Opened], faults: list[Fault]) -> Opened | None:
    try:
        return read()
    except BadInput as error:
        faults += error.faults
        return None


@dataclass(frozen=True)
class SourceOverlap:
    """What a training source and a task or validation set have in common."""

    source: str
    """The training source."""
    kind: Literal["task", "validation"]
    """What is compared."""
    name: str
    """Name of the task, or of the validation set."""
    datasets: int
    """Datasets of the source."""
    compared: int
    """Those that were compared."""
    items: int | None
    """Items of the task or set; None where nothing was compared."""
    items_kept: int | None
    """Items that documents of the source overlap: in the dataset that has most of them."""
    documents_kept: int | None
    """Documents of the source that overlap an item."""
    documents_left_out: int | None
    """Documents that `prepare` left out of the source because they do."""


def source_overlaps(config: RunConfig, inputs: RunInputs) -> tuple[SourceOverlap, ...]:
    """Every training source against every task and every validation set. IntegrityFault: a damaged record."""
    asked: list[tuple[Literal["task", "validation"], str, frozenset[str]]] = [
        ("task", name, frozenset([sha256])) for name, sha256 in _asked_tasks(config, inputs)
    ]
    asked += [
        ("validation", name, manifest.hashes)
        for name, stream in inputs.validation_sets.items()
        for manifest in stream.manifests
    ]
    return tuple(
        _overlap(source, kind, name, hashes, counted)
        for source, counted in _counted(inputs.sources).items()
        for kind, name, hashes in asked
    )


def overlap_warnings(overlaps: Sequence[SourceOverlap]) -> Iterator[str]:
    """Scores and losses that say less about new text than they seem to."""
    for one in overlaps:
        if one.documents_kept:
            yield (
                f"source {one.source} holds {one.documents_kept:,} documents that share {NGRAM_WORDS} words running "
                f"with {one.kind} {one.name} ({one.items_kept:,} of its {one.items:,} items): what it shows is in "
                "part what was read before. `megatron-cpt prepare --decontaminate` leaves such documents out."
            )


def _asked_tasks(config: RunConfig, inputs: RunInputs) -> Iterator[tuple[str, str]]:
    """Each task of a run with the hash of its file."""
    for name, tasks in inputs.tasks.items():
        sha256 = file_sha256(Path(config.tasks.files[name].path))
        for task in tasks:
            yield task.name, sha256


def _counted(sources: Mapping[str, TokenStream]) -> dict[str, list[Sequence[SetOverlap]]]:
    """What was counted in each dataset of each source; buckets of a source read the same datasets."""
    counted: dict[str, dict[tuple[Path, str], Sequence[SetOverlap]]] = {}
    for stream, tokens in sources.items():
        of_source = counted.setdefault(source_of(stream), {})
        for documents in tokens.document_sets:
            found = read_contamination(documents.prefix, documents.manifest)
            of_source[documents.prefix, documents.manifest.data_sha256] = [] if found is None else found.sets
    return {source: list(datasets.values()) for source, datasets in counted.items()}


def _overlap(
    source: str,
    kind: Literal["task", "validation"],
    name: str,
    hashes: frozenset[str],
    counted: Sequence[Sequence[SetOverlap]],
) -> SourceOverlap:
    found = [_matching(name, hashes, sets) for sets in counted]
    compared = [one for one in found if one is not None]
    return SourceOverlap(
        source=source,
        kind=kind,
        name=name,
        datasets=len(counted),
        compared=len(compared),
        items=compared[0].items if compared else None,
        items_kept=max((one.items_kept for one in compared), default=None),
        documents_kept=sum(one.documents_kept for one in compared) if compared else None,
        documents_left_out=sum(one.documents_left_out for one in compared) if compared else None,
    )


def _matching(name: str, hashes: frozenset[str], sets: Sequence[SetOverlap]) -> SetOverlap | None:
    """What was counted of one file's or dataset's set: of several tasks in a file, the one of that name."""
    same = [one for one in sets if one.sha256 in hashes]
    if len(same) == 1:
        return same[0]
    return next((one for one in same if one.name == name), None)
