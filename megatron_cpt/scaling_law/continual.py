"""The law of continual pretraining (arXiv:2505.07796) as the fit takes it, and the loss of third sets (Eq. 6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.laws import (
    AMPLITUDE,
    ANNEALING,
    DECAY,
    EXPONENT,
    FLOOR,
    GAIN,
    MULTI_POWER,
    RATE_POWER,
    RATE_WEIGHTED,
    AnnealingAreas,
    Law,
    Model,
    Parameter,
    at_size,
    continual_law,
    forward_areas,
    held_decay,
    injection_factor,
    other_set_loss,
)


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
    """The weights with the least squares over all evaluations that the three sets of each run share.

    Args:
        old, new: names of the sets.
        curves, old_curves, new_curves: of the third set and of these, run by run in the same order.

    Raises BadInput where no evaluation is shared.
    """
    parts = [_shared(*three) for three in zip(curves, old_curves, new_curves, strict=True)]
    if sum(len(part) for part in parts) < 3:
        raise BadInput(
            Fault(f"{old}, {new}", "share too few evaluations with the third set.", "Evaluate all at the same steps.")
        )
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


ON_DEMAND = {"rate_power": 0.0, "gain_bend": 0.0, "injection_gain": 0.0, "injection_exponent": 0.0}
"""Terms that are fitted on demand alone, at the value that leaves them out."""
SIZE_TERMS = {"size_amplitude": 0.0, "size_exponent": 0.19, "base_gain_growth": 0.0, "gain_growth": 0.0}
"""What the terms of arXiv:2505.07796 Eq. 7 are held at: no dependence on size; the exponent is what it prints."""


def _continual(curves: Sequence[Curve]) -> Model:
    forward = np.concatenate([forward_areas(curve.rates)[curve.steps - 1] for curve in curves])
    annealing = AnnealingAreas(
        curves, [curve.base_final_rate or 0.0 for curve in curves], [curve.rates for curve in curves]
    )

    def of_points(values: Sequence[float | None], unknown: float) -> np.ndarray:
        """float64 [points of all curves], from a value of each curve."""
        return np.repeat(
            [unknown if value is None else value for value in values], [len(curve.steps) for curve in curves]
        )

    known = of_points([curve.base_forward_area for curve in curves], np.nan)
    base_annealing_area = of_points([curve.base_annealing_area for curve in curves], 0.0)
    domain_share = of_points([curve.domain_share for curve in curves], 1.0)
    millions = of_points([curve.model_size for curve in curves], 1e6) / 1e6

    def model(values: np.ndarray) -> np.ndarray:
        floor, amplitude, exponent, base_gain, gain, shift_size, shift_speed, shift_exponent, bend = values[:9]
        base_area, decay, rate_power, gain_bend, injection_gain, injection_exponent, *size_terms = values[9:]
        kept = injection_factor(1 - domain_share, injection_gain, injection_exponent)
        floor, base_gain, gain = at_size(millions, floor, base_gain, gain, *size_terms)
        return continual_law(
            forward,
            annealing.at(decay, rate_power),
            np.where(np.isnan(known), base_area, known),
            base_annealing_area,
            floor,
            amplitude,
            exponent,
            base_gain,
            gain * np.exp(gain_bend * (1 - domain_share)),
            shift_size * kept,
            shift_speed,
            shift_exponent,
            domain_share,
            bend,
        )

    return model


def _held_of_continual(curves: Sequence[Curve]) -> dict[str, float]:
    """What these curves cannot tell, at the value that leaves it out of the law.

    The gain of a base's annealing where all begin from one base (it is in the floor), the bend where all have one
    replay ratio, S1 of the base where it is recorded, the terms of size where all have one size, the decay where
    a curve is long enough to show it, and what is fitted on demand alone: the weight of the rate in S2, the effect of
    replay on the gain, and the injection factor.
    """
    held = ON_DEMAND | held_decay(curves)
    if len({curve.base_annealing_area for curve in curves}) == 1:
        held["base_gain"] = 0.0
    if len({curve.domain_share for curve in curves}) == 1:
        held["bend"] = 0.0
    if all(curve.base_forward_area is not None for curve in curves):
        held["base_forward_area"] = float(np.mean([curve.base_forward_area or 0.0 for curve in curves]))
    sizes = len({curve.model_size for curve in curves})
    if sizes == 1:
        held |= SIZE_TERMS
    elif sizes == 2:
        held["size_exponent"] = SIZE_TERMS["size_exponent"]
    return held


CONTINUAL = Law(
    name="continual",
    parameters=(
        FLOOR,
        AMPLITUDE,
        EXPONENT,
        Parameter("base_gain", 0.0, 1e4, linear=True),
        GAIN,
        Parameter("shift_size", -50.0, 50.0, linear=True),
        Parameter("shift_speed", 1e-3, 1e6, (1.0, 1e4), scale="log"),
        Parameter("shift_exponent", 0.01, 5.0, (0.05, 1.0), scale="log"),
        Parameter("bend", -300.0, 50.0, (-20.0, 5.0)),
        Parameter("base_forward_area", 1e-6, 1e3, (0.1, 10.0), scale="log"),
        DECAY,
        RATE_POWER,
        Parameter("gain_bend", -5.0, 5.0, (-0.5, 0.5)),
        Parameter("injection_gain", 1e-3, 1e5, (10.0, 1000.0), scale="log"),
        Parameter("injection_exponent", 0.0, 5.0, (0.1, 1.0)),
        Parameter("size_amplitude", 0.0, 1e3, linear=True),
        Parameter("size_exponent", 0.01, 2.0, (0.05, 0.5), scale="log"),
        Parameter("base_gain_growth", -1.0, 1.0, (0.0, 0.3)),
        Parameter("gain_growth", -1.0, 1.0, (0.0, 0.3)),
    ),
    exact=lambda curve: _continual([curve]),
    quick=_continual,
    held=_held_of_continual,
)


LAWS = {law.name: law for law in (MULTI_POWER, ANNEALING, RATE_WEIGHTED, CONTINUAL)}
