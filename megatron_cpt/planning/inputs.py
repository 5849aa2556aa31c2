"""What a run reads, opened without a GPU and without touching a token: model folder, datasets, selections."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeVar

from megatron_cpt.config.blend import SourceSettings
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.families.shape import ModelShape, read_shape
from megatron_cpt.mixture.quality import open_source
from megatron_cpt.mixture.shares import source_of
from megatron_cpt.tasks.task import Task, open_tasks
from megatron_cpt.tokenizer.tokenize import Tokenizer

Opened = TypeVar("Opened")
OPENERS = 8
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


def open_inputs(config: RunConfig) -> RunInputs:
    """Opens everything that a config names and collects what is wrong with it.

    Raises IntegrityFault where files are there and corrupt.
    """
    faults: list[Fault] = []
    shape, tokenizer = None, None
    folder = Path(config.model.hf)
    if folder.is_dir():
        shape = _attempt(partial(read_shape, folder, config.model.rope), faults)
        tokenizer = _attempt(partial(Tokenizer.load, folder), faults)
    else:
        rule = "there is no such folder."
        remedy = "Give a local Hugging Face model folder, with config.json, tokenizer and weights."
        faults.append(Fault(f"model.hf = {config.model.hf}", rule, remedy))
    sources, portions = open_sources(config, faults)
    sets = {name: validation_set.paths for name, validation_set in config.validation.sets.items()}
    return RunInputs(
        shape,
        tokenizer,
        sources,
        portions,
        _open_streams("validation.sets", sets, faults),
        _open_tasks(config, shape, tokenizer, faults),
        tuple(faults),
    )


def open_sources(config: RunConfig, faults: list[Fault]) -> tuple[dict[str, TokenStream], dict[str, Fraction]]:
    """The streams of the training sources by name and their portions; `faults` gets what is wrong.

    Raises IntegrityFault where files are there and corrupt.
    """
    sources: dict[str, TokenStream] = {}
    portions: dict[str, Fraction] = {}
    with ThreadPoolExecutor(OPENERS) as openers:
        for streams, parts, found in openers.map(_open_source, config.data.sources, config.data.sources.values()):
            sources |= streams
            portions |= parts
            faults += found
    return sources, portions


def _open_source(
    name: str, settings: SourceSettings
) -> tuple[dict[str, TokenStream], dict[str, Fraction], list[Fault]]:
    try:
        return *open_source(name, settings), []
    except BadInput as error:
        return {}, {}, _path_faults(f"data.sources.{name}.paths", settings.paths, error)


def _open_streams(section: str, paths: Mapping[str, Sequence[str]], faults: list[Fault]) -> dict[str, TokenStream]:
    streams = {}
    for name, its_paths in paths.items():
        try:
            streams[name] = TokenStream(its_paths)
        except BadInput as error:
            faults += _path_faults(f"{section}.{name}.paths", its_paths, error)
    return streams


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
    for name, settings in config.tasks.sets.items():
        try:
            opened[name] = open_tasks(name, settings, tokenizer, shape.max_positions)
        except BadInput as error:
            faults += [Fault(f"tasks.sets.{name}: {one.value}", one.rule, one.remedy) for one in error.faults]
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
