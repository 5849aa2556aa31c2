"""How a law is fitted, apart from the law: what counts as far, how much a prior weighs, which points are used."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megatron_cpt.scaling_law.points import Curve

PRIOR_RESIDUAL = 1e-3
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
        return [self._thinned(one) if isinstance(one, Curve) else one for one in observed]

    def _thinned(self, curve: Curve) -> Curve:
        if self.points is None or len(curve.steps) <= self.points:
            return curve
        wanted = np.geomspace(curve.steps[0], curve.steps[-1], self.points)
        kept = np.unique(np.abs(curve.steps[:, None] - wanted).argmin(axis=0))
        return replace(curve, steps=curve.steps[kept], losses=curve.losses[kept])
