"""Gap figures of planted curves, in literal numbers."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.figures import Recovery, find_recovery, gap_figures

SEQUENCES = 8


def curve(losses: Sequence[float], steps: Sequence[int] | None = None, spread: float | None = None) -> LossCurve:
    """A curve with 100 tokens a step; `spread`: sequences change by up to so many nats more or less."""
    marks = np.arange(len(losses)) if steps is None else np.array(steps)
    values = np.array(losses, dtype=np.float64)
    nats = None
    if spread is not None:
        sides = np.linspace(-spread, spread, SEQUENCES)
        nats = (values[:, None] + sides * (np.arange(len(losses)) > 0)[:, None]) * 10
    return LossCurve(
        "general",
        "general",
        "a",
        marks,
        marks * 100,
        values,
        nats,
        None if nats is None else np.full(SEQUENCES, 10),
    )


def test_a_rise_that_comes_back():
    figures = gap_figures(curve([4.0, 4.2, 4.5, 4.1, 4.005, 4.0, 3.9]))
    assert figures.missing is None
    assert figures.evaluations == 7
    assert figures.baseline == 4.0
    assert figures.depth == pytest.approx(0.5)
    assert figures.depth_tokens == 200
    assert figures.final == pytest.approx(-0.1)
    assert figures.improvement == pytest.approx(0.1)
    assert figures.final_tokens == 600
    assert figures.transient == pytest.approx(0.5)
    assert figures.recovery is Recovery.RECOVERED
    assert figures.recovery_tokens == 400
    assert figures.area == pytest.approx(100 * (0.1 + 0.35 + 0.3 + 0.0525 + 0.0025))
    assert figures.p_value is None and figures.significant is None
    assert figures.depth_standard_error is None and figures.final_standard_error is None


def test_a_rise_that_came_back_is_told_though_a_drift_topped_it():
    figures = gap_figures(curve([3.00, 3.05, 3.00, 3.00, 3.00, 3.02, 3.04, 3.06]))
    assert (figures.depth_tokens, figures.recovery) == (700, Recovery.NOT_RECOVERED)
    assert figures.transient == pytest.approx(0)
    assert figures.first_rise == pytest.approx(0.05)
    assert (figures.first_rise_tokens, figures.first_rise_recovery_tokens) == (100, 200)
    # One mark alone in the band is no way back, and a rise that stays is none that came back.
    assert gap_figures(curve([3.0, 3.05, 3.0, 3.2, 3.3])).first_rise is None
    once = gap_figures(curve([3.0, 3.05, 3.0, 3.2, 3.0, 3.0]))
    assert (once.first_rise_tokens, once.first_rise_recovery_tokens) == (300, 400) and once.depth_tokens == 300


def test_a_loss_that_is_not_finite_is_left_out_and_counts_as_a_rise_for_the_recovery():
    # Back at step 4, lost at step 6, back again at step 7: of the finite losses alone step 4 would be the recovery.
    losses = [4.0, 4.2, 4.5, 4.1, 4.0, 4.0, np.nan, 4.0, 4.0, 3.9]
    figures = gap_figures(curve(losses, spread=0.001))
    assert (figures.missing, figures.not_finite) == (None, "step 6")
    assert (figures.depth, figures.depth_tokens, figures.final) == (pytest.approx(0.5), 200, pytest.approx(-0.1))
    assert (figures.recovery, figures.recovery_tokens) == (Recovery.RECOVERED, 700)
    assert (figures.first_rise_tokens, figures.first_rise_recovery_tokens) == (200, 400)
    assert figures.area is None and figures.significant is True
    kept = [loss for loss in losses if np.isfinite(loss)]
    others = gap_figures(curve(kept, [0, 1, 2, 3, 4, 5, 7, 8, 9], spread=0.001))
    assert (figures.p_value, figures.depth_standard_error) == (others.p_value, others.depth_standard_error)
    # A set that else never rose did not stay at its baseline, as far as is known.
    low = gap_figures(curve([4.0, np.nan, 3.9, 3.8]))
    assert (low.depth, low.recovery, low.recovery_tokens, low.first_rise) == (0.0, Recovery.RECOVERED, 200, None)
    assert gap_figures(curve([4.0, 3.9, np.inf, 3.8])).recovery is Recovery.NOT_RECOVERED


def test_without_a_finite_last_loss_there_is_no_end():
    figures = gap_figures(curve([4.0, 4.2, 4.1, np.nan, np.inf]))
    assert (figures.depth, figures.not_finite) == (pytest.approx(0.2), "steps 3 and 4")
    ends = (figures.final, figures.final_tokens, figures.improvement, figures.transient, figures.final_standard_error)
    assert set(ends) == {None} and figures.recovery is Recovery.NOT_RECOVERED


def test_a_rise_that_stays_is_forgetting_and_its_recovery_is_none_not_0():
    figures = gap_figures(curve([4.0, 4.3, 4.6, 4.5]))
    assert figures.depth == pytest.approx(0.6)
    assert figures.final == pytest.approx(0.5)
    assert figures.transient == pytest.approx(0.1)
    assert figures.recovery is Recovery.NOT_RECOVERED
    assert figures.recovery_tokens is None


def test_one_mark_back_in_the_band_is_no_recovery():
    assert gap_figures(curve([4.0, 4.3, 4.0, 4.3, 4.2])).recovery is Recovery.NOT_RECOVERED
    assert gap_figures(curve([4.0, 4.3, 4.2, 4.0])).recovery is Recovery.NOT_RECOVERED
    assert gap_figures(curve([4.0, 4.3, 4.0, 4.2, 4.0, 4.0])).recovery_tokens == 400


def test_a_curve_that_never_left_the_band_had_nothing_to_recover_from():
    figures = gap_figures(curve([4.0, 4.009, 3.99]))
    assert figures.depth == pytest.approx(0.009)
    assert figures.recovery is Recovery.NOT_NEEDED
    assert figures.recovery_tokens is None


def test_a_loss_that_only_falls_has_depth_0_at_0_tokens():
    figures = gap_figures(curve([5.0, 4.0, 3.5]))
    assert (figures.depth, figures.depth_tokens, figures.depth_standard_error) == (0.0, 0, None)
    assert (figures.transient, figures.area, figures.improvement) == (0.0, 0.0, 1.5)


def test_standard_errors_are_paired_and_widen_the_band():
    figures = gap_figures(curve([4.0, 4.5, 4.2, 4.145, 4.1], spread=0.3))
    # sample SD of 8 values spread evenly over [-0.3, 0.3] is 0.20996; over sqrt(8)
    assert figures.depth_standard_error == pytest.approx(0.0742307)
    assert figures.final_standard_error == pytest.approx(0.0742307)
    assert figures.recovery_tokens == 300  # 4.145 and 4.1 are within 2 * 0.0742 of 4.0; 4.2 is not
    assert figures.significant is True


def test_noise_alone_is_not_significant():
    figures = gap_figures(curve([4.0, 4.01, 4.0], spread=1.0))
    assert figures.significant is False


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (curve([4.0, 4.1], steps=[5, 9]), "before the first update"),
        (curve([4.0]), "since the first update"),
        (curve([np.nan, 4.0, 4.1]), "before the first update (step 0) is not finite"),
        (curve([4.0, np.nan, np.inf]), "no finite loss since the first update: none at steps 1 and 2"),
    ],
)
def test_without_a_baseline_or_a_later_mark_or_finite_losses_there_are_no_figures(broken: LossCurve, reason: str):
    figures = gap_figures(broken)
    assert figures.missing is not None and reason in figures.missing
    words = ("missing", "evaluations", "not_finite")
    numbers = {name: value for name, value in vars(figures).items() if name not in words}
    assert set(numbers.values()) == {None}


@given(st.lists(st.floats(1, 12), min_size=2, max_size=40))
def test_what_holds_of_every_curve(losses: list[float]):
    figures = gap_figures(curve(losses))
    assert figures.depth is not None and figures.final is not None and figures.transient is not None
    assert figures.depth >= 0 and figures.transient >= 0
    assert figures.depth >= figures.final
    assert figures.area is not None and 0 <= figures.area <= figures.depth * 100 * (len(losses) - 1) + 1e-9
    assert (figures.recovery_tokens is not None) == (figures.recovery is Recovery.RECOVERED)
    if figures.recovery_tokens is not None and figures.depth_tokens is not None:
        assert figures.recovery_tokens > figures.depth_tokens


def test_below_the_baseline_counts_as_recovered():
    rise = np.array([0.0, 0.5, -0.2, -0.3])
    assert find_recovery(rise, np.full(4, 0.01)) == (Recovery.RECOVERED, 2)
