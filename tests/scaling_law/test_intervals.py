"""What curves leave open shows: singular curvature, bands along a valley, profile intervals, ways of fitting."""

from dataclasses import replace

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import Fit, best_method, fit_law, left_out_errors
from megatron_cpt.scaling_law.laws import ANNEALING, MULTI_POWER
from megatron_cpt.scaling_law.problem import Method
from megatron_cpt.scaling_law.uncertainty import band, bootstrap, calibrated, likeness, profiled
from tests.scaling_law.test_fit import ANNEALED, PRINTED, history, planted, schedule

WITH_INJECTION = PRINTED | {"bend": 0.0, "injection_gain": 200.0, "injection_exponent": 0.4}


def injected(kind: str, share: float, seed: int, noise: float = 0.002) -> Curve:
    points = np.arange(150, 3001, 150)
    curve = Curve(kind, schedule(kind, 3000), points, np.ones(len(points)), *history(ANNEALED), share)
    losses = Fit(CONTINUAL, WITH_INJECTION, 0.0, 0).predict(curve)
    noisy = losses + np.random.default_rng(seed).normal(0, noise, len(points))
    return Curve(kind, curve.rates, points, noisy, *history(ANNEALED), share)


def annealed(kind: str, seed: int, steps: int = 4000) -> Curve:
    """A curve of the annealing law: L0 3, A 0.5, alpha 0.5, C 0.4."""
    points = np.arange(300, steps + 1, 50)
    curve = Curve(kind, schedule(kind, steps), points, np.ones(len(points)))
    names = [parameter.name for parameter in ANNEALING.parameters]
    losses = Fit(ANNEALING, dict(zip(names, (3.0, 0.5, 0.5, 0.4, 0.999, 0.0), strict=True)), 0.0, 0).predict(curve)
    return Curve(kind, curve.rates, points, losses + np.random.default_rng(seed).normal(0, 0.002, len(points)))


def test_what_no_fitted_rate_shows_is_open_in_the_band_of_a_schedule_that_anneals():
    """Constant rates say nothing of C: a band of what annealing may bring, by the field, and none where it brings
    nothing. Without it the band about the loss of a WSD schedule was 15 times too narrow."""
    curves = [annealed("constant", seed) for seed in range(2)]
    fit = fit_law(ANNEALING, curves, starts=8)
    drawn = bootstrap(fit, curves, draws=20)
    wsd, constant = annealed("wsd", 0), annealed("constant", 9)
    truth = Fit(ANNEALING, fit.parameters | {"floor": 3.0, "amplitude": 0.5, "exponent": 0.5, "gain": 0.4}, 0.0, 0)
    for curve, width in ((wsd, (0.03, 0.5)), (constant, (0.0, 0.03))):
        found = band(drawn, curve)
        assert found.low[-1] <= truth.predict(curve)[-1] <= found.high[-1]
        assert width[0] < found.high[-1] - found.low[-1] < width[1]
    assert "gain" in drawn.weak and drawn.intervals["gain"] == (0.0, 1e4)
    assert profiled(drawn, curves, drawn.weak).extremes.size == 0
    # Runs too short for a decay of 0.999 leave it open too: a gain is that of the decay of its draw.
    short = [annealed("constant", seed, 1500) for seed in range(2)]
    fit = fit_law(ANNEALING, short, starts=8)
    assert {"gain", "decay"} <= set(fit.weak)
    found = band(bootstrap(fit, short, draws=20), annealed("wsd", 0, 1500))
    assert found.high[-1] - found.low[-1] < 0.5


def test_a_singular_curvature_leaves_the_other_standard_errors():
    """The gain of the base's annealing cannot be told from the floor where all runs share one base."""
    curves = [planted(kind, 4000, 1.0, 0.002, seed, ANNEALED) for seed, kind in enumerate(("cosine", "constant"))]
    fixed = {"exponent": 0.497, "shift_speed": 28.0, "shift_exponent": 0.189, "base_forward_area": 6.0}
    told = fit_law(CONTINUAL, curves, fixed, starts=16)
    singular = fit_law(CONTINUAL, curves, fixed, freed=["base_gain"], starts=16)
    assert {"floor", "base_gain"} <= {n for n, error in singular.standard_errors.items() if not np.isfinite(error)}
    for name in ("gain", "amplitude", "shift_size"):
        assert singular.standard_errors[name] == pytest.approx(told.standard_errors[name], rel=0.05)
    drawn = bootstrap(singular, curves, draws=6)
    assert set(drawn.intervals) == set(singular.standard_errors)
    assert "base_gain" in drawn.weak and "gain" not in drawn.weak


@pytest.mark.ci
def test_bands_hold_the_truth_along_a_valley_that_few_runs_leave_open():
    curves = [injected(kind, share, seed) for seed, (kind, share) in enumerate(
        [("constant", 1.0), ("cosine", 1.0), ("constant", 0.9), ("cosine", 0.9)])]  # fmt: skip
    fit = fit_law(CONTINUAL, curves, freed=["injection_gain", "injection_exponent"], starts=24)
    drawn = bootstrap(fit, curves, draws=20)
    for share in (0.99, 0.97, 0.7, 0.5):
        unseen = injected("cosine", share, 9, noise=0.0)
        found = band(drawn, unseen)
        assert found.low[-1] <= unseen.losses[-1] <= found.high[-1], share
    inside, outside = band(drawn, curves[3]), band(drawn, injected("cosine", 0.5, 9))
    assert outside.high[-1] - outside.low[-1] > 2 * (inside.high[-1] - inside.low[-1])


def test_bands_hold_the_schedules_that_were_left_out():
    """A law that is wrong for one of three schedules: its own band does not hold the curve, the calibrated one does."""
    true = [annealed(kind, seed) for seed, kind in enumerate(("cosine", "constant", "wsd"))]
    curves = [*true[:2], replace(true[2], losses=true[2].losses + 0.05)]
    plain = bootstrap(fit_law(ANNEALING, curves, starts=16), curves, draws=8)
    wide = calibrated(plain, curves)
    assert wide.times_left_out == 3 and wide.coverage == 0.75 and set(wide.left_out) == {"cosine", "constant", "wsd"}
    refit = fit_law(ANNEALING, curves[:2], plain.held, starts=48)
    # Left out, it is predicted 0.05 nats too low; about that prediction the wider band holds 95 % of its points.
    assert wide.left_out["wsd"] == pytest.approx(-0.05, abs=0.02)
    outside = {}
    for fit in (plain, wide):
        around, predicted = band(fit, curves[2]), refit.predict(curves[2])
        low, high = predicted * around.low / around.middle, predicted * around.high / around.middle
        outside[fit.times_left_out] = float(np.mean((curves[2].losses < low) | (curves[2].losses > high)))
    assert outside[0] > 0.5 and outside[3] <= 0.05
    # As many points as parameters: none can be left out, so there is nothing to calibrate with, and no error.
    short = [
        replace(curve, steps=curve.steps[-count:], losses=curve.losses[-count:])
        for curve, count in zip(true, (2, 1, 1), strict=True)
    ]
    assert calibrated(fit_law(ANNEALING, short, starts=4), short).times_left_out == 0


def test_a_profile_agrees_with_the_curvature_where_that_is_right_and_ends_at_a_bound_where_it_must():
    curves = [annealed(kind, seed) for seed, kind in enumerate(("cosine", "constant"))]
    fit = fit_law(ANNEALING, curves, starts=16)
    low, high = profiled(fit, curves, ["gain"]).profiles["gain"]
    assert low <= fit.parameters["gain"] <= high
    assert abs(fit.parameters["gain"] - 0.4) < 3 * fit.standard_errors["gain"]
    assert (high - low) / (2 * 1.96) == pytest.approx(fit.standard_errors["gain"], rel=0.5)
    level = fit_law(ANNEALING, curves[1:], {"exponent": 0.5}, starts=8)
    drawn = profiled(level, curves[1:], ["gain"])
    # The constant schedule after its warm-up says nothing of the gain: from one bound to the other.
    assert drawn.profiles["gain"] == pytest.approx((0.0, 1e4), rel=1e-3, abs=1e-3) and len(drawn.extremes) == 0


def test_alike_neighbours_count_as_one():
    independent = np.random.default_rng(0).normal(size=400)
    assert likeness([independent]) < 1.5
    assert 3 < likeness([np.repeat(independent[:100], 4)]) < 7


def test_points_are_thinned_evenly_in_the_logarithm_and_priors_can_be_left_out():
    curve = planted("cosine", 10_000, 1.0, 0.0, 1, ANNEALED)
    (thinned,) = Method(points=10).sampled([curve])
    assert thinned.steps[0] == 100 and thinned.steps[-1] == 10_000 and len(thinned.steps) == 10
    assert len(thinned.rates) == 10_000
    short, method = planted("cosine", 3000, 1.0, 0.002, 1, ANNEALED), Method(points=20, prior_points=0)
    free = fit_law(MULTI_POWER, [short], starts=8, method=method)
    assert free.points == len(method.sampled([short])[0].steps) < len(short.steps)
    guided = fit_law(MULTI_POWER, [short], starts=8, method=Method(prior_points=6400))
    assert guided.parameters["drop_exponent"] == pytest.approx(0.6, rel=0.1)
    assert abs(np.log(free.parameters["drop_exponent"] / 0.6)) > abs(np.log(guided.parameters["drop_exponent"] / 0.6))


def test_the_method_that_predicts_curves_left_out_best_is_chosen():
    curves = [planted(kind, 3000, 1.0, 0.002, seed, ANNEALED) for seed, kind in enumerate(("cosine", "wsd", "linear"))]
    candidates = [Method(), Method(points=3)]
    chosen, errors = best_method(ANNEALING, curves, candidates)
    assert errors[chosen] == min(errors.values()) and chosen == Method()
    with pytest.raises(BadInput, match="too few"):
        left_out_errors(ANNEALING, curves[:2], Method())
