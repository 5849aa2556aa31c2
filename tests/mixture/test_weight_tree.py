"""weight_tree.py: within two sequences of the due share in every prefix, in exact integers."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_cpt.mixture.order import LARGEST_WEIGHT_SUM, WeightTree

weight_lists = st.lists(
    st.one_of(st.integers(0, 9), st.integers(0, 10**4), st.integers(0, 10**6)), min_size=1, max_size=40
).filter(any)


def names(count: int) -> list[str]:
    return [f"source{number:04d}" for number in range(count)]


def tree_of(weights: list[int]) -> WeightTree:
    return WeightTree(weights, names(len(weights)))


def worst_error(weights: list[int], sequences: int) -> Fraction:
    """Largest distance of a source's count from its due share, in sequences."""
    total = sum(weights)
    pairs = zip(weights, tree_of(weights).counts(sequences).tolist(), strict=True)
    return max(abs(count - Fraction(sequences * weight, total)) for weight, count in pairs)


@given(weights=weight_lists)
@example(weights=[6, 6, 2])
@example(weights=[998, 1, 1])
def test_every_prefix_is_within_two_sequences_of_the_due_shares(weights: list[int]) -> None:
    tree, total = tree_of(weights), sum(weights)
    sources, positions = tree.locate(np.arange(400))
    counts = np.zeros(len(weights), np.int64)
    for index, (source, position) in enumerate(zip(sources, positions, strict=True)):
        assert position == counts[source]
        counts[source] += 1
        due = np.array(weights) * (index + 1) / total
        assert np.abs(counts - due).max() < 2
    assert tree.counts(400).tolist() == counts.tolist()


@given(weights=weight_lists, sequences=st.integers(0, 2**62))
def test_counts_of_huge_prefixes_are_exact(weights: list[int], sequences: int) -> None:
    assert tree_of(weights).counts(sequences).sum() == sequences
    assert worst_error(weights, sequences) < 2


@given(weights=weight_lists, index=st.integers(0, 2**62 - 1))
def test_locate_agrees_with_the_counts_on_both_sides_of_an_index(weights: list[int], index: int) -> None:
    tree = tree_of(weights)
    sources, positions = tree.locate(np.array([index]))
    before, after = tree.counts(index), tree.counts(index + 1)
    assert positions[0] == before[sources[0]]
    assert (after - before).tolist() == [int(number == sources[0]) for number in range(len(weights))]


def test_weights_at_the_limit_are_exact_at_the_largest_index() -> None:
    weights = [LARGEST_WEIGHT_SUM - 4, 3, 1]
    assert worst_error(weights, 2**62 - 1) < 2
    assert worst_error(weights, 10**12 + 7) < 2


def test_a_thousand_sources_stay_within_two() -> None:
    drawn = random.Random(5)
    weights = [int(drawn.paretovariate(0.8) * 100) for _ in range(1000)]
    assert max(worst_error(weights, drawn.randrange(10**7)) for _ in range(200)) < 2


def test_one_source_and_absent_sources() -> None:
    assert tree_of([5]).counts(7).tolist() == [7]
    sources, positions = tree_of([0, 3, 0]).locate(np.arange(4))
    assert sources.tolist() == [1, 1, 1, 1]
    assert positions.tolist() == [0, 1, 2, 3]


def test_neither_listing_order_nor_scale_of_weights_matters() -> None:
    forward, _ = WeightTree([3, 1, 1], ["a", "b", "c"]).locate(np.arange(50))
    listed_otherwise, _ = WeightTree([20, 60, 20], ["c", "a", "b"]).locate(np.arange(50))
    assert [("a", "b", "c")[number] for number in forward] == [("c", "a", "b")[number] for number in listed_otherwise]


@pytest.mark.parametrize("weights", [[0, 0], [2, -1], [LARGEST_WEIGHT_SUM, 1]])
def test_weights_that_make_no_tree(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weight"):
        tree_of(weights)


def test_golden_values() -> None:
    sources, _ = tree_of([5, 3, 1, 1]).locate(np.arange(20))
    assert sources.tolist() == [0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 1, 0, 2, 0, 1, 0, 3, 0, 1]
