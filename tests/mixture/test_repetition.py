"""repetition.py: the formula of arXiv:2305.16264, by its literal values."""

import pytest

from megatron_cpt.mixture.blend import REPETITION_DECAY, effective_unique_tokens


def test_nothing_repeated_is_worth_what_it_is() -> None:
    assert effective_unique_tokens(1000, 0) == 0
    assert effective_unique_tokens(1000, 400) == 400
    assert effective_unique_tokens(1000, 1000) == 1000
    assert effective_unique_tokens(0, 0) == 0


@pytest.mark.parametrize(("epochs", "worth"), [(2, 1.97), (4, 3.73), (8, 6.62), (16, 10.58), (40, 15.17)])
def test_values_of_the_paper(epochs: int, worth: float) -> None:
    assert effective_unique_tokens(10**6, epochs * 10**6) / 10**6 == pytest.approx(worth, abs=0.005)


def test_repetition_has_a_ceiling() -> None:
    assert effective_unique_tokens(100, 10**9) == pytest.approx(100 * (1 + REPETITION_DECAY))
