"""permutation.py: bijections, even-handed at tiny sizes, and the same for ever."""

from itertools import pairwise
from math import factorial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.corpus.hashing import mixed
from megatron_cpt.mixture.order import LARGEST_SIZE, derive, key_of, permute

keys = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 3000), key=keys)
def test_every_position_is_hit_once(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@given(sizes=st.lists(st.integers(1, LARGEST_SIZE), min_size=1, max_size=20), key=keys)
def test_huge_sizes_stay_inside_and_keep_positions_apart(sizes: list[int], key: int) -> None:
    for size in sizes:
        places = permute(np.unique(np.array([0, size // 3, size - 1], np.uint64)), size, key)
        assert places.max() < size
        assert len(set(places.tolist())) == len(places)


@given(st.lists(st.tuples(st.integers(1, 10**12), keys, st.integers(0, 10**12)), min_size=1, max_size=30))
def test_elements_with_their_own_sizes_and_keys_do_not_disturb_each_other(rows: list[tuple[int, int, int]]) -> None:
    size = np.array([row[0] for row in rows], np.uint64)
    key = np.array([row[1] for row in rows], np.uint64)
    position = np.array([row[2] for row in rows], np.uint64) % size
    together = permute(position, size, key)
    assert together.tolist() == [int(permute(*one)[0]) for one in zip(position, size, key, strict=True)]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_permutations_of_tiny_sizes_are_equally_likely(size: int) -> None:
    draws = 100 * factorial(size)
    drawn_keys = derive(key_of("tiny", size), np.arange(draws))
    places = np.stack([permute(position, size, drawn_keys) for position in range(size)], axis=1)
    _, seen = np.unique(places.astype(np.int64) @ size ** np.arange(size), return_counts=True)
    assert len(seen) == factorial(size)
    chi_square = float(((seen - 100) ** 2 / 100).sum())
    degrees = factorial(size) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def test_neighbours_are_taken_apart() -> None:
    places = permute(np.arange(10_000), 10**6, 3).astype(np.int64)
    steps = np.abs(np.diff(places))
    assert abs(steps.mean() - 10**6 / 3) < 10**4
    assert abs(places.mean() - 10**6 / 2) < 10**4


def test_consecutive_keys_give_unrelated_permutations() -> None:
    size = 10_000
    rows = [permute(np.arange(size), size, key) for key in range(8)]
    fixed_points = [int((one == other).sum()) for one, other in pairwise(rows)]
    assert max(fixed_points) < 10


def test_mix_is_the_finaliser_of_splitmix64() -> None:
    """First outputs of SplitMix64 with seed 1234567, as published with its reference implementation."""
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mixed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_position_outside_is_an_error() -> None:
    for position, size in ((5, 5), (-1, 5), (0, 0), (0, LARGEST_SIZE + 1)):
        with pytest.raises((ValueError, OverflowError)):
            permute(position, size, 1)


def test_golden_values() -> None:
    assert key_of("order", 1234, "wiki") == 16635270063213362441
    assert permute(np.arange(10), 10, 42).tolist() == [9, 1, 2, 7, 5, 4, 8, 6, 3, 0]
    assert permute(np.array([0, 1, 10**12 - 1]), 10**12, 42).tolist() == [833606287180, 658343090733, 64896729524]
