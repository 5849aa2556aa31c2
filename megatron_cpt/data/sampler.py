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


def micro_batch_indices(slots: Slots, first_index: int, micro_batch: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices into the order of one micro batch of this rank: int64 [micro_batch_size].

    Args:
        first_index: index of the global batch's first sequence.
        micro_batch: number of the micro batch within the global batch.
    """
    first_slot = (micro_batch * slots.data_size + slots.data_rank) * slots.micro_batch_size
    places = np.arange(first_slot, first_slot + slots.micro_batch_size)
    dealt = permute(places, slots.global_batch_size, key_of("global batch", seed, first_index))
    return first_index + dealt.astype(np.int64)
