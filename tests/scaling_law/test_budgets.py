"""Laws over size, tokens and mixture, against numbers worked out by hand and printed in the papers."""

import numpy as np
import pytest

from megatron_cpt.scaling_law.laws import (
    critical_mixture_share,
    domain_pretraining_law,
    forgetting_law,
    mixing_law,
    other_set_loss,
)


def test_domain_pretraining_law_by_hand():
    loss = domain_pretraining_law(4.0, 9.0, 0.25, 1.5, 2.0, 0.5, 3.0, 0.5, 0.5, 0.1, 0.75, 2.0)
    assert loss == pytest.approx(1.5 + 1.0 + 0.5 + 0.1, abs=1e-12)
    # Without a share it is a law of size and tokens: arXiv:2406.01375 asks for that.
    by_tokens = domain_pretraining_law(4.0, np.array([1.0, 4.0]), 1.0, 1.5, 2.0, 0.5, 3.0, 0.5, 0.5, 0.0, 0.1, 1.0)
    assert by_tokens.tolist() == pytest.approx([5.5, 4.0])


def test_forgetting_law_by_hand_and_with_injection():
    # 2 + 0.5 * 16^0.5 / (4^0.5) = 3; one per cent at B = 300 makes N four times as large: 2.5
    losses = forgetting_law(4.0, 16.0, np.array([0.0, 0.01]), 2.0, 0.5, 0.5, 300.0, 0.5)
    assert losses.tolist() == pytest.approx([3.0, 2.5])


def test_mixing_law_by_hand():
    shares = np.array([[1.0, 0.0], [0.5, 0.5]])
    losses = mixing_law(shares, 2.0, 0.5, np.array([0.0, -2.0 * np.log(2)]))
    assert losses.tolist() == pytest.approx([2.5, 2.25])


@pytest.mark.parametrize(
    ("constants", "printed"),
    [
        ((0.22525, 0.26944, -0.48140), 0.298),
        ((0.75206, 0.13720, -1.06582), 0.349),
        ((-2.36385, -0.15126, 1.59224), 0.414),
        ((-2.53682, -0.42071, 0.84375), 0.478),
    ],
)
def test_critical_mixture_shares_at_20b_tokens_are_the_printed_ones(constants: tuple[float, ...], printed: float):
    # arXiv:2407.17467: 460M, 940M, 1.6B and 3.1B parameters on finance
    assert critical_mixture_share(100, *constants) == pytest.approx(printed, abs=0.003)


def test_loss_on_another_set_with_printed_weights():
    # arXiv:2505.07796: C4 from FineWeb and Knowledge-Pile
    assert other_set_loss(3.0, 2.5, 0.867, 0.152) == pytest.approx(2.981)
