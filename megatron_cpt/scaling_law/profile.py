"""Profile intervals: how far a parameter can go before the others can no longer make up for it.

The way out where the curvature at the optimum says nothing: a valley, a bound, a parameter that is open to one side.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.points import Curve
from megatron_cpt.scaling_law.problem import Problem

CHI_SQUARED_95 = 3.84
"""95 % of chi squared with one degree of freedom."""
EVALUATIONS = 40
"""Of the law in one refit."""
HALVINGS = 5
"""Of the stretch that holds the end of an interval: it is known to 3 % of that stretch."""
FIRST_STEP = 1 / 16
"""Of a parameter's reach, of a linear one's size; doubled until the objective has risen enough."""
LEAST_SIZE = 0.01
"""Taken for the size of a linear parameter that is smaller."""


def profiled(fit: Fit, curves: Sequence[Curve], names: Sequence[str]) -> Fit:
    """The fit of these curves with profile intervals of some of its parameters, and the fits at their ends."""
    problem = Problem(fit.law, curves, fit.held, fit.method)
    optimum = problem.vector(fit.vector)
    threshold = problem.objective(optimum) + 0.5 * CHI_SQUARED_95 * _unit(problem, optimum, fit.method.sampled(curves))
    intervals, ends = {}, []
    for position, parameter in enumerate(problem.free_parameters):
        if parameter.name in names:
            pair = [_end(problem, optimum, position, sign, threshold) for sign in (-1.0, 1.0)]
            values = [problem.values(vector) for vector in pair]
            low, high = (float(of_end[problem.free[position]]) for of_end in values)
            intervals[parameter.name] = (low, high)
            ends += values
    return replace(fit, profiles=intervals, extremes=np.array(ends).reshape(-1, len(fit.law.parameters)))


def _unit(problem: Problem, optimum: np.ndarray, curves: Sequence[Curve]) -> float:
    """By how much the objective rises at half a unit of chi squared: E[psi^2] / E[psi'], times what alike neighbours
    make of it."""
    residuals = problem.residuals(optimum)
    delta = problem.method.huber_delta
    slopes = np.clip(residuals, -delta, delta)
    inside = max(float(np.mean(np.abs(residuals) <= delta)), 1 / len(residuals))
    parts = np.split(slopes, np.cumsum([len(curve.steps) for curve in curves])[:-1])
    return float(np.mean(slopes**2)) / inside * likeness(parts)


def likeness(parts: Sequence[np.ndarray]) -> float:
    """1 + 2 (sum of the autocorrelations up to the first that is not above 0): points that count as one, at least 1.

    Args:
        parts: float64 [points], residuals of each curve in order.
    """
    total = sum(float(part @ part) for part in parts)
    count, lag = 1.0, 1
    longest = max(len(part) for part in parts)
    while total > 0 and lag < longest:
        correlation = sum(float(part[lag:] @ part[:-lag]) for part in parts) / total
        if correlation <= 0:
            break
        count += 2 * correlation
        lag += 1
    return count


def _end(problem: Problem, optimum: np.ndarray, position: int, sign: float, threshold: float) -> np.ndarray:
    """The refit that is furthest to one side while the objective stays below the threshold; at the bound at most."""
    low, high = problem.bounds(position)
    limit = high if sign > 0 else low
    reach = float(problem.reach[position])
    near, step = optimum, FIRST_STEP * (reach if np.isfinite(reach) else max(abs(optimum[position]), LEAST_SIZE))
    far = None
    while far is None:
        place = near[position] + sign * step
        stopped = sign * (place - limit) >= 0
        tried = _held_at(problem, near, position, limit if stopped else place)
        if problem.objective(tried) > threshold:
            far = tried
        elif stopped:
            return tried
        else:
            near, step = tried, 2 * step
    for _ in range(HALVINGS):
        tried = _held_at(problem, near, position, (near[position] + far[position]) / 2)
        near, far = (tried, far) if problem.objective(tried) <= threshold else (near, tried)
    return near


def _held_at(problem: Problem, near: np.ndarray, position: int, place: float) -> np.ndarray:
    start = near.copy()
    start[position] = place
    return problem.refine(start, EVALUATIONS, fixed=position)
