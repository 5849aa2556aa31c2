"""What other noise would have given: a bootstrap over blocks of residuals, and bands of predicted curves.

Residuals of neighbouring points are alike, so blocks of them are drawn, curve by curve, added to the fitted losses,
and the law is fitted again. Each refit starts a random way off the optimum along the directions of the curvature, as
far as the search is wide where they are flat: from the optimum itself it would stay there, and a valley that the curves
leave open would not show in the draws. A band covers the parameters' spread and the residuals' own size; it knows
nothing of a law that is wrong where no curve was fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_cpt.scaling_law.curvature import Curvature, curvature_at
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.parameters import Observed
from megatron_cpt.scaling_law.problem import Problem

DRAWS = 40
"""Refits of a bootstrap."""
BLOCKS = 8
"""Blocks that the residuals of one curve are cut into."""
EVALUATIONS = 60
"""Of the law in one refit."""


@dataclass(frozen=True)
class Band:
    """A predicted loss, in nats per token; float64 [points] each."""

    middle: np.ndarray
    """The fitted law."""
    low: np.ndarray
    """2.5 % of the draws are below, and every end of a profile is not."""
    high: np.ndarray
    """2.5 % of the draws are above, and every end of a profile is not."""


def bootstrap(fit: Fit[Observed], curves: Sequence[Observed], draws: int = DRAWS, seed: int = 0) -> Fit[Observed]:
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
        vectors.append(redrawn.refine(start, EVALUATIONS))
    values = np.array([problem.values(vector) for vector in vectors])
    return replace(fit, draws=values, noise=float(np.sqrt(np.mean(residuals**2))))


def band(fit: Fit[Observed], curve: Observed, seed: int = 0) -> Band:
    """The predicted loss with its 95 % band; without draws the band has the width of the noise alone."""
    generator = np.random.default_rng(seed)
    model = fit.law.exact(curve)
    middle = fit.predict(curve)
    every = np.stack([np.real(model(values)) for values in fit.draws] or [middle] * DRAWS)
    noisy = every * np.exp(fit.noise * generator.standard_normal((len(every), 1)))
    low, high = np.quantile(noisy, (0.025, 0.975), axis=0)
    ends = np.stack([middle, *(np.real(model(values)) for values in fit.extremes)])
    return Band(middle, np.minimum(low, ends.min(axis=0)), np.maximum(high, ends.max(axis=0)))


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
    length = max(1, count // BLOCKS)
    starts = generator.integers(0, count - length + 1, -(-count // length))
    return np.concatenate([residuals[start : start + length] for start in starts])[:count]
