"""The law of continual pretraining as fit.py takes it: over schedules, replay ratios, bases and model sizes."""

from collections.abc import Sequence

import numpy as np

from megatron_cpt.scaling_law.areas import forward_areas
from megatron_cpt.scaling_law.laws import at_size, continual_law, injection_factor
from megatron_cpt.scaling_law.parameters import (
    AMPLITUDE,
    DECAY,
    EXPONENT,
    FLOOR,
    GAIN,
    RATE_POWER,
    AnnealingAreas,
    Law,
    Model,
    Parameter,
    held_decay,
)
from megatron_cpt.scaling_law.points import Curve

ON_DEMAND = {"rate_power": 0.0, "gain_bend": 0.0, "injection_gain": 0.0, "injection_exponent": 0.0}
"""Terms that are fitted on demand alone, at the value that leaves them out."""
SIZE_TERMS = {"size_amplitude": 0.0, "size_exponent": 0.19, "base_gain_growth": 0.0, "gain_growth": 0.0}
"""What the terms of arXiv:2505.07796 Eq. 7 are held at: no dependence on size; the exponent is what it prints."""


def _continual(curve: Curve) -> Model:
    forward = forward_areas(curve.rates)[curve.steps - 1]
    annealing = AnnealingAreas(curve, curve.base_final_rate or 0.0, curve.rates)
    known = curve.base_forward_area
    millions = 1.0 if curve.model_size is None else curve.model_size / 1e6

    def model(values: np.ndarray) -> np.ndarray:
        floor, amplitude, exponent, base_gain, gain, shift_size, shift_speed, shift_exponent, bend = values[:9]
        base_area, decay, rate_power, gain_bend, injection_gain, injection_exponent, *size_terms = values[9:]
        kept = injection_factor(1 - curve.domain_share, injection_gain, injection_exponent)
        floor, base_gain, gain = at_size(millions, floor, base_gain, gain, *size_terms)
        return continual_law(
            forward,
            annealing.at(decay, rate_power),
            base_area if known is None else known,
            curve.base_annealing_area or 0.0,
            floor,
            amplitude,
            exponent,
            base_gain,
            gain * np.exp(gain_bend * (1 - curve.domain_share)),
            shift_size * kept,
            shift_speed,
            shift_exponent,
            curve.domain_share,
            bend,
        )

    return model


def held_of_continual(curves: Sequence[Curve]) -> dict[str, float]:
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
        Parameter("shift_speed", 1e-3, 1e6, (1.0, 1e4), logarithmic=True),
        Parameter("shift_exponent", 0.01, 5.0, (0.05, 1.0), logarithmic=True),
        Parameter("bend", -300.0, 50.0, (-20.0, 5.0)),
        Parameter("base_forward_area", 1e-6, 1e3, (0.1, 10.0), logarithmic=True),
        DECAY,
        RATE_POWER,
        Parameter("gain_bend", -5.0, 5.0, (-0.5, 0.5)),
        Parameter("injection_gain", 0.0, 1e5, (10.0, 1000.0)),
        Parameter("injection_exponent", 0.0, 5.0, (0.1, 1.0)),
        Parameter("size_amplitude", 0.0, 1e3, linear=True),
        Parameter("size_exponent", 0.01, 2.0, (0.05, 0.5), logarithmic=True),
        Parameter("base_gain_growth", -1.0, 1.0, (0.0, 0.3)),
        Parameter("gain_growth", -1.0, 1.0, (0.0, 0.3)),
    ),
    exact=_continual,
    quick=_continual,
    held=held_of_continual,
)
