"""How certain a fit is: bootstrap bands, profile intervals, and draws given part of one curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_ndtr

from megatron_cpt.config.schedule import ANNEALING_DECAY
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import NOMINAL, Fit, end_error, fit_law
from megatron_cpt.scaling_law.laws import DECAY, DROP_SIZE, GAIN, Law, Observed
from megatron_cpt.scaling_law.problem import Curvature, Problem, curvature_at

STARTS = 400
"""Random places, of which the walkers are drawn."""
_WALKERS = 32
_MOVES = 100
"""Of each walker; the first half is forgotten."""
_NEAR = 1e-3
"""Of where a fit would start: how far apart walkers of the same place begin."""
_STRETCH = 2.0
"""a of the stretch move."""
_FULL_ANNEALING = (0.1, 0.1)
"""Nats that annealing from the peak to 0 brings, mean and spread: 0.06 by arXiv:2505.07796 Fig. 3 (C 0.3, peak 2e-4),
0.12 to 0.17 by fits to the curves of arXiv:2503.12811 (C 0.40 to 0.57, peak 3e-4)."""
_WIDE = 2.0
"""Nats: spread of what any other linear term does at the last point."""
_REDRAWS = 30
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
        self.ends = np.array([law.parameters[n].start_ends for n in self.searched])

    def values(self, place: np.ndarray, linear: np.ndarray) -> np.ndarray:
        """All parameters of the law: float64 [parameters]."""
        values = self._held.copy()
        for number, coordinate in zip(self.searched, place, strict=True):
            values[number] = self._parameters[number].value(coordinate)
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
            spread[position] = _WIDE / max(size, 1e-9)
            if name == "floor":
                centre[position] = float(self._losses.min())
            elif name == "gain":
                centre[position], spread[position] = _usual_gain(self._peak, self._decay_at(place))
        return centre, spread

    def _decay_at(self, place: np.ndarray) -> float:
        """The decay an update of S2; that of the papers where the law has none."""
        if self._decay is None:
            return ANNEALING_DECAY
        return float(self.values(place, np.zeros(len(self.linear)))[self._decay])


def _usual_gain(peak: float, decay: float) -> tuple[float, float]:
    """Mean and spread of what annealing brings for each unit of S2, of which a fall from the peak to 0 makes
    peak / (1 - decay)."""
    area = peak / (1 - decay)
    return _FULL_ANNEALING[0] / area, _FULL_ANNEALING[1] / area


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
    weights = np.exp((logs - logs.max()) / max(1.0, float(np.ptp(np.sort(logs)[-_WALKERS:])) / 10))
    chosen = generator.choice(len(places), _WALKERS, p=weights / weights.sum())
    apart = _NEAR * (high - low) * generator.standard_normal((_WALKERS, len(low)))
    walkers = np.clip(places[chosen] + apart, low, high)
    logs = np.array([part.solve(place, noise, alike)[0] for place in walkers])
    kept = []
    dimensions = len(low)
    for move in range(_MOVES):
        for walker in range(_WALKERS):
            other = walkers[(walker + 1 + generator.integers(0, _WALKERS - 1)) % _WALKERS]
            stretch = ((_STRETCH - 1) * generator.random() + 1) ** 2 / _STRETCH
            place = other + stretch * (walkers[walker] - other)
            if np.any(place < low) or np.any(place > high):
                continue
            log = part.solve(place, noise, alike)[0]
            if np.log(generator.random()) < (dimensions - 1) * np.log(stretch) + log - logs[walker]:
                walkers[walker], logs[walker] = place, log
        if 2 * move >= _MOVES:
            kept.append(walkers.copy())
    return np.concatenate(kept)


def _inside(mean: np.ndarray, factor: np.ndarray, part: LinearPart, generator: np.random.Generator) -> np.ndarray:
    """A draw of the linear parameters within their bounds."""
    for _ in range(_REDRAWS):
        drawn: np.ndarray = mean + factor @ generator.standard_normal(len(mean))
        if np.all(drawn >= part.low) and np.all(drawn <= part.high):
            break
    return np.clip(drawn, part.low, part.high)


_CHI_SQUARED_95 = 3.84
"""95 % of chi squared with one degree of freedom."""
_PROFILE_EVALUATIONS = 40
"""Of the law in one refit."""
_HALVINGS = 5
"""Of the stretch that holds the end of an interval: it is known to 3 % of that stretch."""
_FIRST_STEP = 1 / 16
"""Of a parameter's reach, of a linear one's size; doubled until the objective has risen enough."""
_LEAST_SIZE = 0.01
"""Taken for the size of a linear parameter that is smaller."""


def profiled(fit: Fit, curves: Sequence[Curve], names: Sequence[str]) -> Fit:
    """The fit of these curves with profile intervals of some of its parameters, and the fits at their ends."""
    problem = Problem(fit.law, curves, fit.held, fit.method)
    optimum = problem.vector(fit.vector)
    unseen = problem.unseen(optimum)
    threshold = problem.objective(optimum) + 0.5 * _CHI_SQUARED_95 * _unit(problem, optimum, fit.method.sampled(curves))
    intervals, ends = {}, []
    for position, parameter in enumerate(problem.free_parameters):
        if parameter.name not in names:
            continue
        if position in unseen:  # no refit is better or worse by it, and what is far off says nothing of a prediction
            intervals[parameter.name] = problem.bounds(position)
        else:
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
    near, step = optimum, _FIRST_STEP * (reach if np.isfinite(reach) else max(abs(optimum[position]), _LEAST_SIZE))
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
    for _ in range(_HALVINGS):
        tried = _held_at(problem, near, position, (near[position] + far[position]) / 2)
        near, far = (tried, far) if problem.objective(tried) <= threshold else (near, tried)
    return near


def _held_at(problem: Problem, near: np.ndarray, position: int, place: float) -> np.ndarray:
    start = near.copy()
    start[position] = place
    return problem.refine(start, _PROFILE_EVALUATIONS, fixed=position)


_DRAWS = 40
"""Refits of a bootstrap."""
_BLOCKS = 8
"""Blocks that the residuals of one curve are cut into."""
_BOOTSTRAP_EVALUATIONS = 60
"""Of the law in one refit."""


@dataclass(frozen=True)
class Band:
    """A predicted loss, in nats per token; float64 [points] each."""

    middle: np.ndarray
    """The fitted law."""
    low: np.ndarray
    """2.5 % of the draws are below, and every end of a profile is not. NaN where nothing is known of the error."""
    high: np.ndarray
    """2.5 % of the draws are above, and every end of a profile is not. NaN where nothing is known of the error."""


def bootstrap(fit: Fit[Observed], curves: Sequence[Observed], draws: int = _DRAWS, seed: int = 0) -> Fit[Observed]:
    """The fit of these curves, with draws of its parameters. The same seed gives the same draws."""
    generator = np.random.default_rng(seed)
    problem = Problem(fit.law, curves, fit.held, fit.method)
    optimum = problem.vector(fit.vector)
    residuals = -problem.residuals(optimum)
    fitted = problem.log_losses - residuals
    ends = np.cumsum([len(curve.losses) for curve in fit.method.sampled(curves)])[:-1]
    vectors = []
    curvature = curvature_at(problem, optimum)
    for _ in range(draws):
        drawn = np.concatenate([_blocks(part, generator) for part in np.split(residuals, ends)])
        redrawn = problem.with_log_losses(fitted + drawn)
        start = redrawn.moved(optimum, _random_step(curvature, problem.reach, generator))
        vectors.append(redrawn.refine(start, _BOOTSTRAP_EVALUATIONS))
    unseen = problem.unseen(optimum)
    for vector in vectors:
        for position in unseen:
            vector[position] = _of_the_field(problem, vector, position, curves, generator)
    values = np.array([problem.values(vector) for vector in vectors])
    return replace(fit, draws=values, noise=float(np.sqrt(np.mean(residuals**2))))


def _of_the_field(
    problem: Problem, drawn: np.ndarray, position: int, curves: Sequence[Observed], generator: np.random.Generator
) -> float:
    """A linear parameter on which no fitted point depends, as it may be by what is known of such laws, where the other
    parameters are those of a draw."""
    peak = max((float(curve.rates.max()) for curve in curves if isinstance(curve, Curve)), default=1.0)
    low, high = problem.bounds(position)
    name = problem.free_parameters[position].name
    if name == GAIN.name:
        mean, spread = _usual_gain(peak, problem.value(drawn, DECAY.name))
    elif name == DROP_SIZE.name:
        mean, spread = _FULL_ANNEALING[0] / peak, _FULL_ANNEALING[1] / peak
    else:
        mean, spread = 0.0, _WIDE
    return float(np.clip(mean + spread * generator.standard_normal(), low, high))


def band(fit: Fit[Observed], curve: Observed, seed: int = 0) -> Band:
    """The predicted loss with its 95 % band, where the fit has bands."""
    if not fit.has_bands:
        middle = fit.predict(curve)
        return Band(middle, np.full_like(middle, np.nan), np.full_like(middle, np.nan))
    return _band(fit, curve, seed)


def _band(fit: Fit[Observed], curve: Observed, seed: int = 0) -> Band:
    """The band of draws, noise and profiles; without draws it has the width of the noise alone."""
    generator = np.random.default_rng(seed)
    model = fit.law.exact(curve)
    middle = fit.predict(curve)
    every = np.stack([np.real(model(values)) for values in fit.draws] or [middle] * _DRAWS)
    noisy = every * np.exp(fit.noise * generator.standard_normal((len(every), 1)))
    low, high = np.quantile(noisy, (0.025, 0.975), axis=0)
    ends = np.stack([middle, *(np.real(model(values)) for values in fit.extremes)])
    out = np.exp(fit.widening)
    return Band(middle, np.minimum(low, ends.min(axis=0)) / out, np.maximum(high, ends.max(axis=0)) * out)


_FEWEST_LEFT_OUT = 3
"""Of two, one would be all there is to fit."""
_STARTS_OF_A_REFIT = 48
"""Of the law, with a schedule left out."""


def calibrated(fit: Fit[Curve], curves: Sequence[Curve], freed: Sequence[str] = ()) -> Fit[Curve]:
    """The fit of these curves, its bands moved out until they hold schedules left out.

    A bootstrap knows the spread of the parameters, not the error of the law. Each schedule (each curve, where there
    are fewer than three) is left out in turn and predicted from the others; the score of a curve is how far the losses
    lie beyond the band about this prediction, at all but the worst twentieth of its points; bands are moved out by the
    largest score of n schedules. By conformal prediction (arXiv:1905.03222) they hold a further one with probability
    n / (n + 1). With fewer than three curves, or too few points in the others, the fit is returned as it is.
    """
    groups = _groups(curves)
    points = [len(curve.losses) for curve in fit.method.sampled(curves)]
    if any(sum(points) - sum(points[number] for number in group) < len(fit.standard_errors) for group in groups):
        return fit
    scores, errors = [0.0], {}
    for group in groups:
        others = [curve for number, curve in enumerate(curves) if number not in group]
        refit = fit_law(fit.law, others, fit.held, freed, starts=_STARTS_OF_A_REFIT, method=fit.method)
        for curve in (curves[number] for number in group):
            scores.append(_beyond_band(fit, refit, curve))
            errors[curve.name] = end_error(refit, curve)
    return replace(fit, widening=max(scores), times_left_out=len(groups), left_out=errors)


def _groups(curves: Sequence[Curve]) -> list[list[int]]:
    """Numbers of the curves that are left out together."""
    by_schedule: dict[bytes, list[int]] = {}
    for number, curve in enumerate(curves):
        by_schedule.setdefault(curve.rates.tobytes(), []).append(number)
    if len(by_schedule) >= _FEWEST_LEFT_OUT:
        return list(by_schedule.values())
    return [[number] for number in range(len(curves))] if len(curves) >= _FEWEST_LEFT_OUT else []


def _beyond_band(fit: Fit[Curve], refit: Fit[Curve], curve: Curve) -> float:
    """By how much of the log loss a curve lies outside the band of a fit, moved to the prediction of a refit."""
    around = _band(fit, curve)
    error = np.log(curve.losses) - np.log(refit.predict(curve))
    outside = np.maximum(error - np.log(around.high / around.middle), np.log(around.low / around.middle) - error)
    return float(np.quantile(outside, NOMINAL, method="inverted_cdf"))


def _random_step(curvature: Curvature, reach: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A normal step along each direction of the curvature, none so long that a parameter leaves its reach."""
    sizes = np.abs(curvature.directions)
    with np.errstate(divide="ignore"):
        longest = np.min(np.where(sizes > 0, reach[:, None] / sizes, np.inf), axis=0, initial=np.inf)
    lengths = np.minimum(curvature.lengths, longest)
    lengths[~np.isfinite(lengths)] = 0.0  # linear parameters alone, which are solved for after the step
    steps: np.ndarray = curvature.directions @ (lengths * generator.standard_normal(len(lengths)))
    return np.clip(steps, -reach, reach)


def _blocks(residuals: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many residuals as there are, in blocks drawn from them with replacement."""
    count = len(residuals)
    length = max(1, count // _BLOCKS)
    starts = generator.integers(0, count - length + 1, -(-count // length))
    return np.concatenate([residuals[start : start + length] for start in starts])[:count]
