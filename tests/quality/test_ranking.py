import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.quality.select import (
    KEEPS,
    Keep,
    gumbel_noise,
    meets_threshold,
    pseudo_random,
    ranked,
    within_tokens,
)

Documents = st.lists(st.tuples(st.floats(-5, 5, width=32), st.integers(1, 50)), min_size=1, max_size=60)


def arrays(documents: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, lengths = (np.array(column) for column in zip(*documents, strict=True))
    return scores.astype(np.float64), lengths, pseudo_random(7, "0123456789abcdef", np.arange(len(documents)))


@given(Documents, st.sampled_from(KEEPS), st.integers(1, 3000))
def test_a_budget_takes_the_longest_run_that_fits_and_a_larger_one_takes_it_too(
    documents: list[tuple[float, int]], keep: Keep, budget: int
) -> None:
    scores, lengths, ties = arrays(documents)
    order = ranked(keep, scores, lengths, ties)
    assert sorted(order.tolist()) == list(range(len(documents)))
    count = within_tokens(order, lengths, budget)
    assert lengths[order[:count]].sum() <= budget
    assert count == len(order) or lengths[order[: count + 1]].sum() > budget


@given(Documents, st.floats(-6, 6))
def test_nothing_outside_is_better_than_anything_taken(documents: list[tuple[float, int]], limit: float) -> None:
    scores, lengths, ties = arrays(documents)
    for keep, sign in (("lowest", 1), ("highest", -1)):
        order = ranked(keep, scores, lengths, ties)  # type: ignore[arg-type]
        assert (np.diff(sign * scores[order]) >= 0).all()
        met = meets_threshold(scores, keep, limit)  # type: ignore[arg-type]
        assert (sign * scores[met] <= sign * limit).all()
        assert (sign * scores[~met] > sign * limit).all()


@given(Documents)
def test_the_middle_is_one_stretch_of_the_scores_around_the_middle_of_the_tokens(
    documents: list[tuple[float, int]],
) -> None:
    scores, lengths, ties = arrays(documents)
    ascending = ranked("lowest", scores, lengths, ties)
    place = np.empty(len(ascending), np.int64)
    place[ascending] = np.arange(len(ascending))
    order = ranked("middle", scores, lengths, ties)
    for count in range(1, len(order) + 1):
        places = np.sort(place[order[:count]])
        assert (np.diff(places) == 1).all()
        below = lengths[ascending[: places[0]]].sum()
        above = lengths[ascending[places[-1] + 1 :]].sum()
        assert abs(below - above) <= 2 * lengths.max()


def test_numbers_that_must_not_change() -> None:
    numbers = pseudo_random(1234, "00000000000000ff" * 4, np.array([0, 1, 2**40]))
    assert [f"{number:016x}" for number in numbers] == ["806528858ad8a819", "b794acedd789fd77", "9f4f5fcb3dc273db"]
    assert gumbel_noise(np.array([2**63], np.uint64))[0] == pytest.approx(-math.log(math.log(2)))


def test_gumbel_draws_in_proportion_to_the_weights() -> None:
    """The first of the ranking is a document with probability exp(score / temperature) over their sum."""
    scores, lengths = np.log([1.0, 2.0, 5.0]), np.ones(3, np.int64)
    first = np.zeros(3)
    for seed in range(4000):
        ties = pseudo_random(seed, "abcdef0123456789", np.arange(3))
        first[ranked("gumbel", scores, lengths, ties)[0]] += 1
    assert first / 4000 == pytest.approx([0.125, 0.25, 0.625], abs=0.03)
    flat = sum(
        ranked("gumbel", scores, lengths, pseudo_random(s, "ab" * 8, np.arange(3)), 1e6)[0] == 0 for s in range(2000)
    )
    assert flat / 2000 == pytest.approx(1 / 3, abs=0.04)
