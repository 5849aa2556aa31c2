"""Fitting a law to curves: Huber on log-loss residuals, many starts, bounds, fixed parameters.

All starts come from a seed: the same curves give the same fit. Where curves leave a parameter open, a prior of the law
decides (pretraining.py says which), so that an open direction does not run away and spoil what is predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic

import numpy as np

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.scaling_law.curvature import curvature_at
from megatron_cpt.scaling_law.method import Method
from megatron_cpt.scaling_law.parameters import Law, Observed
from megatron_cpt.scaling_law.points import Curve
from megatron_cpt.scaling_law.problem import Problem

STARTS = 128
"""Points of the search space that are looked at."""
REFINED = 6
"""Of these, the best are refined."""
WEAK = 0.25
"""A relative standard error from which a parameter counts as weakly identified."""
LARGEST_EXPONENT = 700.0
"""Of e, in an interval on a logarithmic scale."""
NORMAL_95 = 1.96
"""Standard errors either way that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Fit(Generic[Observed]):
    """A fitted law."""

    law: Law[Observed]
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
    """float64 [draws, parameters]: what other noise would have given (intervals.bootstrap); empty without."""
    noise: float = 0.0
    """Root mean square of the log residuals, as the bootstrap found it."""
    profiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % of a parameter from refits with it held (profile.profiled), where that was asked for."""
    extremes: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    """float64 [ends, parameters]: the fits at the ends of these profiles."""

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
            if parameter.logarithmic:
                spread = NORMAL_95 * max(float(np.std(np.log(draws))), self.standard_errors[name] / value)
                low, high = (value * np.exp(-spread), value * np.exp(min(spread, LARGEST_EXPONENT)))
            else:
                spread = NORMAL_95 * max(float(np.std(draws)), self.standard_errors[name])
                low, high = value - spread, value + spread
            intervals[name] = (max(float(low), parameter.low), min(float(high), parameter.high))
        return intervals | self.profiles

    @cached_property
    def weak(self) -> tuple[str, ...]:
        """Parameters that the curves hardly determine: their value means little, even where predictions are good."""
        errors = {name: (high - low) / (2 * NORMAL_95) for name, (low, high) in self.intervals.items()}
        open_ = {name for name, error in self.standard_errors.items() if not np.isfinite(error)} - set(self.profiles)
        return tuple(
            name
            for name, error in (self.standard_errors | errors).items()
            if name in self.at_bound or name in open_ or not error < WEAK * abs(self.parameters[name])
        )

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
        fixed: parameters held at a value, beside those that the law holds for these curves.
        freed: parameters to fit that the law would hold.
        seed: of the starts.
        starts: places to start from.
        method: None for the defaults.

    Raises BadInput for fewer points than parameters, and for a parameter that the law does not have.
    """
    check_names(law, [*(fixed or {}), *freed])
    held = {name: value for name, value in law.held(curves).items() if name not in freed} | dict(fixed or {})
    method = method or Method()
    problem = Problem(law, curves, held, method)
    generator = np.random.default_rng(seed)
    candidates = [problem.start(generator) for _ in range(max(1, starts))]
    candidates.sort(key=problem.objective)
    best = min((problem.refine(start) for start in candidates[:REFINED]), key=problem.objective)
    errors = curvature_at(problem, best).errors
    names = [parameter.name for parameter in problem.free_parameters]
    units = [np.exp(inner) if p.logarithmic else 1.0 for p, inner in zip(problem.free_parameters, best, strict=True)]
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


def check_names(law: Law, names: Sequence[str]) -> None:
    """Raises BadInput naming every word that is no parameter of the law."""
    known = [parameter.name for parameter in law.parameters]
    remedy = f"It has {', '.join(known)}."
    refuse([Fault(name, f"is not a parameter of the {law.name} law.", remedy) for name in names if name not in known])


def huber_objective(law: Law, parameters: Mapping[str, float], curves: Sequence[Curve], delta: float) -> float:
    """Sum of the Huber losses of given parameters over all points, exactly."""
    values = np.array([parameters[parameter.name] for parameter in law.parameters])
    residuals = [np.log(np.real(law.exact(curve)(values))) - np.log(curve.losses) for curve in curves]
    return float(np.sum(Method(huber_delta=delta).huber(np.concatenate(residuals))))
