"""The laws as fit.py takes them: what is fitted between which bounds, and how a curve becomes predictions.

A model is a function from the values of a law's parameters, in order, to the loss at the points of one curve.
`exact` takes every update by itself; `quick` may take neighbouring changes of the rate together, for the search.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from megatron_cpt.config.schedule import ANNEALING_DECAY
from megatron_cpt.scaling_law.areas import annealing_areas, forward_areas, rate_drops
from megatron_cpt.scaling_law.laws import annealing_law, continual_law, multi_power_law
from megatron_cpt.scaling_law.points import Curve

Model = Callable[[np.ndarray], np.ndarray]

GROUPED_UPDATES = 32
"""Changes of the rate taken together in the search for the Multi-Power Law's parameters."""


@dataclass(frozen=True)
class Parameter:
    """One fitted constant."""

    name: str
    low: float
    """Bound."""
    high: float
    """Bound."""
    start: tuple[float, float] = (0.0, 0.0)
    """Starts are drawn from here; a linear parameter needs none."""
    linear: bool = False
    """The law is linear in it, the other linear ones being what they may."""
    logarithmic: bool = False
    """Searched on a logarithmic scale; it is positive."""
    prior: tuple[float, float] | None = None
    """Centre, and width on the scale of the search: decides where the curves do not."""


@dataclass(frozen=True)
class Law:
    """A law that can be fitted to curves."""

    name: str
    """As users type it."""
    parameters: tuple[Parameter, ...]
    exact: Callable[[Curve], Model]
    quick: Callable[[Curve], Model]
    fixed: dict[str, float] = field(default_factory=dict)
    """Parameters held at a value unless the fit says otherwise."""


FLOOR = Parameter("floor", 0.0, 20.0, linear=True)
AMPLITUDE = Parameter("amplitude", 0.0, 100.0, linear=True)
EXPONENT = Parameter("exponent", 0.02, 3.0, (0.1, 1.0), logarithmic=True)
GAIN = Parameter("gain", 0.0, 1e4, linear=True)
DECAY = Parameter("decay", 0.5, 0.99999, (0.99, 0.9995))
RATE_POWER = Parameter("rate_power", 0.0, 2.0, (0.0, 0.5))


def _annealing(curve: Curve) -> Model:
    forward = forward_areas(curve.rates)[curve.steps - 1]
    annealing = _AnnealingAreas(curve, None, after_warmup(curve.rates))

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


def _continual(curve: Curve) -> Model:
    forward = forward_areas(curve.rates)[curve.steps - 1]
    annealing = _AnnealingAreas(curve, curve.base_final_rate or 0.0, curve.rates)
    known = curve.base_forward_area

    def model(values: np.ndarray) -> np.ndarray:
        floor, amplitude, exponent, base_gain, gain, size, speed, shift_exponent, bend, base_area, decay = values
        return continual_law(
            forward,
            annealing.at(decay, 0.0),
            base_area if known is None else known,
            curve.base_annealing_area or 0.0,
            floor,
            amplitude,
            exponent,
            base_gain,
            gain,
            size,
            speed,
            shift_exponent,
            curve.domain_share,
            bend,
        )

    return model


class _AnnealingAreas:
    """S2 at the points of a curve, remembered while decay and rate power stay the same."""

    def __init__(self, curve: Curve, previous_rate: float | None, rates: np.ndarray) -> None:
        self._curve = curve
        self._rates = rates
        self._previous_rate = previous_rate
        self._key: tuple[complex, complex] | None = None
        self._areas = np.empty(0)

    def at(self, decay: complex, rate_power: complex) -> np.ndarray:
        """complex128 or float64 [points]."""
        key = (_real_if_real(decay), _real_if_real(rate_power))
        if key != self._key:
            areas = annealing_areas(self._rates, key[0], self._previous_rate, key[1])
            self._key, self._areas = key, areas[self._curve.steps - 1]
        return self._areas


def _real_if_real(value: complex) -> complex:
    return float(np.real(value)) if np.imag(value) == 0 else value


ANNEALING = Law(
    name="annealing",
    parameters=(FLOOR, AMPLITUDE, EXPONENT, GAIN, DECAY, RATE_POWER),
    exact=_annealing,
    quick=_annealing,
    fixed={"decay": ANNEALING_DECAY, "rate_power": 0.0},
)

RATE_WEIGHTED = Law(
    name="annealing-rate-weighted",
    parameters=(FLOOR, AMPLITUDE, EXPONENT, GAIN, DECAY, RATE_POWER),
    exact=_annealing,
    quick=_annealing,
    fixed={"decay": ANNEALING_DECAY},
)

# The priors are near what arXiv:2503.12811 found at each of three sizes (C 2.03 to 2.13, beta 0.58 to 0.60, gamma
# 0.64 to 0.66), and wide: two or three schedules leave a valley between the three along which the fit hardly changes.
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
)

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
    ),
    exact=_continual,
    quick=_continual,
    fixed={"decay": ANNEALING_DECAY},
)

LAWS = {law.name: law for law in (MULTI_POWER, ANNEALING, RATE_WEIGHTED, CONTINUAL)}
