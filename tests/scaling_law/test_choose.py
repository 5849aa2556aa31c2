"""What is said of recipes, from constants that are known."""

from dataclasses import replace

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.scaling_law.choose import (
    Base,
    CriticalPoint,
    Laws,
    Recipe,
    Start,
    critical_point,
    laws_of,
    ranked,
    recipes,
    turning_length,
)
from megatron_cpt.scaling_law.continual import CONTINUAL, ON_DEMAND, SIZE_TERMS, fit_combination
from megatron_cpt.scaling_law.fit import Fit, fit_law
from megatron_cpt.scaling_law.fitted_range import Fitted, range_of
from megatron_cpt.scaling_law.laws import ANNEALING
from megatron_cpt.scaling_law.uncertainty import bootstrap

HELD = {"base_gain": 0.0, "base_forward_area": 2.0, "decay": 0.999} | ON_DEMAND | SIZE_TERMS
GENERAL = HELD | {
    "floor": 3.0, "amplitude": 0.6, "exponent": 0.5, "gain": 0.0,
    "shift_size": 0.2, "shift_speed": 20.0, "shift_exponent": 1.0, "bend": -25.0,
}  # fmt: skip
DOMAIN = GENERAL | {"floor": 2.8, "shift_size": -0.5, "bend": 3.0}
BASE = Base(forward_area=2.0, annealing_area=0.0, peak_rate=1e-3, final_rate=1e-4)


def laws() -> Laws:
    start = {name: values["floor"] + 0.6 * 2**-0.5 for name, values in (("general", GENERAL), ("domain", DOMAIN))}
    fits = {"general": Fit(CONTINUAL, GENERAL, 0.0, 0), "domain": Fit(CONTINUAL, DOMAIN, 0.0, 0)}
    return Laws(fits, {"a": Start(BASE, start)}, Fitted((0.0, 0.5), (1e-4, 1e-3), 2000, 2.0))


def test_rates_of_recipes():
    rates = Recipe("cosine", 1e-3, 100, 0.0).rates()
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-4)
    wsd = Recipe("wsd", 1.0, 10, 0.0, final=0.0, warmup=0.2, decay=0.2).rates()
    assert wsd.tolist() == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0])


def test_a_constant_run_by_hand():
    # S1 of 1: 3 + 0.6 / sqrt(3) + 0.2 (1 - 1 / 21); the rise from the base's last rate has no effect, gain being 0.
    curve = Recipe("constant", 1e-3, 1000, 0.0, warmup=0.0).curve(BASE)
    assert laws().fits["general"].predict(curve)[-1] == pytest.approx(3 + 0.6 / 3**0.5 + 0.2 * 20 / 21, abs=1e-9)


def test_the_turning_length_is_where_the_law_crosses_its_start():
    like = Recipe("constant", 1e-3, 1000, 0.0, warmup=0.0)
    found = turning_length(laws(), {"general": 1.0}, like, 20_000)
    assert found is not None

    def rise(steps: int) -> float:
        area = steps * 1e-3
        return 0.6 * (2 + area) ** -0.5 - 0.6 * 2**-0.5 + 0.2 * (1 - 1 / (1 + 20 * area))

    assert rise(found) <= 0 < rise(int(found / 1.1))
    assert turning_length(laws(), {"general": 1.0}, like, 1000) is None
    assert turning_length(laws(), {"domain": 1.0}, like, 1000) == 0


def test_a_bound_decides_and_what_lies_outside_is_said():
    ratios = np.linspace(0, 0.2, 41).tolist()
    outcomes = ranked(laws(), recipes(["constant"], [1e-3], [500], ratios), {"domain": 1.0}, {"general": 0.0})
    best = outcomes[0]
    assert not best.broken and best.sets["general"].rise <= 0
    less = [outcome for outcome in outcomes if outcome.recipe.replay_ratio < best.recipe.replay_ratio]
    assert less and all(outcome.broken == ("general",) for outcome in less)
    assert best.beyond == ()
    assert laws().outcome(Recipe("cosine", 2e-3, 9000, 0.6), {"domain": 1.0}).beyond[0].startswith("replay ratio 0.6")


def test_a_curve_is_told_in_what_it_lies_outside():
    fitted = range_of([replace(Recipe("constant", 1e-3, 400, 0.25).curve(BASE), steps=np.array([100, 400]), kind=None)])
    assert fitted == Fitted((0.25, 0.25), (1e-3, 1e-3), 400, pytest.approx(0.3985), (), 100, 0.0)

    def told(recipe: Recipe) -> tuple[str, ...]:
        return fitted.beyond(recipe.curve(BASE))

    assert told(Recipe("constant", 1e-3, 400, 0.25)) == ()
    assert told(Recipe("cosine", 1e-3, 400, 0.25)) == (
        "a learning rate that falls (fitted none: what annealing brings is not known)",
    )
    assert told(Recipe("constant", 2e-3, 50, 0.0)) == (
        "replay ratio 0 (fitted 0.25 alone: what another does is not known)",
        "peak rate 0.002 (fitted 0.001 to 0.001)",
        "50 steps (fitted from step 100 on)",
    )
    cosine = range_of([Recipe("cosine", 1e-3, 400, 0.25).curve(BASE)])
    steeper = Recipe("cosine", 1e-3, 400, 0.25, final=0.0).curve(BASE)
    assert [words.partition(" of ")[0] for words in cosine.beyond(steeper)] == ["S2"]


def test_nothing_within_its_bound_shows_the_nearest():
    best = ranked(laws(), recipes(["constant"], [1e-3], [50], [0.0, 0.01]), {"domain": 1.0}, {"general": -1.0})[0]
    assert best.broken == ("general",) and best.recipe.replay_ratio == 0.01


def test_critical_point_only_where_it_is_told():
    known = Fit(CONTINUAL, GENERAL, 0.0, 0)
    assert critical_point(known) == CriticalPoint(pytest.approx(3.2), None, None)
    names = [parameter.name for parameter in CONTINUAL.parameters]
    draws = np.tile(known.vector, (101, 1))
    draws[:, names.index("shift_size")] += np.linspace(-0.1, 0.1, 101)
    drawn = critical_point(replace(known, draws=draws))
    assert drawn == CriticalPoint(pytest.approx(3.2), pytest.approx(3.105), pytest.approx(3.295))
    assert critical_point(Fit(CONTINUAL, GENERAL, 0.0, 0, standard_errors={"shift_size": 9.0})) is None


def test_loss_potential():
    assert BASE.loss_potential == pytest.approx(0.1)
    assert Base().loss_potential is None


def test_bases_are_compared_and_one_of_several_must_be_named():
    """Before and after the decay of one base: at a general loss that nothing shifts, the undecayed one has more to
    gain from annealing (arXiv:2505.07796 section 5.1, loss potential)."""
    annealed, undecayed = replace(BASE, annealing_area=0.9), replace(BASE, final_rate=1e-3)
    constants = GENERAL | {"gain": 0.2, "base_gain": 0.2, "shift_size": 0.0}
    starts = {"after": Start(annealed, {"general": 3.24}), "before": Start(undecayed, {"general": 3.42})}
    both = Laws(
        {"general": Fit(CONTINUAL, constants, 0.0, 0)}, starts, Fitted((0, 1), (1e-3, 1e-3), 4000, 4.0, ("wsd",))
    )
    candidates = recipes(["wsd"], [1e-3], [4000], [0.0], list(starts))
    by_start = {outcome.recipe.start: outcome for outcome in ranked(both, candidates, {"general": 1.0})}
    ends = {name: float(both.fits["general"].predict(candidates[n].curve(starts[name].base))[-1])
            for n, name in enumerate(starts)}  # fmt: skip
    for name, outcome in by_start.items():
        assert outcome.sets["general"].loss == pytest.approx(ends[name])
        assert outcome.sets["general"].rise == pytest.approx(ends[name] - (starts[name].losses["general"] or 0))
    assert by_start["after"].beyond == () and both.outcome(replace(candidates[0], kind="cosine"), {}).beyond == (
        "schedule cosine (fitted wsd)",
    )
    with pytest.raises(BadInput, match=r"--base: is missing.*after, before"):
        both.outcome(Recipe("wsd", 1e-3, 4000, 0.0), {})


def test_a_third_set_as_a_sum_of_two_is_fitted_predicted_and_bounded():
    curves = {name: [Recipe("cosine", 1e-3, 400, ratio).curve(Base()) for ratio in (0.0, 0.3)] for name in "gdt"}
    losses = {"g": 3.0, "d": 2.0}
    made = {
        name: [replace(curve, losses=losses[name] + number * 0.1 + 0.01 * np.sqrt(curve.steps))
               for number, curve in enumerate(curves[name])]
        for name in "gd"
    }  # fmt: skip
    made["g"] = [replace(curve, losses=curve.losses + 1e-4 * curve.steps) for curve in made["g"]]
    third = [replace(g, losses=0.7 * g.losses + 0.4 * d.losses) for g, d in zip(made["g"], made["d"], strict=True)]
    combined = fit_combination("g", "d", third, made["g"], made["d"])
    assert combined.weights == pytest.approx((0.7, 0.4)) and combined.error < 1e-9
    assert combined.run_error == pytest.approx(0, abs=1e-9)
    fits = {name: fit_law(ANNEALING, made[name], {"decay": 0.99}, starts=8) for name in "gd"}
    without = laws_of(fits, made | {"t": third}, {"t": combined}).outcome(Recipe("cosine", 1e-3, 400, 0.0), {}).sets
    assert all(np.isnan(one.low) and np.isnan(one.high) for one in without.values())  # no draws, no band
    fits = {name: bootstrap(fit, made[name], 2) for name, fit in fits.items()}
    laws = laws_of(fits, made | {"t": third}, {"t": combined})
    told = laws.outcome(Recipe("cosine", 1e-3, 400, 0.0), {"t": 1.0}).sets
    assert told["t"].loss == pytest.approx(0.7 * told["g"].loss + 0.4 * told["d"].loss)
    assert told["t"].low <= told["t"].loss <= told["t"].high
    with pytest.raises(BadInput, match="too few evaluations"):
        fit_combination("g", "d", third[:1], [made["g"][0].until(1)], made["d"][:1])
