"""The loss of a set that is neither old nor new data, as a sum of the two (arXiv:2505.07796 Eq. 6), fitted to runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.budgets import other_set_loss
from megatron_cpt.scaling_law.points import Curve


@dataclass(frozen=True)
class Combination:
    """w1 L_old + w2 L_new. The weights belong to the data sets, not to schedule or ratio."""

    old: str
    """Validation set of the old data."""
    new: str
    """Validation set of the new data."""
    old_weight: float
    """w1, of either sign."""
    new_weight: float
    """w2, of either sign."""
    error: float
    """Root mean square of what it leaves, nats."""
    run_error: float | None = None
    """Mean absolute error on runs left out in turn, nats; None for a single run."""

    @property
    def weights(self) -> tuple[float, float]:
        """Both."""
        return self.old_weight, self.new_weight

    def loss(self, old_loss: float, new_loss: float) -> float:
        """Of the third set, nats per token."""
        return float(other_set_loss(old_loss, new_loss, self.old_weight, self.new_weight))


def fit_combination(
    old: str, new: str, curves: Sequence[Curve], old_curves: Sequence[Curve], new_curves: Sequence[Curve]
) -> Combination:
    """The weights with the least squares over all marks that the three sets of each run share.

    Args:
        old, new: names of the sets.
        curves, old_curves, new_curves: of the third set and of these, run by run in the same order.

    Raises BadInput where no mark is shared.
    """
    parts = [_shared(*three) for three in zip(curves, old_curves, new_curves, strict=True)]
    if sum(len(part) for part in parts) < 3:
        raise BadInput(Fault(f"{old}, {new}", "share too few marks with the third set.", "Evaluate all at the same."))
    rows = np.concatenate(parts)
    weights = _weights(rows)
    left_out = []
    if len(parts) > 1:
        for number, part in enumerate(parts):
            others = _weights(np.concatenate([one for other, one in enumerate(parts) if other != number]))
            left_out += np.abs(part[:, 1:] @ others - part[:, 0]).tolist()
    error = float(np.sqrt(np.mean((rows[:, 1:] @ weights - rows[:, 0]) ** 2)))
    run_error = float(np.mean(left_out)) if left_out else None
    return Combination(old, new, float(weights[0]), float(weights[1]), error, run_error)


def _shared(third: Curve, old: Curve, new: Curve) -> np.ndarray:
    """Losses of the three at the steps of all: float64 [steps, 3]."""
    losses = [dict(zip(c.steps.tolist(), c.losses.tolist(), strict=True)) for c in (third, old, new)]
    steps = sorted(losses[0].keys() & losses[1].keys() & losses[2].keys())
    return np.array([[one[step] for one in losses] for step in steps]).reshape(-1, 3)


def _weights(rows: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.linalg.lstsq(rows[:, 1:], rows[:, 0], rcond=None)[0]
    return weights
