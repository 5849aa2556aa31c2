"""From an index of the order to this rank's micro batches.

1. The order says which source and which sequence each index of the run is (mixture/order.py).
2. The sampler says which indices of a global batch this rank reads, in which micro batch (sampler.py).
3. The windows are read from the memory-mapped datasets (dataset.py) and become tensors (batches.py).
Nothing is kept between batches: the data state of a run is the number of sequences consumed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from megatron_cpt.config.batches import Batches, Ramp
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.data.batches import Batch, make_batch
from megatron_cpt.data.dataset import windows
from megatron_cpt.data.labels import LabelMask
from megatron_cpt.data.sampler import Slots, rank_indices
from megatron_cpt.mixture.order import SampleOrder


@dataclass(frozen=True)
class TrainingData:
    """All that one rank needs to read its part of any global batch."""

    order: SampleOrder
    """Index of the run to (source, sequence)."""
    streams: Sequence[TokenStream]
    """One a source, in the order's order."""
    slots: Slots
    """This rank's part of a global batch, after the ramp."""
    sequence_length: int
    """Tokens of a sequence."""
    seed: int
    """Seed of the run."""
    within_documents: bool = False
    """Whether attention stays within documents."""
    label_masks: Sequence[LabelMask] = ()
    """What does not count of each stream's labels; empty: all count."""

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
            yield make_batch(tokens, scored, source, device, starts, self._counted(source, sequence, tokens))

    def _counted(
        self, sources: npt.NDArray[np.int32], sequences: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_] | None:
        """Which labels of windows count: bool [n, sequence_length]; None: all."""
        if not any(mask.leaves_out for mask in self.label_masks):
            return None
        return np.stack(
            [
                self.label_masks[source].counted(self.streams[source], sequence * self.sequence_length + 1, window[1:])
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
