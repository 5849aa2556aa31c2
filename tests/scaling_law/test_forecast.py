"""Forecasts hold the truth, say when it is too early, and take a law of other runs where it is given."""

from dataclasses import replace

import numpy as np
import pytest

from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.curves import Curve, read_csv
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.forecast import forecast
from megatron_cpt.scaling_law.laws import ANNEALING
from tests.scaling_law.test_fit import ANNEALED, PRINTED, planted
from tests.texts import SHARED

PUBLIC = SHARED / "loss_curves_mpl"


def until(curve: Curve, share: float) -> Curve:
    kept = curve.steps <= share * len(curve.rates)
    return replace(curve, steps=curve.steps[kept], losses=curve.losses[kept])


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_the_end_of_a_run_lies_in_the_band(kind: str):
    curve = planted(kind, 6000, 0.9, 0.003, 1, ANNEALED)
    found = forecast(CONTINUAL, until(curve, 0.6))
    assert found.exists and found.steps[0] == 3600 and found.steps[-1] == 6000
    assert found.low[-1] <= curve.losses[-1] <= found.high[-1]
    assert found.high[-1] - found.low[-1] > found.high[0] - found.low[0]
    assert any("3600 of 6000" in note for note in found.notes)


def test_a_decay_that_is_still_to_come_is_said_to_be_a_guess_and_widens_the_band():
    curve = planted("wsd", 6000, 0.9, 0.003, 1, ANNEALED)
    found = forecast(CONTINUAL, until(curve, 0.7))
    assert any("still to come" in note for note in found.notes)
    assert found.low[-1] <= curve.losses[-1] <= found.high[-1]


def test_too_little_is_no_forecast():
    curve = planted("cosine", 6000, 0.9, 0.003, 1, ANNEALED)
    for share in (0.05, 0.09):
        found = forecast(CONTINUAL, until(curve, share))
        assert not found.exists and "too early" in found.notes[0]


def test_with_a_law_of_other_runs_only_the_level_is_new():
    prior = Fit(CONTINUAL, PRINTED, 0.0, 0)
    curve = planted("wsd", 6000, 0.9, 0.003, 1, ANNEALED)
    shifted = replace(curve, losses=curve.losses + 0.1)
    found = forecast(CONTINUAL, until(shifted, 0.5), prior)
    assert found.middle[-1] == pytest.approx(shifted.losses[-1], abs=0.006)
    assert found.high[-1] - found.low[-1] < 0.03


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public loss curves of arXiv:2503.12811 are not here")
def test_half_of_a_real_run_tells_its_end_within_the_band():
    for name in ("constant_24000", "cosine_24000", "wsdcon_9"):
        curve = read_csv(PUBLIC / "csv_100" / f"{name}.csv", 2160)
        found = forecast(ANNEALING, until(curve, 0.5))
        assert found.exists and found.low[-1] <= np.mean(curve.losses[-3:]) <= found.high[-1], name
