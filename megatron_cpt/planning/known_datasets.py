"""The datasets of a run as its checkpoint knows them: known again where a manifest came or went, else told by name.

A stream of text is known by the hashes in the manifests of its datasets: of all tokens where `prepare` wrote them, of
samples where there was no manifest. The same dataset has another hash once its manifest is lost, or found. A run goes
on by the hash that it began with, so that its order, its validation sets and its records stay what they were.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.columns import LOSS_SPANS
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import MANIFEST_GONE, Content, Manifest, samples_sha256
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.mixture.phases import source_of
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.runs.checkpoint_state import CheckpointState, find_state, is_complete, newest_checkpoint
from megatron_cpt.runs.folder import RunFolder


@dataclass(frozen=True)
class KnownDataset:
    """A dataset that a run has read."""

    prefix: str
    """Where it lay."""
    data_sha256: str
    """The hash in the identity of its stream."""
    index_sha256: str
    """SHA-256 of its index."""
    whole_sha256: str | None
    """SHA-256 of its tokens; None: it was not read whole."""
    samples_sha256: str | None
    """Hash of samples of its tokens; None: none were taken."""
    loss_spans_sha256: str | None = None
    """SHA-256 of its own spans of tokens that count in the loss; None: it has none, and all do."""

    @classmethod
    def of(cls, dataset: IndexedDataset, manifest: Manifest, sampled: bool) -> "KnownDataset":
        """What its manifest tells; with `sampled` samples too, also where it does not."""
        samples = samples_sha256(dataset, manifest) if sampled else manifest.content.samples_sha256
        hashes = (manifest.data_sha256, manifest.index_sha256, manifest.content.whole_sha256, samples)
        return cls(str(dataset.prefix), *hashes, manifest.loss_spans_sha256)

    def is_same(self, other: "KnownDataset") -> bool | None:
        """Whether both are the same data. None: not known."""
        if self.index_sha256 != other.index_sha256:
            return False
        if self.data_sha256 == other.data_sha256:
            return True
        here, there = (Content(one.whole_sha256, one.samples_sha256) for one in (self, other))
        return here.is_same(there)


def recognize_datasets(config: RunConfig, inputs: RunInputs) -> dict[str, list[KnownDataset]]:
    """Gives streams the identity by which the checkpoint that the run goes on from, or starts from, knows them.

    Streams of other data keep their own. Returns the datasets by the setting that names them, as the next checkpoint
    is to know them. Raises IntegrityFault for a damaged checkpoint.
    """
    state = _state_before(config)
    datasets = {}
    for name, stream in _streams(inputs):
        before = _before(state, name)
        datasets[name] = _as_before(_of_stream(stream, before), before)
        stream.identity = stream.identity_by([one.data_sha256 for one in datasets[name]])
    return datasets


DatasetChange = tuple[str, str | None]
"""What became of a dataset, and how it is known again where it may be the same (None: it is another)."""


def changed_datasets(state: CheckpointState, name: str, stream: TokenStream) -> Iterator[DatasetChange]:
    """What became of the datasets of a stream since a checkpoint.

    Args:
        name: the setting that names the stream.
    """
    before = _before(state, name)
    now = _of_stream(stream, before)
    for old, new in zip(before, now, strict=False):
        same = old.is_same(new)
        moved = "" if old.prefix == new.prefix else f" in place of {old.prefix}"
        if same is False:
            yield f"{new.prefix}{moved} holds other tokens than were read", None
        elif same is None:
            lost = f"{new.prefix} was known by a hash of all its tokens, and by samples now: its manifest is gone"
            yield lost, f"{MANIFEST_GONE.format(prefix=new.prefix)}."
        elif old.loss_spans_sha256 != new.loss_spans_sha256:
            spans = f"{_counting(old)} before, {_counting(new)} now"
            yield f"other tokens of {new.prefix}{moved} count in the loss: {spans}", None
    if before and len(before) != len(now):
        yield f"{len(before)} datasets before, {len(now)} now", None


def _state_before(config: RunConfig) -> CheckpointState | None:
    newest = newest_checkpoint(RunFolder(config.run.folder).checkpoints)
    parent = Path(config.init_from.checkpoint) if config.init_from.checkpoint is not None else None
    begun = newest or parent
    return find_state(begun) if begun is not None and is_complete(begun) else None


def _streams(inputs: RunInputs) -> Iterator[tuple[str, TokenStream]]:
    """Every stream that is here with the setting that names its datasets; those of a source's buckets have one."""
    for name, stream in inputs.sources.items():
        if stream.identity:
            yield f"data.sources.{source_of(name)}", stream
    for name, stream in inputs.validation_sets.items():
        if stream.identity:
            yield f"validation.sets.{name}", stream


def _of_stream(stream: TokenStream, before: list[KnownDataset]) -> list[KnownDataset]:
    """The datasets of a stream, with samples where nothing else was known of those in their place."""
    return [
        KnownDataset.of(dataset, manifest, old is not None and old.whole_sha256 is None)
        for (dataset, manifest), old in zip_longest(stream.datasets, before[: len(stream.datasets)])
    ]


def _before(state: CheckpointState | None, name: str) -> list[KnownDataset]:
    known: Mapping[str, list[dict[str, Any]]] = (state.datasets if state is not None else None) or {}
    return [KnownDataset(**one) for one in known.get(name, [])]


def _counting(dataset: KnownDataset) -> str:
    """Which tokens of a dataset count by what it says of itself."""
    spans = dataset.loss_spans_sha256
    return "all" if spans is None else f"those of {LOSS_SPANS}.npy {spans[:8]}"


def _as_before(now: list[KnownDataset], before: list[KnownDataset]) -> list[KnownDataset]:
    """Datasets by the hashes of before, where they are the same data in the same places."""
    if len(now) != len(before):
        return now
    return [_joined(old, new) if old.is_same(new) else new for old, new in zip(before, now, strict=True)]


def _joined(old: KnownDataset, new: KnownDataset) -> KnownDataset:
    """All that is known of a dataset."""
    return replace(
        new,
        data_sha256=old.data_sha256,
        whole_sha256=new.whole_sha256 or old.whole_sha256,
        samples_sha256=new.samples_sha256 or old.samples_sha256,
    )
