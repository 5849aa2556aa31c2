"""A flat noisy curve is not called a gap; a planted rise is."""

from itertools import product

import numpy as np
import pytest

from megatron_cpt.gap.figures import family_wise_p_value, paired_standard_error

TOKENS = np.array([256] * 31 + [40])


def flat_differences(generator: np.random.Generator, marks: int, kind: str) -> np.ndarray:
    """Differences without a rise, [marks, sequences]."""
    noise = generator.normal(size=(marks, len(TOKENS)))
    if kind == "random walk":
        noise = noise.cumsum(axis=0)
    return noise * TOKENS * 0.01


@pytest.mark.parametrize("marks", [24, 64])
@pytest.mark.parametrize("kind", ["independent", "random walk"])
def test_at_most_about_5_percent_of_flat_curves_are_called_a_gap(kind: str, marks: int):
    generator = np.random.default_rng(7)
    values = [family_wise_p_value(flat_differences(generator, marks, kind), TOKENS, flips=399) for _ in range(1000)]
    called = sum(value is not None and value <= 0.05 for value in values)
    assert 20 <= called <= 70  # 50 expected, standard deviation 7, and the flips' own


def test_a_planted_rise_is_significant_and_a_fall_is_not():
    noise = flat_differences(np.random.default_rng(3), 24, "independent")
    rise = np.zeros((24, 1))
    rise[5] = 0.02
    planted = family_wise_p_value(noise + rise * TOKENS, TOKENS)
    fallen = family_wise_p_value(noise - 0.02 * TOKENS, TOKENS)
    assert planted is not None and planted <= 0.001
    assert fallen is not None and fallen > 0.9


def test_the_p_value_is_the_share_of_all_sign_patterns_with_as_large_a_t():
    tokens = np.array([31, 64, 64, 17, 50, 64, 40, 64])
    differences = np.random.default_rng(2).normal(0.01, 0.02, (6, 8)) * tokens

    def largest_t(signs: tuple[int, ...]) -> float:
        found = []
        for row in differences * np.array(signs):
            change = row.sum() / tokens.sum()
            error = (8 / 7 * sum((row - change * tokens) ** 2)) ** 0.5 / tokens.sum()
            found.append(change / error)
        return max(found)

    observed = largest_t((1,) * 8)
    exact = np.mean([largest_t(signs) >= observed * (1 - 1e-9) for signs in product((1, -1), repeat=8)])
    assert 0.02 < exact < 0.5
    # Of 1999 random patterns: four standard errors.
    found = family_wise_p_value(differences, tokens)
    assert found == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 1999) ** 0.5)


def test_the_same_records_give_the_same_answer():
    noise = flat_differences(np.random.default_rng(11), 8, "independent")
    assert family_wise_p_value(noise, TOKENS) == family_wise_p_value(noise, TOKENS)


def test_too_few_sequences_cannot_be_tested():
    assert family_wise_p_value(np.ones((3, 4)), np.array([2, 2, 2, 2])) is None
    assert family_wise_p_value(np.ones((0, 9)), np.full(9, 2)) is None


def test_no_change_at_all_is_no_rise_and_a_constant_one_is():
    tokens = np.full(16, 2)
    assert family_wise_p_value(np.zeros((3, 16)), tokens) == 1.0
    constant = family_wise_p_value(np.full((3, 16), 0.5), tokens)
    assert constant is not None and constant <= 0.01


def test_standard_error_of_equal_sequences_is_that_of_the_mean():
    differences = np.array([1.0, 3.0, 5.0, 7.0])  # sample SD 2.58199, of 4, over 10 tokens each
    assert paired_standard_error(differences, np.full(4, 10)) == pytest.approx(2.581988897 / 2 / 10)


def test_standard_error_of_ragged_sequences_is_that_of_a_ratio():
    # c = 5 / 4; residuals 1 - 1.25, 4 - 3.75; sqrt(2 * 0.125) / 4
    assert paired_standard_error(np.array([1.0, 4.0]), np.array([1, 3])) == pytest.approx(0.125)
    assert np.isnan(paired_standard_error(np.array([1.0]), np.array([3])))
