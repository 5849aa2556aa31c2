"""What other noise would have given: a bootstrap over blocks of residuals, and bands of predicted curves.

Residuals of neighbouring points are alike, so blocks of them are drawn, curve by curve, added to the fitted losses,
and the law is fitted again from its optimum. A band covers the parameters' spread and the residuals' own size; it
knows nothing of a law that is wrong where no curve was fitted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.points import Curve
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
    """2.5 % of the draws are below."""
    high: np.ndarray
    """2.5 % of the draws are above."""


def bootstrap(fit: Fit, curves: Sequence[Curve], draws: int = DRAWS, seed: int = 0) -> Fit:
    """The fit of these curves, with draws of its parameters. The same seed gives the same draws."""
    generator = np.random.default_rng(seed)
    problem = Problem(fit.law, curves, fit.held)
    optimum = problem.vector(fit.vector)
    residuals = -problem.residuals(optimum)
    fitted = problem.log_losses - residuals
    ends = np.cumsum([len(curve.steps) for curve in curves])[:-1]
    vectors = []
    for _ in range(draws):
        drawn = np.concatenate([_blocks(part, generator) for part in np.split(residuals, ends)])
        vectors.append(problem.with_log_losses(fitted + drawn).refine(optimum, EVALUATIONS))
    values = np.array([problem.values(vector) for vector in vectors])
    return replace(fit, draws=values, noise=float(np.sqrt(np.mean(residuals**2))))


def band(fit: Fit, curve: Curve, seed: int = 0) -> Band:
    """The predicted loss of a curve with its 95 % band; without draws the band has the width of the noise alone."""
    generator = np.random.default_rng(seed)
    model = fit.law.exact(curve)
    middle = fit.predict(curve)
    every = np.stack([np.real(model(values)) for values in fit.draws] or [middle] * DRAWS)
    noisy = every * np.exp(fit.noise * generator.standard_normal((len(every), 1)))
    low, high = np.quantile(noisy, (0.025, 0.975), axis=0)
    return Band(middle, np.minimum(low, middle), np.maximum(high, middle))


def _blocks(residuals: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many residuals as there are, in blocks drawn from them with replacement."""
    count = len(residuals)
    length = max(1, count // BLOCKS)
    starts = generator.integers(0, count - length + 1, -(-count // length))
    return np.concatenate([residuals[start : start + length] for start in starts])[:count]
