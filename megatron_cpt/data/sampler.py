"""Which sequences of the order a rank reads, in which micro batch.

The order says which G sequences make a global batch. The sampler deals them to the slots of that batch
by a permutation keyed by the batch's first index, so that a rank or a micro batch is not tied to a
source, whatever pattern the order has. The set of a global batch does not depend on the layout.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.mixture.permutation import key_of, permute


@dataclass(frozen=True)
class Slots:
    """How a global batch is divided. A slot is (micro batch, data-parallel rank, place), counted in that order."""

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
    dealt = permute(slot.ravel(), slots.global_batch_size, key_of("global batch", seed, first_index))
    return first_index + dealt.astype(np.int64).reshape(slot.shape)
