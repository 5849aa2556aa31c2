"""What a part of one curve leaves open: draws of a law's parameters, those that the curve does not tell from priors.

Half a run does not tell a fit what its decay will bring, so a forecast needs more than an optimum. The parameters in
which a law is linear are Gaussian once the others are given, so only the others are drawn, by the stretch moves of an
ensemble of walkers (Goodman and Weare 2010, doi:10.2140/camcos.2010.5.65), uniformly over where a fit would start.
"""

from collections.abc import Mapping

import numpy as np
from scipy.special import log_ndtr

from megatron_cpt.config.schedule import ANNEALING_DECAY
from megatron_cpt.scaling_law.parameters import Law, Parameter
from megatron_cpt.scaling_law.points import Curve
from megatron_cpt.scaling_law.profile import likeness

STARTS = 400
"""Random places, of which the walkers are drawn."""
WALKERS = 32
MOVES = 100
"""Of each walker; the first half is forgotten."""
NEAR = 1e-3
"""Of where a fit would start: how far apart walkers of the same place begin."""
STRETCH = 2.0
"""a of the stretch move."""
FULL_ANNEALING = (0.1, 0.1)
"""Nats that annealing from the peak to 0 brings, mean and spread: 0.06 by arXiv:2505.07796 Fig. 3 (C 0.3, peak 2e-4),
0.12 to 0.17 by fits to the curves of arXiv:2503.12811 (C 0.40 to 0.57, peak 3e-4)."""
WIDE = 2.0
"""Nats: spread of what any other linear term does at the last point."""
REDRAWS = 30
"""Times that linear parameters out of their bounds are drawn again before they are put at the bound."""


class LinearPart:
    """A law on one curve with its nonlinear parameters given: a least-squares problem in the linear ones."""

    def __init__(self, law: Law, curve: Curve, held: Mapping[str, float]) -> None:
        names = [parameter.name for parameter in law.parameters]
        self._model = law.exact(curve)
        self._losses = curve.losses
        self._peak = float(curve.rates.max())
        self._held = np.array([held.get(name, np.nan) for name in names])
        self.searched = [n for n, p in enumerate(law.parameters) if p.name not in held and not p.linear]
        self.linear = [n for n, p in enumerate(law.parameters) if p.name not in held and p.linear]
        self._parameters = law.parameters
        self._decay = names.index("decay") if "decay" in names else None
        self.low = np.array([law.parameters[n].low for n in self.linear])
        self.high = np.array([law.parameters[n].high for n in self.linear])
        self.ends = np.array(
            [[inner(law.parameters[n], end) for end in law.parameters[n].start] for n in self.searched]
        )

    def values(self, place: np.ndarray, linear: np.ndarray) -> np.ndarray:
        """All parameters of the law: float64 [parameters]."""
        values = self._held.copy()
        for number, coordinate in zip(self.searched, place, strict=True):
            values[number] = np.exp(coordinate) if self._parameters[number].logarithmic else coordinate
        values[self.linear] = linear
        return values

    def solve(self, place: np.ndarray, noise: float, alike: float) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Log of the evidence up to a constant, mean and covariance factor of the linear parameters, residuals.

        Args:
            place: float64 [searched], in the units of the search.
            noise: of a loss, nats.
            alike: points that count as one.
        """
        nothing = np.zeros(len(self.linear))
        base = np.real(self._model(self.values(place, nothing)))
        units = np.eye(len(self.linear))
        columns = np.stack([np.real(self._model(self.values(place, unit))) - base for unit in units], axis=1)
        centre, spread = self._priors(place, columns)
        error = noise * np.sqrt(alike)
        precision = columns.T @ columns / error**2 + np.diag(1 / spread**2)
        target = self._losses - base
        mean = np.linalg.solve(precision, columns.T @ target / error**2 + centre / spread**2)
        residuals = target - columns @ mean
        factor = np.linalg.inv(np.linalg.cholesky(precision)).T
        deviations = np.sqrt(np.sum(factor**2, axis=1))
        evidence = -0.5 * float(residuals @ residuals) / error**2
        evidence -= 0.5 * float(np.sum(((mean - centre) / spread) ** 2)) + float(np.sum(np.log(spread)))
        evidence -= float(np.sum(np.log(np.diag(np.linalg.cholesky(precision)))))
        inside = log_ndtr((mean - self.low) / deviations) + log_ndtr((self.high - mean) / deviations)
        return evidence + float(np.sum(inside)), mean, factor, residuals

    def _priors(self, place: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centre and spread of each linear parameter."""
        centre, spread = np.zeros(len(self.linear)), np.empty(len(self.linear))
        for position, number in enumerate(self.linear):
            name = self._parameters[number].name
            size = float(np.abs(columns[-1, position]))
            spread[position] = WIDE / max(size, 1e-9)
            if name == "floor":
                centre[position] = float(self._losses.min())
            elif name == "gain":
                area = self._peak / (1 - self._decay_at(place))
                centre[position], spread[position] = (nats / area for nats in FULL_ANNEALING)
        return centre, spread

    def _decay_at(self, place: np.ndarray) -> float:
        """The decay an update of S2; that of the papers where the law has none."""
        if self._decay is None:
            return ANNEALING_DECAY
        return float(self.values(place, np.zeros(len(self.linear)))[self._decay])


def posterior(law: Law, curve: Curve, held: Mapping[str, float], draws: int, seed: int) -> tuple[np.ndarray, float]:
    """Draws of all parameters of a law from a curve, and the noise of its losses.

    Returns:
        float64 [draws, parameters]; the root mean square of the residuals at the best place, nats.
    """
    generator = np.random.default_rng(seed)
    part = LinearPart(law, curve, held)
    low, high = part.ends[:, 0], part.ends[:, 1]
    places = generator.uniform(low, high, (STARTS, len(low)))
    rough = max(float(np.std(np.diff(curve.losses))), 1e-4)
    best = max(places, key=lambda place: part.solve(place, rough, 1.0)[0])
    residuals = part.solve(best, rough, 1.0)[3]
    noise, alike = max(float(np.sqrt(np.mean(residuals**2))), 1e-5), likeness([residuals])
    walkers = _walked(part, places, noise, alike, generator)
    vectors = []
    for place in walkers[generator.integers(0, len(walkers), draws)]:
        _, mean, factor, _ = part.solve(place, noise, alike)
        vectors.append(part.values(place, _inside(mean, factor, part, generator)))
    return np.array(vectors), noise


def _walked(
    part: LinearPart, places: np.ndarray, noise: float, alike: float, generator: np.random.Generator
) -> np.ndarray:
    """Places of the second half of the walk: float64 [places, searched]."""
    low, high = part.ends[:, 0], part.ends[:, 1]
    logs = np.array([part.solve(place, noise, alike)[0] for place in places])
    # The better places, flattened so that some ten of them count: one alone would leave the walkers in a point.
    weights = np.exp((logs - logs.max()) / max(1.0, float(np.ptp(np.sort(logs)[-WALKERS:])) / 10))
    chosen = generator.choice(len(places), WALKERS, p=weights / weights.sum())
    apart = NEAR * (high - low) * generator.standard_normal((WALKERS, len(low)))
    walkers = np.clip(places[chosen] + apart, low, high)
    logs = np.array([part.solve(place, noise, alike)[0] for place in walkers])
    kept = []
    dimensions = len(low)
    for move in range(MOVES):
        for walker in range(WALKERS):
            other = walkers[(walker + 1 + generator.integers(0, WALKERS - 1)) % WALKERS]
            stretch = ((STRETCH - 1) * generator.random() + 1) ** 2 / STRETCH
            place = other + stretch * (walkers[walker] - other)
            if np.any(place < low) or np.any(place > high):
                continue
            log = part.solve(place, noise, alike)[0]
            if np.log(generator.random()) < (dimensions - 1) * np.log(stretch) + log - logs[walker]:
                walkers[walker], logs[walker] = place, log
        if 2 * move >= MOVES:
            kept.append(walkers.copy())
    return np.concatenate(kept)


def _inside(mean: np.ndarray, factor: np.ndarray, part: LinearPart, generator: np.random.Generator) -> np.ndarray:
    """A draw of the linear parameters within their bounds."""
    for _ in range(REDRAWS):
        drawn: np.ndarray = mean + factor @ generator.standard_normal(len(mean))
        if np.all(drawn >= part.low) and np.all(drawn <= part.high):
            break
    return np.clip(drawn, part.low, part.high)


def inner(parameter: Parameter, value: float) -> float:
    """A value of a parameter in the units of the search."""
    return float(np.log(value)) if parameter.logarithmic else value
