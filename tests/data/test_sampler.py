"""How a global batch is dealt to ranks and micro batches."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.data.loader import Slots, rank_indices


def dealt(first: int, size: int, micro: int, ranks: int, seed: int) -> list[list[int]]:
    """Indices of each rank, in its order of micro batches."""
    slots = [Slots(size, micro, rank, ranks) for rank in range(ranks)]
    return [rank_indices(own, first, seed).ravel().tolist() for own in slots]


@given(
    first=st.integers(0, 10**12),
    micro=st.integers(1, 4),
    ranks=st.integers(1, 8),
    batches=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_every_sequence_of_a_global_batch_is_read_once(
    first: int, micro: int, ranks: int, batches: int, seed: int
) -> None:
    size = micro * ranks * batches
    read = sorted(index for rank in dealt(first, size, micro, ranks, seed) for index in rank)
    assert read == list(range(first, first + size))


def test_the_set_of_a_global_batch_does_not_depend_on_the_layout() -> None:
    one = dealt(first=48, size=16, micro=4, ranks=1, seed=1)
    four = dealt(first=48, size=16, micro=2, ranks=4, seed=1)
    assert sorted(chain(*one)) == sorted(chain(*four)) == list(range(48, 64))


def test_a_rank_is_not_tied_to_a_place_in_the_order() -> None:
    # Without the permutation, two ranks at micro batch 1 would read only even and only odd indices: with two
    # sources at 1:1, each rank would see one source alone.
    parities = [
        {index % 2 for batch in range(20) for index in dealt(batch * 8, 8, 1, 2, seed=3)[rank]} for rank in range(2)
    ]
    assert parities == [{0, 1}, {0, 1}]


def test_the_deal_never_changes_in_silence() -> None:
    assert dealt(first=0, size=8, micro=2, ranks=2, seed=1234) == [[5, 1, 2, 4], [6, 3, 7, 0]]
