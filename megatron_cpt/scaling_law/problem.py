"""A law and curves as an optimisation problem: Huber on log-loss residuals over the free parameters.

`Method` says how a law is fitted; `Curvature` says what the optimum determines of each parameter.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares, lsq_linear

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.laws import Law, Measured, Parameter

_PRIOR_RESIDUAL = 1e-3
"""Of the log loss: how far off a point of a prior is at one width from its centre."""


@dataclass(frozen=True)
class Method:
    """Choices of a fit.

    The defaults are those of 96 candidates with which training curves were predicted best, by others and by their own
    first halves (examples/laws/choose_method.py); no test curve is opened there.
    """

    huber_delta: float = 1e-3
    """On log-loss residuals: beyond so large a part of the loss a point counts linearly. It is also what
    arXiv:2503.12811 has."""
    prior_points: int = 100
    """A prior counts as so many points. 0: no priors."""
    points: int | None = None
    """Of each curve, evenly spaced in the logarithm of the updates; None: all."""

    def huber(self, residuals: np.ndarray) -> np.ndarray:
        """The Huber loss of each residual."""
        size = np.abs(residuals)
        return np.where(
            size <= self.huber_delta, 0.5 * residuals**2, self.huber_delta * (size - 0.5 * self.huber_delta)
        )

    def sampled(self, observed: Sequence[Any]) -> list[Any]:
        """Curves with the points that are fitted, their rates whole; a table as it is."""
        return [self._subsampled(one) if isinstance(one, Curve) else one for one in observed]

    def _subsampled(self, curve: Curve) -> Curve:
        if self.points is None or len(curve.steps) <= self.points:
            return curve
        targets = np.geomspace(curve.steps[0], curve.steps[-1], self.points)
        kept = np.unique(np.abs(curve.steps[:, None] - targets).argmin(axis=0))
        return replace(curve, steps=curve.steps[kept], losses=curve.losses[kept])


def too_few_points(law: Law, observed: Sequence[Measured], names: Sequence[str], of: str = "") -> list[Fault]:
    """What is wrong where there are fewer points, or rows of tables, than parameters to fit; `of` says whose."""
    count = sum(len(one.losses) for one in observed)
    if count >= len(names):
        return []
    rule = f"are fewer than the {len(names)} parameters of the {law.name} law."
    if all(isinstance(one, Curve) for one in observed):
        return [Fault(f"{of}{count} points", rule, "Give more curves, or fix parameters.")]
    return [Fault(f"{of}{count} rows", rule, "Give more: another run, length or mixture is a row.")]


_TINY = 1e-30
"""Imaginary step: the derivative it gives is exact to rounding."""


class Problem:
    """The free parameters of a law as a vector (each on the scale of its search), and its residuals."""

    def __init__(self, law: Law, curves: Sequence[Measured], held: Mapping[str, float], method: Method) -> None:
        names = [parameter.name for parameter in law.parameters]
        curves = method.sampled(curves)
        self.log_losses = np.log(np.concatenate([curve.losses for curve in curves]))
        self.free = [number for number, name in enumerate(names) if name not in held]
        refuse(too_few_points(law, curves, [names[number] for number in self.free]))
        self.method = method
        self.free_parameters = [law.parameters[number] for number in self.free]
        self._parameters = law.parameters
        self._held = np.array([held.get(name, np.nan) for name in names])
        self._model = law.quick(curves)
        chosen = self.free_parameters
        self._low, self._high = np.array([parameter.ends for parameter in chosen]).reshape(-1, 2).T
        prior = [(p, i) for p, i in enumerate(chosen) if i.prior is not None]
        self._guided = [position for position, _ in prior]
        self._centres = np.array([parameter.inner(parameter.prior[0]) for _, parameter in prior if parameter.prior])
        self._widths = np.array([parameter.prior[1] for _, parameter in prior if parameter.prior])
        self.reach = np.array([_reach(parameter) for parameter in chosen])
        self._linear = [position for position, parameter in enumerate(chosen) if parameter.linear]

    def values(self, vector: np.ndarray) -> np.ndarray:
        """All parameters of the law, from the free ones."""
        values = self._held.astype(vector.dtype)
        for position, number in enumerate(self.free):
            inner = vector[position]
            values[number] = self._parameters[number].value(inner)
        return values

    def value(self, vector: np.ndarray, name: str) -> float:
        """One parameter of the law, from the free ones."""
        names = [parameter.name for parameter in self._parameters]
        return float(self.values(vector)[names.index(name)])

    def objective(self, vector: np.ndarray) -> float:
        """Huber losses of all points and of the priors; infinite where the law cannot be computed."""
        total = float(np.sum(self.method.huber(self.guided_residuals(vector))))
        return total if np.isfinite(total) else np.inf

    def residuals(self, vector: np.ndarray) -> np.ndarray:
        """Predicted minus measured log loss: [points]. A prediction below 0 counts as one of a millionth."""
        losses = self._losses(self.values(vector))
        return np.log(np.where(np.real(losses) > 1e-6, losses, 1e-6)) - self.log_losses

    def guided_residuals(self, vector: np.ndarray) -> np.ndarray:
        """The residuals of the points, then those of the priors: [points + priors * prior_points]."""
        pulls = _PRIOR_RESIDUAL * (vector[self._guided] - self._centres) / self._widths
        return np.concatenate([self.residuals(vector), np.repeat(pulls, self.method.prior_points)])

    def jacobian(self, vector: np.ndarray) -> np.ndarray:
        """Derivatives of `guided_residuals` by complex steps: float64 [residuals, free parameters]."""
        columns = []
        for position in range(len(vector)):
            moved = vector.astype(complex)
            moved[position] += 1j * _TINY
            columns.append(np.imag(self.guided_residuals(moved)) / _TINY)
        return np.stack(columns, axis=1)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """A random place for the other parameters, and what is best there for the linear ones."""
        vector = np.zeros(len(self.free))
        for position, number in enumerate(self.free):
            parameter = self._parameters[number]
            if parameter.linear:
                continue
            vector[position] = generator.uniform(*parameter.start_ends)
        return self._with_best_linear(vector)

    def _with_best_linear(self, vector: np.ndarray) -> np.ndarray:
        """The vector with the linear parameters at their least squares of relative errors."""
        vector = vector.copy()
        vector[self._linear] = 0.0
        if not self._linear:
            return vector
        base = self._losses(self.values(vector))
        columns = []
        for position in self._linear:
            vector[position] = 1.0
            columns.append(self._losses(self.values(vector)) - base)
            vector[position] = 0.0
        weights = np.exp(-self.log_losses)
        matrix = np.stack(columns, axis=1) * weights[:, None]
        bounds = (self._low[self._linear], self._high[self._linear])
        vector[self._linear] = lsq_linear(matrix, 1 - base * weights, bounds).x
        return vector

    def vector(self, values: np.ndarray) -> np.ndarray:
        """The free parameters as a vector, from all parameters of the law."""
        return np.array([self._parameters[number].inner(values[number]) for number in self.free])

    def with_log_losses(self, log_losses: np.ndarray) -> "Problem":
        """The same problem with other measurements: float64 [points]."""
        other = copy(self)
        other.log_losses = log_losses
        return other

    def refine(self, start: np.ndarray, evaluations: int = 300, fixed: int | None = None) -> np.ndarray:
        """The local optimum near a start, after so many evaluations at most; `fixed` is a position that stays."""
        moving = np.array([position for position in range(len(start)) if position != fixed])
        margin = 1e-9 * (self._high - self._low)
        inside = np.clip(start, self._low + margin, self._high - margin)

        def whole(part: np.ndarray) -> np.ndarray:
            vector = inside.copy()
            vector[moving] = part
            return vector

        found = least_squares(
            lambda part: self.guided_residuals(whole(part)),
            inside[moving],
            lambda part: self.jacobian(whole(part))[:, moving],
            bounds=(self._low[moving], self._high[moving]),
            loss="huber",
            f_scale=self.method.huber_delta,
            x_scale="jac",
            xtol=1e-10,
            ftol=1e-10,
            gtol=1e-14,
            max_nfev=evaluations,
        )
        return whole(found.x)

    def at_bound(self, vector: np.ndarray) -> np.ndarray:
        """bool [free parameters]: those that ended at a bound."""
        span = self._high - self._low
        bound: np.ndarray = (vector - self._low < 1e-6 * span) | (self._high - vector < 1e-6 * span)
        return bound

    def unseen(self, vector: np.ndarray) -> list[int]:
        """Positions of linear parameters on which no point depends: the gain where no learning rate falls."""
        slopes = self.jacobian(vector)[: len(self.log_losses)]
        return [position for position in self._linear if not slopes[:, position].any()]

    def bounds(self, position: int) -> tuple[float, float]:
        """Of a free parameter, in the units of the search."""
        return float(self._low[position]), float(self._high[position])

    def moved(self, vector: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """A vector some steps on, within the bounds, the linear parameters again what is best there."""
        return self._with_best_linear(np.clip(vector + steps, self._low, self._high))

    def _losses(self, values: np.ndarray) -> np.ndarray:
        return self._model(values)


def _reach(parameter: Parameter) -> float:
    """Half of where starts are drawn from; linear parameters follow the others."""
    low, high = parameter.start_ends
    return np.inf if parameter.linear else (high - low) / 2


_FLAT = 1e-13
"""Of the largest curvature, columns scaled alike: below it a direction is flat to rounding."""
_OPEN = 1e-3
"""Part of the flat directions from which a parameter is open."""


@dataclass(frozen=True)
class Curvature:
    """Of a problem at an optimum, over its free parameters and in the units of the search."""

    errors: np.ndarray
    """float64 [parameters]: standard errors; infinite where a parameter is open or at a bound."""
    directions: np.ndarray
    """float64 [parameters, directions]: those that are independent of each other. A parameter at a bound has no
    part in them."""
    lengths: np.ndarray
    """float64 [directions]: one standard error along each; infinite where it is flat."""


def curvature_at(problem: Problem, vector: np.ndarray) -> Curvature:
    """The curvature at a vector; residuals are taken as independent."""
    residuals = problem.residuals(vector)
    jacobian = problem.jacobian(vector)[: len(residuals)]
    delta = problem.method.huber_delta
    inside = np.abs(residuals) <= delta
    slopes = np.clip(residuals, -delta, delta)
    used = np.flatnonzero(~problem.at_bound(vector))
    norms = np.linalg.norm(jacobian[:, used], axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    scaled = jacobian[:, used] / scale
    values, axes = np.linalg.eigh(scaled.T @ (scaled * inside[:, None]))
    flat = values <= _FLAT * max(float(values.max(initial=0.0)), _FLAT)
    # Along the axes, where the curvature is diagonal: inverse, spread, inverse.
    inverse = np.where(flat, 0.0, 1 / np.where(flat, 1.0, values))
    turned = scaled @ axes
    covariance = inverse[:, None] * ((turned * slopes[:, None] ** 2).T @ turned) * inverse
    errors = np.full(len(vector), np.inf)
    errors[used] = np.sqrt(np.maximum(np.einsum("ik,kl,il->i", axes, covariance, axes), 0)) / scale
    errors[used[np.linalg.norm(axes[:, flat], axis=1) > _OPEN]] = np.inf
    directions = np.zeros((len(vector), len(used)))
    directions[used] = axes / scale[:, None]
    return Curvature(errors, directions, np.where(flat, np.inf, np.sqrt(np.maximum(np.diag(covariance), 0))))
