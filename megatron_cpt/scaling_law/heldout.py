"""How far a fitted law is from curves that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.parameters import Observed


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


def errors_on(fit: Fit[Observed], curve: Observed) -> Errors:
    """Errors of the predicted loss of one curve or table."""
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
