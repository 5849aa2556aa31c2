"""A rise beside a control: re-warming and shift."""

import numpy as np
import pytest

from megatron_cpt.gap.compare import control_split
from megatron_cpt.gap.curves import LossCurve
from tests.gap.test_figures import curve


def test_the_rise_is_the_controls_rise_and_the_shift():
    split = control_split(curve([4.0, 4.5, 4.3, 4.2]), curve([4.0, 4.3, 4.0, 3.9]))
    assert split.missing is None and split.evaluations == 4
    assert split.depth is not None and split.final is not None and split.largest_shift is not None
    assert split.depth.tokens == 100
    assert (split.depth.rise, split.depth.rewarming, split.depth.shift) == pytest.approx((0.5, 0.3, 0.2))
    assert (split.final.rise, split.final.rewarming, split.final.shift) == pytest.approx((0.2, -0.1, 0.3))
    assert split.largest_shift.shift == pytest.approx(0.3)
    assert split.depth.shift_standard_error is None and split.significant is None


def test_marks_that_only_one_has_are_left_out():
    split = control_split(curve([4.0, 4.9, 4.3], steps=[0, 1, 2]), curve([4.0, 4.1, 4.2], steps=[0, 2, 3]))
    assert split.evaluations == 2 and split.depth is not None
    assert split.depth.tokens == 200 and split.depth.rewarming == pytest.approx(0.1)


def with_sequences(losses: list[float], seed: int) -> LossCurve:
    """64 sequences of 10 tokens around the losses; what is hard about a sequence is the same in every run."""
    hardness = np.random.default_rng(0).normal(0, 0.5, 64)
    noise = np.random.default_rng(seed).normal(0, 0.02, (len(losses), 64)) * (np.arange(len(losses)) > 0)[:, None]
    nats = (np.array(losses)[:, None] + hardness + noise) * 10
    steps = np.arange(len(losses))
    tokens = np.full(64, 10)
    return LossCurve("general", "general", "a", steps, steps * 100, nats.sum(1) / tokens.sum(), nats, tokens)


def test_a_shift_is_tested_sequence_by_sequence():
    split = control_split(with_sequences([4.0, 4.5, 4.3], 1), with_sequences([4.0, 4.3, 4.2], 2))
    assert split.depth is not None and split.depth.shift_standard_error is not None
    # Two runs of noise 0.02 over 64 sequences.
    assert split.depth.shift_standard_error == pytest.approx(0.02 * 2**0.5 / 8, rel=0.3)
    assert split.significant is True
    same = control_split(with_sequences([4.0, 4.5, 4.3], 1), with_sequences([4.0, 4.5, 4.3], 2))
    assert same.significant is False


def test_a_control_that_cannot_serve_says_why():
    ours = curve([4.0, 4.5])
    assert control_split(ours, None).missing == "not evaluated in the control"
    assert "another model" in (control_split(ours, curve([4.1, 4.5])).missing or "")
    later = control_split(ours, curve([4.0, 4.5], steps=[0, 3]))
    assert "no finite loss at the same tokens" in (later.missing or "") and not later.final_refusal
    without = control_split(ours, curve([4.0, 4.5], steps=[1, 2]))
    assert "the control has no baseline" in (without.missing or "") and "step 1" in (without.missing or "")
    assert without.final_refusal and without.remedy


def test_losses_that_are_not_finite_are_left_out_of_a_split():
    split = control_split(curve([4.0, float("nan"), 4.3, 4.2]), curve([4.0, 4.3, 4.1, float("inf")]))
    assert split.evaluations == 2 and split.depth is not None and split.final is not None
    assert (split.depth.tokens, split.final.tokens) == (200, 200)
    assert split.depth.shift == pytest.approx(0.2)
