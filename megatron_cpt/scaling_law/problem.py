"""A law and curves as an optimisation problem: Huber on log-loss residuals over the free parameters.

Derivatives are taken by complex steps, which are exact to rounding. Parameters in which a law is linear are solved
for at each start, so that only its few others are searched.
"""

from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np
from scipy.optimize import least_squares, lsq_linear

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.method import PRIOR_RESIDUAL, Method
from megatron_cpt.scaling_law.parameters import Law, Measured, Parameter

TINY = 1e-30
"""Imaginary step: the derivative it gives is exact to rounding."""


class Problem:
    """The free parameters of a law as a vector (logarithms where the law says so), and its residuals."""

    def __init__(self, law: Law, curves: Sequence[Measured], held: Mapping[str, float], method: Method) -> None:
        names = [parameter.name for parameter in law.parameters]
        curves = method.sampled(curves)
        self.log_losses = np.log(np.concatenate([curve.losses for curve in curves]))
        self.free = [number for number, name in enumerate(names) if name not in held]
        if len(self.log_losses) < len(self.free):
            rule = f"are fewer than the {len(self.free)} parameters of the {law.name} law."
            raise BadInput(Fault(f"{len(self.log_losses)} points", rule, "Give more curves, or fix parameters."))
        self.method = method
        self.free_parameters = [law.parameters[number] for number in self.free]
        self._parameters = law.parameters
        self._held = np.array([held.get(name, np.nan) for name in names])
        self._models = [law.quick(curve) for curve in curves]
        chosen = self.free_parameters
        self._low = np.array([_inner(parameter, parameter.low) for parameter in chosen])
        self._high = np.array([_inner(parameter, parameter.high) for parameter in chosen])
        prior = [(p, i) for p, i in enumerate(chosen) if i.prior is not None]
        self._guided = [position for position, _ in prior]
        self._centres = np.array([_inner(parameter, parameter.prior[0]) for _, parameter in prior if parameter.prior])
        self._widths = np.array([parameter.prior[1] for _, parameter in prior if parameter.prior])
        self.reach = np.array([_reach(parameter) for parameter in chosen])
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
        total = float(np.sum(self.method.huber(self.guided_residuals(vector))))
        return total if np.isfinite(total) else np.inf

    def residuals(self, vector: np.ndarray) -> np.ndarray:
        """Predicted minus measured log loss: [points]. A prediction below 0 counts as one of a millionth."""
        losses = self._losses(self.values(vector))
        return np.log(np.where(np.real(losses) > 1e-6, losses, 1e-6)) - self.log_losses

    def guided_residuals(self, vector: np.ndarray) -> np.ndarray:
        """The residuals of the points, then those of the priors: [points + priors * prior_points]."""
        pulls = PRIOR_RESIDUAL * (vector[self._guided] - self._centres) / self._widths
        return np.concatenate([self.residuals(vector), np.repeat(pulls, self.method.prior_points)])

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
        return np.array([_inner(self._parameters[number], values[number]) for number in self.free])

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

    def bounds(self, position: int) -> tuple[float, float]:
        """Of a free parameter, in the units of the search."""
        return float(self._low[position]), float(self._high[position])

    def moved(self, vector: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """A vector some steps on, within the bounds, the linear parameters again what is best there."""
        return self._with_best_linear(np.clip(vector + steps, self._low, self._high))

    def _losses(self, values: np.ndarray) -> np.ndarray:
        return np.concatenate([model(values) for model in self._models])


def _reach(parameter: Parameter) -> float:
    """Half of where starts are drawn from; linear parameters follow the others."""
    low, high = (_inner(parameter, end) for end in parameter.start)
    return np.inf if parameter.linear else (high - low) / 2


def _inner(parameter: Parameter, value: float) -> float:
    return float(np.log(max(value, TINY))) if parameter.logarithmic else value
