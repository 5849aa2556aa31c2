"""From an index of the order to this rank's micro batches.

Each global batch is permuted over slots of rank and micro batch. Tokens come straight from memory-mapped datasets. A
mask says which labels count in the loss. In training a thread reads ahead.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_cpt.config.schema import DataSettings
from megatron_cpt.config.units import Batches, Ramp
from megatron_cpt.corpus.label_mask import LabelMask, label_mask
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.mixture.order import SampleOrder, key_of, permute
from megatron_cpt.mixture.phases import source_of


@dataclass(frozen=True)
class Slots:
    """How a global batch is divided over (micro batch, data-parallel rank, place), numbered in that order."""

    global_batch_size: int
    """Sequences of a global batch."""
    micro_batch_size: int
    """Sequences of a micro batch of one rank."""
    data_rank: int
    """This rank among the replicas."""
    data_size: int
    """Replicas."""

    @property
    def micro_batches(self) -> int:
        """Micro batches of each rank in a global batch."""
        return self.global_batch_size // (self.micro_batch_size * self.data_size)


def rank_indices(slots: Slots, first_index: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices into the order of this rank's part of a global batch: int64 [micro_batches, micro_batch_size].

    Args:
        first_index: index of the global batch's first sequence.
    """
    micro_batch, place = np.ogrid[: slots.micro_batches, : slots.micro_batch_size]
    slot = (micro_batch * slots.data_size + slots.data_rank) * slots.micro_batch_size + place
    permuted = permute(slot.ravel(), slots.global_batch_size, key_of("global batch", seed, first_index))
    return first_index + permuted.astype(np.int64).reshape(slot.shape)


@dataclass(frozen=True)
class Batch:
    """One micro batch of one rank: b sequences of s tokens."""

    tokens: Tensor
    """int64 [b, s]: the model's input."""
    labels: Tensor
    """int64 [b, s]: the token that follows each input token."""
    loss_mask: Tensor
    """float32 [b, s]: 1 where the loss counts, else 0."""
    positions: Tensor
    """int64 [b, s]: position of each token in its sequence."""
    sources: Tensor
    """int64 [b]: which source each sequence is from."""
    loss_weights: Tensor | None = None
    """float32 [b]: factor on the loss of each sequence in what is trained on; None: 1."""
    document_lengths: tuple[int, ...] | None = None
    """Tokens of the documents, or of what a sequence holds of them, over the b sequences laid end to end. None:
    attention crosses documents."""


def make_batch(
    windows: np.ndarray,
    scored: np.ndarray,
    sources: np.ndarray,
    device: torch.device,
    document_starts: Sequence[np.ndarray] | None = None,
    loss_mask: np.ndarray | None = None,
    loss_weights: np.ndarray | None = None,
) -> Batch:
    """A batch from windows of s + 1 tokens.

    Args:
        windows: int64 [b, s + 1], a sequence and the token after it.
        scored: int64 [b], how many labels of each sequence, from its first on, may count in the loss.
        sources: int64 [b], which source each is from.
        document_starts: for each sequence, where documents begin in it; None lets attention cross documents.
        loss_mask: bool [b, s], which of these labels do count (loader.py); None: all.
        loss_weights: float32 [b], factors on the loss in training; None: 1.
    """
    length = windows.shape[1] - 1
    places = np.arange(length)
    mask = (places[None, :] < scored[:, None]).astype(np.float32)
    if loss_mask is not None:
        mask *= loss_mask
    tokens = _on(device, windows)
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=_on(device, mask),
        positions=_on(device, places).expand(len(windows), -1),
        sources=_on(device, np.asarray(sources, dtype=np.int64)),
        loss_weights=None if loss_weights is None else _on(device, loss_weights),
        document_lengths=None if document_starts is None else lengths_between(document_starts, length),
    )


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    """An array on a device. A GPU copies it from pinned memory while the host goes on."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def lengths_between(document_starts: Sequence[np.ndarray], length: int) -> tuple[int, ...]:
    """Tokens of each document in sequences laid end to end; a sequence ends the document that it cuts.

    Args:
        document_starts: for each sequence, where documents begin in it, ascending.
        length: tokens of a sequence.
    """
    cuts = (np.unique(np.concatenate([[0], starts[starts < length], [length]])) for starts in document_starts)
    return tuple(int(number) for ends in cuts for number in np.diff(ends))


Int64s = npt.NDArray[np.int64]


def label_masks(data: DataSettings, streams: Mapping[str, TokenStream], names: Sequence[str]) -> list[LabelMask]:
    """The masks of the named streams of training text."""
    return [label_mask(data, streams[name], data.sources[source_of(name)].loss_mask_column) for name in names]


def loss_weights(data: DataSettings, names: Sequence[str]) -> npt.NDArray[np.float32] | None:
    """The weight of each named stream in what is trained on: float32 [streams]; None where all are 1."""
    weights = np.array([data.sources[source_of(name)].loss_weight for name in names], dtype=np.float32)
    return None if (weights == 1).all() else weights


@dataclass(frozen=True)
class TrainingData:
    """All that one rank needs to read its part of any global batch."""

    order: SampleOrder
    """Index of the run to (source, sequence)."""
    streams: Sequence[TokenStream]
    """One for each source, by its number in `order`."""
    slots: Slots
    """This rank's part of a global batch, after the ramp."""
    sequence_length: int
    """Tokens of a sequence."""
    seed: int
    """Seed of the run."""
    within_documents: bool = False
    """Whether attention stays within documents."""
    label_masks: Sequence[LabelMask] = ()
    """Which labels of each stream do not count in the loss; empty: all count."""
    loss_weights: npt.NDArray[np.float32] | None = None
    """float32 [sources]: factor on the loss of each stream in what is trained on; None: 1."""
    ramp: Ramp = ()
    """The smaller global batches at the beginning of the run, in sequences."""

    def slots_at(self, first_index: int) -> Slots:
        """This rank's part of the global batch that begins at an index of the order."""
        batches = Batches(self.slots.global_batch_size, self.ramp)
        return replace(self.slots, global_batch_size=batches.of_step(batches.whole_steps(first_index) + 1))

    def global_batch(self, first_index: int, device: torch.device) -> Iterator[Batch]:
        """This rank's micro batches of the global batch that begins at an index of the order."""
        slots = self.slots_at(first_index)
        indices = rank_indices(slots, first_index, self.seed)
        places = self.order.locate(indices.ravel())
        scored = np.full(slots.micro_batch_size, self.sequence_length)
        for source, sequence in zip(
            places.source.reshape(indices.shape), places.sequence.reshape(indices.shape), strict=True
        ):
            tokens = windows(self.streams, source, sequence, self.sequence_length)
            starts = self._document_starts(source, sequence) if self.within_documents else None
            counted = self._counted(source, sequence, tokens)
            weights = None if self.loss_weights is None else self.loss_weights[source]
            yield make_batch(tokens, scored, source, device, starts, counted, weights)

    def _counted(
        self, sources: npt.NDArray[np.int32], sequences: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_] | None:
        """Which labels of windows count: bool [n, sequence_length]; None: all."""
        if not any(mask.leaves_out for mask in self.label_masks):
            return None
        return np.stack(
            [
                self.label_masks[source].loss_mask(
                    self.streams[source], sequence * self.sequence_length + 1, window[1:]
                )
                for source, sequence, window in zip(sources.tolist(), sequences.tolist(), tokens, strict=True)
            ]
        )

    def _document_starts(
        self, sources: npt.NDArray[np.int32], sequences: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[np.int64]]:
        return [
            self.streams[source].document_starts(sequence * self.sequence_length, self.sequence_length)
            for source, sequence in zip(sources.tolist(), sequences.tolist(), strict=True)
        ]


_AHEAD = 4
"""Micro batches that are read before they are asked for: storage that answers late for a moment is not waited for."""


class BatchReader:
    """Reads a rank's micro batches ahead in a thread, also those of the next step. A context manager."""

    def __init__(self, data: TrainingData, device: torch.device, first_indices: Iterable[int]) -> None:
        """Args: `first_indices`, where the global batches begin in the order, one after the other."""
        self._data, self._device, self._first_indices = data, device, first_indices
        self._read: Queue[tuple[int, Batch | BaseException | None]] = Queue(_AHEAD)
        self._closed = Event()
        self._thread = Thread(target=self._work, name="batch reader", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()

    def global_batch(self, first_index: int) -> Iterator[Batch]:
        """The micro batches of the next global batch. Raises what reading them raised."""
        while True:
            of_batch, found = self._read.get()
            if of_batch < first_index and not isinstance(found, BaseException):
                continue  # left of the batch before: a pipeline does not ask beyond its last
            assert of_batch <= first_index, f"the batch from {first_index} is not the next, but that from {of_batch}"
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return
            yield found

    def _work(self) -> None:
        for first_index in self._first_indices:
            try:
                for batch in self._data.global_batch(first_index, self._device):
                    if not self._hand_over(first_index, batch):
                        return
            except BaseException as error:
                self._hand_over(first_index, error)
                return
            if not self._hand_over(first_index, None):
                return

    def _hand_over(self, first_index: int, found: Batch | BaseException | None) -> bool:
        """Waits until there is room; False where nobody wants it any more."""
        while not self._closed.is_set():
            try:
                self._read.put((first_index, found), timeout=0.2)
                return True
            except Full:
                pass
        return False


def window(stream: TokenStream, sequence: int, sequence_length: int) -> Int64s:
    """Sequence number s of an endless stream: tokens [s L, s L + L], L of input and the label of the last.

    As in Megatron's GPT dataset, documents follow each other and a sequence may begin and end inside one.
    """
    return stream.read(sequence * sequence_length, sequence_length + 1)


def windows(
    streams: Sequence[TokenStream], sources: npt.NDArray[np.int32], sequences: Int64s, sequence_length: int
) -> Int64s:
    """The windows of several sequences: int64 [n, sequence_length + 1]."""
    out = np.empty((len(sources), sequence_length + 1), np.int64)
    for row, source, sequence in zip(out, sources.tolist(), sequences.tolist(), strict=True):
        streams[source].copy(sequence * sequence_length, row)
    return out
