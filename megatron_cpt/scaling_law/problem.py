"""A law and curves as an optimisation problem: Huber on log-loss residuals over the free parameters.

Derivatives are taken by complex steps, which are exact to rounding. Parameters in which a law is linear are solved
for at each start, so that only its few others are searched.
"""

from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
from scipy.optimize import least_squares, lsq_linear

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.parameters import Law, Parameter
from megatron_cpt.scaling_law.points import Curve

HUBER_DELTA = 1e-3
"""On log-loss residuals (public code of arXiv:2503.12811): beyond 0.1 % of the loss a point counts linearly."""
TINY = 1e-30
"""Imaginary step: the derivative it gives is exact to rounding."""
POINTS_OF_A_PRIOR = 25
"""A prior counts as so many points, each off by delta at one width: neighbours on a curve repeat each other."""


def huber(residuals: np.ndarray) -> np.ndarray:
    size = np.abs(residuals)
    return np.where(size <= HUBER_DELTA, 0.5 * residuals**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))


class Problem:
    """The free parameters of a law as a vector (logarithms where the law says so), and its residuals."""

    def __init__(self, law: Law, curves: Sequence[Curve], held: Mapping[str, float]) -> None:
        names = [parameter.name for parameter in law.parameters]
        self.log_losses = np.log(np.concatenate([curve.losses for curve in curves]))
        self.free = [number for number, name in enumerate(names) if name not in held]
        if len(self.log_losses) < len(self.free):
            rule = f"are fewer than the {len(self.free)} parameters of the {law.name} law."
            raise BadInput(Fault(f"{len(self.log_losses)} points", rule, "Give more curves, or fix parameters."))
        self._parameters = law.parameters
        self._held = np.array([held.get(name, np.nan) for name in names])
        self._models = [law.quick(curve) for curve in curves]
        chosen = [law.parameters[number] for number in self.free]
        self._low = np.array([_inner(parameter, parameter.low) for parameter in chosen])
        self._high = np.array([_inner(parameter, parameter.high) for parameter in chosen])
        prior = [(p, i) for p, i in enumerate(chosen) if i.prior is not None]
        self._guided = [position for position, _ in prior]
        self._centres = np.array([_inner(parameter, parameter.prior[0]) for _, parameter in prior if parameter.prior])
        self._widths = np.array([parameter.prior[1] for _, parameter in prior if parameter.prior])
        self._linear = [position for position, parameter in enumerate(chosen) if parameter.linear]

    def values(self, vector: np.ndarray) -> np.ndarray:
        """All parameters of the law, from the free ones."""
        values = self._held.astype(vector.dtype)
        for position, number in enumerate(self.free):
            inner = vector[position]
            values[number] = np.exp(inner) if self._parameters[number].logarithmic else inner
        return values

    def objective(self, vector: np.ndarray) -> float:
        """Huber losses of all points and of the priors; infinite where the law cannot be computed."""
        total = float(np.sum(huber(self.guided_residuals(vector))))
        return total if np.isfinite(total) else np.inf

    def residuals(self, vector: np.ndarray) -> np.ndarray:
        """Predicted minus measured log loss: [points]. A prediction below 0 counts as one of a millionth."""
        losses = self._losses(self.values(vector))
        return np.log(np.where(np.real(losses) > 1e-6, losses, 1e-6)) - self.log_losses

    def guided_residuals(self, vector: np.ndarray) -> np.ndarray:
        """The residuals of the points, then those of the priors: [points + priors * POINTS_OF_A_PRIOR]."""
        pulls = HUBER_DELTA * (vector[self._guided] - self._centres) / self._widths
        return np.concatenate([self.residuals(vector), np.repeat(pulls, POINTS_OF_A_PRIOR)])

    def jacobian(self, vector: np.ndarray) -> np.ndarray:
        """Derivatives of `guided_residuals` by complex steps: float64 [residuals, free parameters]."""
        columns = []
        for position in range(len(vector)):
            moved = vector.astype(complex)
            moved[position] += 1j * TINY
            columns.append(np.imag(self.guided_residuals(moved)) / TINY)
        return np.stack(columns, axis=1)

    def start(self, generator: np.random.Generator) -> np.ndarray:
        """A random place for the other parameters, and what is best there for the linear ones."""
        vector = np.zeros(len(self.free))
        for position, number in enumerate(self.free):
            parameter = self._parameters[number]
            if parameter.linear:
                continue
            low, high = (_inner(parameter, end) for end in parameter.start)
            vector[position] = generator.uniform(low, high)
        if self._linear:
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
        return np.array([_inner(self._parameters[number], values[number]) for number in self.free])

    def with_log_losses(self, log_losses: np.ndarray) -> "Problem":
        """The same problem with other measurements: float64 [points]."""
        other = copy(self)
        other.log_losses = log_losses
        return other

    def refine(self, start: np.ndarray, evaluations: int = 300) -> np.ndarray:
        """The local optimum near a start, after so many evaluations at most."""
        margin = 1e-9 * (self._high - self._low)
        inside = np.clip(start, self._low + margin, self._high - margin)
        found = least_squares(
            self.guided_residuals,
            inside,
            self.jacobian,
            bounds=(self._low, self._high),
            loss="huber",
            f_scale=HUBER_DELTA,
            x_scale="jac",
            xtol=1e-10,
            ftol=1e-10,
            gtol=1e-14,
            max_nfev=evaluations,
        )
        return found.x

    def standard_errors(self, vector: np.ndarray) -> tuple[dict[str, float], tuple[str, ...]]:
        """Standard errors in the parameters' own units, and the names of those at a bound."""
        residuals = self.residuals(vector)
        jacobian = self.jacobian(vector)[: len(residuals)]
        inside = np.abs(residuals) <= HUBER_DELTA
        slopes = np.clip(residuals, -HUBER_DELTA, HUBER_DELTA)
        span = self._high - self._low
        bound = (vector - self._low < 1e-6 * span) | (self._high - vector < 1e-6 * span)
        errors = np.full(len(vector), np.inf)
        used = np.flatnonzero(~bound)
        scale = np.linalg.norm(jacobian[:, used], axis=0)
        scaled = jacobian[:, used] / np.where(scale > 0, scale, 1)
        # The sandwich of M-estimation: curvature from the points inside delta, spread from all slopes.
        curvature = scaled.T @ (scaled * inside[:, None])
        spread = (scaled * slopes[:, None] ** 2).T @ scaled
        if len(used) and np.all(scale > 0) and np.linalg.cond(curvature) < 1e14:
            inverse = np.linalg.inv(curvature)
            errors[used] = np.sqrt(np.maximum(np.diag(inverse @ spread @ inverse), 0)) / scale
        named = {}
        for position, number in enumerate(self.free):
            parameter = self._parameters[number]
            unit = np.exp(vector[position]) if parameter.logarithmic else 1.0
            named[parameter.name] = float(errors[position] * unit)
        return named, tuple(self._parameters[self.free[position]].name for position in np.flatnonzero(bound))

    def _losses(self, values: np.ndarray) -> np.ndarray:
        return np.concatenate([model(values) for model in self._models])


def _inner(parameter: Parameter, value: float) -> float:
    return float(np.log(max(value, TINY))) if parameter.logarithmic else value
