"""The laws of one stretch of training as fit.py takes them: annealing law, its rate-weighted form, Multi-Power Law."""

import numpy as np

from megatron_cpt.scaling_law.areas import forward_areas, rate_drops
from megatron_cpt.scaling_law.laws import annealing_law, multi_power_law
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

GROUPED_UPDATES = 32
"""Changes of the rate taken together in the search for the Multi-Power Law's parameters."""


def _annealing(curve: Curve) -> Model:
    return _annealing_by(curve, after_warmup(curve.rates))


def annealing_with_warmup(curve: Curve) -> Model:
    """The annealing law with the rises of the warm-up counting negative in S2."""
    return _annealing_by(curve, curve.rates)


def _annealing_by(curve: Curve, annealed: np.ndarray) -> Model:
    forward = forward_areas(curve.rates)[curve.steps - 1]
    annealing = AnnealingAreas(curve, None, annealed)

    def model(values: np.ndarray) -> np.ndarray:
        floor, amplitude, exponent, gain, decay, power = values
        return annealing_law(forward, annealing.at(decay, power), floor, amplitude, exponent, gain)

    return model


def after_warmup(rates: np.ndarray) -> np.ndarray:
    """Rates whose first rise is level: S2 of pretraining counts from the end of the warm-up."""
    peak = int(np.argmax(np.append(np.diff(rates) < 0, True)))
    return np.concatenate([np.full(peak, rates[peak]), rates[peak:]])


def _multi_power(curve: Curve) -> Model:
    return lambda values: multi_power_law(curve.rates, curve.steps, *values)


def _multi_power_grouped(curve: Curve) -> Model:
    areas = np.cumsum(curve.rates)[curve.steps - 1]
    drops, after, before = rate_drops(curve.rates, GROUPED_UPDATES)
    since = np.maximum(areas[:, None] - before, 0.0)
    log_after = np.log(after)
    remembered: dict[bytes, np.ndarray] = {}

    def reduction(speed: complex, drop_exponent: complex, rate_exponent: complex) -> np.ndarray:
        """The sum over changes, and its derivatives: of real parts in full, of an imaginary part to first order."""
        point = np.real([speed, drop_exponent, rate_exponent])
        key = point.tobytes()
        if key not in remembered:
            remembered.clear()
            remembered[key] = _reduction_and_slopes(since, drops, log_after, *point)
        value, *slopes = remembered[key]
        tilt = np.imag([speed, drop_exponent, rate_exponent])
        return value + 1j * (tilt @ np.stack(slopes)) if tilt.any() else value

    def model(values: np.ndarray) -> np.ndarray:
        floor, amplitude, exponent, size, speed, drop_exponent, rate_exponent = values
        return floor + amplitude * areas**-exponent - size * reduction(speed, drop_exponent, rate_exponent)

    return model


def _reduction_and_slopes(
    since: np.ndarray,
    drops: np.ndarray,
    log_after: np.ndarray,
    speed: float,
    drop_exponent: float,
    rate_exponent: float,
) -> np.ndarray:
    """sum_k drop_k (1 - u^-beta), u = 1 + C rate_k^-gamma S_k, and its slopes in C, beta, gamma: [4, points]."""
    grown = speed * np.exp(-rate_exponent * log_after) * since
    log_base = np.log1p(grown)
    left = np.exp(-drop_exponent * log_base)
    by_growth = drop_exponent * left / (1 + grown) * grown
    return np.stack(
        [
            (1 - left) @ drops,
            by_growth @ drops / speed,
            (left * log_base) @ drops,
            by_growth @ (drops * -log_after),
        ]
    )


ANNEALING = Law(
    name="annealing",
    parameters=(FLOOR, AMPLITUDE, EXPONENT, GAIN, DECAY, RATE_POWER),
    exact=_annealing,
    quick=_annealing,
    held=lambda curves: {"rate_power": 0.0} | held_decay(curves),
)

RATE_WEIGHTED = Law(
    name="annealing-rate-weighted",
    parameters=(FLOOR, AMPLITUDE, EXPONENT, GAIN, DECAY, RATE_POWER),
    exact=_annealing,
    quick=_annealing,
    held=held_decay,
)

# The priors are near what arXiv:2503.12811 found at each of three sizes (C 2.03 to 2.13, beta 0.58 to 0.60, gamma
# 0.64 to 0.66): two or three schedules leave a valley between the three along which the fit hardly changes, and
# schedules left out are predicted far worse without (method.py).
MULTI_POWER = Law(
    name="multi-power",
    parameters=(
        FLOOR,
        AMPLITUDE,
        EXPONENT,
        Parameter("drop_size", 0.0, 1e6, linear=True),
        Parameter("drop_speed", 1e-3, 1e4, (0.1, 30.0), logarithmic=True, prior=(2.0, 1.0)),
        Parameter("drop_exponent", 0.02, 5.0, (0.1, 1.5), logarithmic=True, prior=(0.6, 0.5)),
        Parameter("rate_exponent", 0.0, 2.0, (0.1, 1.0), prior=(0.6, 0.2)),
    ),
    exact=_multi_power,
    quick=_multi_power_grouped,
    held=lambda _: {},
)
