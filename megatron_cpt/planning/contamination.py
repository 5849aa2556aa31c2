"""Which tasks and validation sets the training sources overlap, as `prepare --decontaminate` counted it.

A source's dataset was compared with a task if it was compared with the very file that the run asks, and with a
validation set if with its very bytes. What a selection leaves out of a dataset is not known here: counts are of whole
datasets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.manifest import file_sha256
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.mixture.shares import source_of
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.preparation.contamination import NGRAM_WORDS, SetOverlap, read_contamination


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
    asked: list[tuple[Literal["task", "validation"], str, str]] = [
        ("task", name, sha256) for name, sha256 in _asked_tasks(config, inputs)
    ]
    asked += [
        ("validation", name, manifest.data_sha256)
        for name, stream in inputs.validation_sets.items()
        for manifest in stream.manifests
    ]
    return tuple(
        _overlap(source, kind, name, sha256, counted)
        for source, counted in _counted(inputs.sources).items()
        for kind, name, sha256 in asked
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
        sha256 = file_sha256(Path(config.tasks.sets[name].path))
        for task in tasks:
            yield task.name, sha256


def _counted(sources: Mapping[str, TokenStream]) -> dict[str, list[Sequence[SetOverlap]]]:
    """What was counted in each dataset of each source; buckets of a source read the same datasets."""
    counted: dict[str, dict[tuple[Path, str], Sequence[SetOverlap]]] = {}
    for stream, tokens in sources.items():
        of_source = counted.setdefault(source_of(stream), {})
        for documents in tokens.document_sets:
            found = read_contamination(documents.prefix, documents.data_sha256)
            of_source[documents.prefix, documents.data_sha256] = [] if found is None else found.sets
    return {source: list(datasets.values()) for source, datasets in counted.items()}


def _overlap(
    source: str, kind: Literal["task", "validation"], name: str, sha256: str, counted: Sequence[Sequence[SetOverlap]]
) -> SourceOverlap:
    found = [_matching(name, sha256, sets) for sets in counted]
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


def _matching(name: str, sha256: str, sets: Sequence[SetOverlap]) -> SetOverlap | None:
    """What was counted of one file's or dataset's set: of several tasks in a file, the one of that name."""
    same = [one for one in sets if one.sha256 == sha256]
    if len(same) == 1:
        return same[0]
    return next((one for one in same if one.name == name), None)
