"""Fitting a law to curves: Huber on log-loss residuals, many starts, bounds, fixed parameters; errors on other curves.

Parameters in which a law is linear are solved for at each start, so that only its few others are searched. All
starts come from a seed: the same curves give the same fit. Where curves leave a parameter open, a prior of the law
decides (candidates.py says which), so that an open direction does not run away and spoil what is predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.optimize import least_squares, lsq_linear

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.candidates import Law, Parameter
from megatron_cpt.scaling_law.points import Curve

HUBER_DELTA = 1e-3
"""On log-loss residuals (public code of arXiv:2503.12811): beyond 0.1 % of the loss a point counts linearly."""
STARTS = 128
"""Points of the search space that are looked at."""
REFINED = 6
"""Of these, the best are refined."""
TINY = 1e-30
"""Imaginary step: the derivative it gives is exact to rounding."""
POINTS_OF_A_PRIOR = 25
"""A prior counts as so many points, each off by delta at one width: neighbours on a curve repeat each other."""
WEAK = 0.25
"""A relative standard error from which a parameter counts as weakly identified."""


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


@dataclass(frozen=True)
class Fit:
    """A fitted law."""

    law: Law
    parameters: dict[str, float]
    """Every parameter, the fixed ones too."""
    objective: float
    """Sum of Huber losses over all points, priors apart."""
    points: int
    """Points fitted."""
    standard_errors: dict[str, float] = field(default_factory=dict)
    """From the curvature at the optimum, residuals taken as independent: too small where they are not. Infinite
    where the curves say nothing of a parameter; fixed parameters have none."""
    at_bound: tuple[str, ...] = ()
    """Parameters that ended at a bound."""

    @cached_property
    def weak(self) -> tuple[str, ...]:
        """Parameters that the curves hardly determine: their value means little, even where predictions are good."""
        return tuple(
            name
            for name, error in self.standard_errors.items()
            if name in self.at_bound or not error < WEAK * abs(self.parameters[name])
        )

    def predict(self, curve: Curve) -> np.ndarray:
        """The loss at the points of a curve: float64 [points]. The losses of the curve are not looked at."""
        values = np.array([self.parameters[parameter.name] for parameter in self.law.parameters])
        return np.real(self.law.exact(curve)(values))


def fit_law(
    law: Law, curves: Sequence[Curve], fixed: Mapping[str, float] | None = None, seed: int = 0, starts: int = STARTS
) -> Fit:
    """The parameters with the least Huber loss of log residuals over all points of all curves.

    Args:
        fixed: the parameters that are held at a value; None: those that the law holds by itself.
        seed: of the starts.
        starts: places to start from.

    Raises BadInput for fewer points than parameters, and for a fixed parameter that the law does not have.
    """
    held = law.fixed if fixed is None else fixed
    problem = _Problem(law, curves, held)
    generator = np.random.default_rng(seed)
    candidates = [problem.start(generator) for _ in range(max(1, starts))]
    candidates.sort(key=problem.objective)
    best = min((problem.refine(start) for start in candidates[:REFINED]), key=problem.objective)
    errors, at_bound = problem.standard_errors(best)
    values = problem.values(best)
    return Fit(
        law=law,
        parameters={parameter.name: float(value) for parameter, value in zip(law.parameters, values, strict=True)},
        objective=float(np.sum(_huber(problem.residuals(best)))),
        points=len(problem.log_losses),
        standard_errors=errors,
        at_bound=at_bound,
    )


def huber_objective(law: Law, parameters: Mapping[str, float], curves: Sequence[Curve]) -> float:
    """What `fit_law` makes small, of given parameters, exactly."""
    values = np.array([parameters[parameter.name] for parameter in law.parameters])
    residuals = [np.log(np.real(law.exact(curve)(values))) - np.log(curve.losses) for curve in curves]
    return float(np.sum(_huber(np.concatenate(residuals))))


def errors_on(fit: Fit, curve: Curve) -> Errors:
    """Errors of the predicted loss of one curve."""
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


def mean_errors(errors: Sequence[Errors]) -> Errors:
    """The mean of each figure over curves."""
    return Errors(*np.mean([[e.r2, e.mae, e.rmse, e.prede, e.worste] for e in errors], axis=0).tolist())


def _huber(residuals: np.ndarray) -> np.ndarray:
    size = np.abs(residuals)
    return np.where(size <= HUBER_DELTA, 0.5 * residuals**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))


class _Problem:
    """The free parameters of a law as a vector (logarithms where the law says so), and its residuals."""

    def __init__(self, law: Law, curves: Sequence[Curve], held: Mapping[str, float]) -> None:
        names = [parameter.name for parameter in law.parameters]
        for name in held:
            if name not in names:
                raise BadInput(Fault(name, f"is not a parameter of the {law.name} law.", f"It has {', '.join(names)}."))
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
        total = float(np.sum(_huber(self.guided_residuals(vector))))
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

    def refine(self, start: np.ndarray) -> np.ndarray:
        """The local optimum near a start."""
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
            max_nfev=300,
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
    return float(np.log(value)) if parameter.logarithmic else value
