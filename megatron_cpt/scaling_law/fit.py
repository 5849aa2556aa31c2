"""Fitting a law to curves: many starts, bounds, fixed parameters; its errors on curves not seen.

Cross-validation asks the fitted curves alone how a law should be fitted: each is left out in turn and predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.laws import DECAY, Law, Observed
from megatron_cpt.scaling_law.problem import Method, Problem, curvature_at, too_few_points

DELTAS = (3e-4, 1e-3, 3e-3, 1e-2)
PRIOR_POINTS = (0, 100, 6400)
_VALIDATION_STARTS = 48
"""Of each fit."""


def candidates(law: Law) -> list[Method]:
    """What `law fit --cross-validate` chooses from: every delta, and every weight where the law has priors."""
    guided = any(parameter.prior is not None for parameter in law.parameters)
    return [Method(delta, weight) for delta in DELTAS for weight in (PRIOR_POINTS if guided else (0,))]


def left_out_errors(
    law: Law,
    curves: Sequence[Curve],
    method: Method,
    freed: Sequence[str] = (),
    starts: int = _VALIDATION_STARTS,
    fixed: Mapping[str, float] | None = None,
) -> list[float]:
    """Mean absolute error on each curve, nats, of the law fitted to the others.

    Raises BadInput for fewer than three curves: of two, one would be all there is to fit.
    """
    if len(curves) < 3:
        rule = "are too few to leave one out."
        raise BadInput(Fault(f"{len(curves)} curves", rule, "Give three or more, of different schedules."))
    errors = []
    for number, left in enumerate(curves):
        others = [curve for other, curve in enumerate(curves) if other != number]
        errors.append(errors_on(fit_law(law, others, fixed, freed, starts=starts, method=method), left).mae)
    return errors


def forward_errors(law: Law, curves: Sequence[Curve], method: Method, starts: int = _VALIDATION_STARTS) -> list[float]:
    """Mean absolute error on the later half of each curve, nats, of the law fitted to the first halves of all."""
    early = [curve.until(int(curve.steps[-1]) // 2) for curve in curves]
    fit = fit_law(law, early, starts=starts, method=method)
    return [errors_on(fit, curve.after(int(curve.steps[-1]) // 2 + 1)).mae for curve in curves]


def best_method(
    law: Law,
    curves: Sequence[Curve],
    methods: Sequence[Method],
    freed: Sequence[str] = (),
    fixed: Mapping[str, float] | None = None,
) -> tuple[Method, dict[Method, float]]:
    """The method with the least mean error on curves left out, and this error of every candidate, nats."""
    errors = {method: float(np.mean(left_out_errors(law, curves, method, freed, fixed=fixed))) for method in methods}
    return min(methods, key=lambda method: errors[method]), errors


STARTS = 128
"""Points of the search space that are looked at."""
_REFINED = 6
"""Of these, the best are refined."""
_PARTS_OF_DECAY = 5
"""Equal parts of the range of a decay, on the scale of its search, in each of which the best start is refined as well:
fast and slow responses to the learning rate are optima of their own."""
_WEAK = 0.25
"""A standard error, as a share of `Parameter.size`, from which a parameter counts as weakly identified."""
NOMINAL = 0.95
"""What a band is meant to hold."""
NORMAL_95 = 1.96
"""Standard errors either way that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Fit(Generic[Observed]):
    """A fitted law."""

    law: Law[Observed]
    """Which one."""
    parameters: dict[str, float]
    """Every parameter, the fixed ones too."""
    objective: float
    """Sum of Huber losses over all points, priors apart."""
    points: int
    """Points fitted."""
    method: Method = field(default_factory=Method)
    """How."""
    standard_errors: dict[str, float] = field(default_factory=dict)
    """From the curvature at the optimum, residuals taken as independent: too small where they are not. Infinite
    where the curves leave a parameter open or it is at a bound; fixed parameters have none."""
    at_bound: tuple[str, ...] = ()
    """Parameters that ended at a bound."""
    draws: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    """float64 [draws, parameters]: what other noise would have given (uncertainty.bootstrap); empty without."""
    noise: float = 0.0
    """Root mean square of the log residuals, as the bootstrap found it."""
    profiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % of a parameter from refits with it held (uncertainty.profiled), where that was asked for."""
    extremes: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    """float64 [ends, parameters]: the fits at the ends of these profiles."""
    widening: float = 0.0
    """Log loss by which bands are moved out either way, to hold the curves left out (uncertainty.calibrated)."""
    times_left_out: int = 0
    """Refits behind `widening`, each without one schedule or curve; 0: bands say nothing of the error of the law."""
    left_out: dict[str, float] = field(default_factory=dict)
    """Predicted minus measured loss at the end of each curve when it was left out, nats."""

    @property
    def has_bands(self) -> bool:
        """Whether anything is known of the error of its predictions."""
        return len(self.draws) > 0 or self.times_left_out > 0

    @property
    def coverage(self) -> float:
        """Share of new schedules whose band holds the curve, if they are like those that were left out: n / (n + 1)."""
        return min(NOMINAL, self.times_left_out / (self.times_left_out + 1))

    @property
    def held(self) -> dict[str, float]:
        """The parameters that were not fitted."""
        return {name: value for name, value in self.parameters.items() if name not in self.standard_errors}

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % of each fitted parameter, on the scale of the search and within its bounds; empty without draws.

        From the spread of its draws or its standard error, whichever is larger: a refit that stops early in a long
        valley gives draws that lie too close. All that is searched where the curves leave a parameter open.
        """
        intervals: dict[str, tuple[float, float]] = {}
        if not len(self.draws):
            return self.profiles
        for parameter, draws in zip(self.law.parameters, self.draws.T, strict=True):
            name, value = parameter.name, self.parameters[parameter.name]
            if name not in self.standard_errors:
                continue
            place = parameter.inner(value)
            error = max(
                float(np.std([parameter.inner(draw) for draw in draws])),
                self.standard_errors[name] / parameter.slope(place),
            )
            least, most = parameter.ends
            ends = max(place - NORMAL_95 * error, least), min(place + NORMAL_95 * error, most)
            low, high = sorted(parameter.value(end) for end in ends)
            intervals[name] = (float(low), float(high))
        return intervals | self.profiles

    @cached_property
    def weak(self) -> tuple[str, ...]:
        """Parameters that the curves hardly determine: their value means little, even where predictions are good."""
        return tuple(name for name in self.standard_errors if name in self.at_bound or self._is_weak(name))

    def _is_weak(self, name: str) -> bool:
        """Whether a fitted parameter's error is large on the scale on which it acts."""
        parameter = next(one for one in self.law.parameters if one.name == name)
        value, error = self.parameters[name], self.standard_errors[name]
        if not np.isfinite(error) and name not in self.profiles:
            return True
        on_scale = error / parameter.slope(parameter.inner(value))
        if name in self.intervals:
            low, high = sorted(parameter.inner(end) for end in self.intervals[name])
            on_scale = (high - low) / (2 * NORMAL_95)
        return not on_scale < _WEAK * parameter.size(value)

    def predict(self, observed: Observed) -> np.ndarray:
        """The loss at the points of a curve or the rows of a table: float64. Their own losses are not looked at."""
        return np.real(self.law.exact(observed)(self.vector))

    @property
    def vector(self) -> np.ndarray:
        """The parameters in the order of the law."""
        return np.array([self.parameters[parameter.name] for parameter in self.law.parameters])


def fit_law(
    law: Law[Observed],
    curves: Sequence[Observed],
    fixed: Mapping[str, float] | None = None,
    freed: Sequence[str] = (),
    seed: int = 0,
    starts: int = STARTS,
    method: Method | None = None,
) -> Fit[Observed]:
    """The parameters with the least Huber loss of log residuals over all points of all curves.

    Args:
        law: one of `LAWS`, or a law of final losses (tables.py).
        curves: what it is fitted to.
        fixed: parameters held at a value, beside those that the law holds for these curves.
        freed: parameters to fit that the law would hold.
        seed: of the starts.
        starts: places to start from.
        method: None for the defaults.
    Raises:
        BadInput: fewer points than parameters, or a parameter that the law does not have.
    """
    refuse(_unknown_names(law, [*(fixed or {}), *freed]))
    held = _held(law, curves, fixed or {}, freed)
    method = method or Method()
    problem = Problem(law, curves, held, method)
    generator = np.random.default_rng(seed)
    candidates = [problem.start(generator) for _ in range(max(1, starts))]
    candidates.sort(key=problem.objective)
    best = min((problem.refine(start) for start in _to_refine(problem, candidates)), key=problem.objective)
    errors = curvature_at(problem, best).errors
    names = [parameter.name for parameter in problem.free_parameters]
    units = [parameter.slope(inner) for parameter, inner in zip(problem.free_parameters, best, strict=True)]
    values = problem.values(best)
    return Fit(
        law=law,
        parameters={parameter.name: float(value) for parameter, value in zip(law.parameters, values, strict=True)},
        objective=float(np.sum(method.huber(problem.residuals(best)))),
        points=len(problem.log_losses),
        method=method,
        standard_errors=dict(zip(names, (errors * units).tolist(), strict=True)),
        at_bound=tuple(name for name, bound in zip(names, problem.at_bound(best), strict=True) if bound),
    )


def _to_refine(problem: Problem, candidates: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of candidates, the best first: the best few, and the best of each part of the range of a decay."""
    chosen = list(range(min(_REFINED, len(candidates))))
    for position, parameter in enumerate(problem.free_parameters):
        if parameter.name == DECAY.name:
            low, high = parameter.start_ends
            parts = [int(_PARTS_OF_DECAY * (start[position] - low) / (high - low)) for start in candidates]
            chosen += [parts.index(part) for part in set(parts)]
    return [candidates[number] for number in dict.fromkeys(chosen)]


def parameter_faults(
    law: Law[Observed], curves: Sequence[Observed], fixed: Mapping[str, float], freed: Sequence[str]
) -> list[Fault]:
    """Parameters that the law does not have, that are fixed and freed, or fixed at a value outside of their bounds.

    What the law itself holds for these curves is within.
    """
    faults = _unknown_names(law, [*fixed, *freed])
    faults += [Fault(name, "is fixed and freed.", "Do one of both.") for name in fixed if name in freed]
    held = law.held(curves)
    for parameter in law.parameters:
        value = fixed.get(parameter.name, parameter.low)
        if not (parameter.low <= value <= parameter.high or held.get(parameter.name) == value):
            rule = f"is outside of its bounds, {parameter.low:g} and {parameter.high:g}."
            faults.append(Fault(f"{parameter.name}={value:g}", rule, "Fix it at a value between them."))
    return faults


def point_faults(
    law: Law[Observed], curves: Sequence[Observed], fixed: Mapping[str, float], freed: Sequence[str], of: str = ""
) -> list[Fault]:
    """What is wrong where these curves have fewer points than the law has parameters to fit; `of` says whose."""
    held = _held(law, curves, fixed, freed)
    return too_few_points(law, curves, [one.name for one in law.parameters if one.name not in held], of)


def _held(
    law: Law[Observed], curves: Sequence[Observed], fixed: Mapping[str, float], freed: Sequence[str]
) -> dict[str, float]:
    """The parameters that are not fitted, and their values."""
    return {name: value for name, value in law.held(curves).items() if name not in freed} | dict(fixed)


def _unknown_names(law: Law, names: Sequence[str]) -> list[Fault]:
    """Words that are no parameters of the law."""
    known = [parameter.name for parameter in law.parameters]
    rule, remedy = f"is not a parameter of the {law.name} law.", f"It has {', '.join(known)}."
    return [Fault(name, rule, remedy) for name in names if name not in known]


def huber_objective(law: Law, parameters: Mapping[str, float], curves: Sequence[Curve], delta: float) -> float:
    """Sum of the Huber losses of given parameters over all points, exactly."""
    values = np.array([parameters[parameter.name] for parameter in law.parameters])
    residuals = [np.log(np.real(law.exact(curve)(values))) - np.log(curve.losses) for curve in curves]
    return float(np.sum(Method(huber_delta=delta).huber(np.concatenate(residuals))))


@dataclass(frozen=True)
class Errors:
    """How far a law is from a curve that it has not seen, as arXiv:2503.12811 measures it."""

    r2: float
    """1 - squared errors over squared deviations from the mean."""
    mae: float
    """Mean absolute error, nats."""
    rmse: float
    """Root of the mean squared error, nats."""
    prede: float
    """Mean of error over loss."""
    worste: float
    """Largest error over loss."""


def errors_on(fit: Fit[Observed], curve: Observed) -> Errors:
    """Errors of the predicted loss of one curve or table."""
    difference = fit.predict(curve) - curve.losses
    spread = float(np.sum((curve.losses - curve.losses.mean()) ** 2))
    relative = np.abs(difference) / curve.losses
    return Errors(
        r2=1 - float(np.sum(difference**2)) / spread if spread > 0 else float("nan"),
        mae=float(np.abs(difference).mean()),
        rmse=float(np.sqrt(np.mean(difference**2))),
        prede=float(relative.mean()),
        worste=float(relative.max()),
    )


def end_error(fit: Fit[Observed], curve: Observed) -> float:
    """Predicted minus measured loss at the last point, nats."""
    return float(fit.predict(curve)[-1] - curve.losses[-1])


def mean_errors(errors: Sequence[Errors]) -> Errors:
    """The mean of each figure over curves."""
    return Errors(*np.mean([[e.r2, e.mae, e.rmse, e.prede, e.worste] for e in errors], axis=0).tolist())
