"""What a law is to fit.py: parameters between bounds, and a model that turns their values into losses of a curve.

What a law is fitted to is a curve (points.py) or a table of final losses (table.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from megatron_cpt.config.schedule import ANNEALING_DECAY
from megatron_cpt.scaling_law.areas import annealing_areas
from megatron_cpt.scaling_law.points import Curve


class Measured(Protocol):
    """A curve or a table."""

    @property
    def losses(self) -> np.ndarray:
        """float64 [points or rows]: nats per token."""


Observed = TypeVar("Observed", bound=Measured)

Model = Callable[[np.ndarray], np.ndarray]
"""From the values of a law's parameters, in order, to the loss at the points of one curve or the rows of one table."""


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
class Law(Generic[Observed]):
    """A law that can be fitted to curves, or to tables."""

    name: str
    """As users type it."""
    parameters: tuple[Parameter, ...]
    exact: Callable[[Observed], Model]
    """Takes every update by itself."""
    quick: Callable[[Observed], Model]
    """May take neighbouring changes of the rate together, for the search."""
    held: Callable[[Sequence[Observed]], dict[str, float]]
    """What a fit to these curves holds unless it is told otherwise: parameters that they cannot tell, or that are
    fitted on demand alone, and their values."""


def held_decay(curves: Sequence[Curve]) -> dict[str, float]:
    """The decay of 0.999, held where a curve is long enough to show it, 2 / (1 - 0.999) = 2,000 updates."""
    short = max(int(curve.steps[-1]) for curve in curves) < 2 / (1 - ANNEALING_DECAY)
    return {} if short else {"decay": ANNEALING_DECAY}


FLOOR = Parameter("floor", 0.0, 20.0, linear=True)
AMPLITUDE = Parameter("amplitude", 0.0, 100.0, linear=True)
EXPONENT = Parameter("exponent", 0.02, 3.0, (0.1, 1.0), logarithmic=True)
GAIN = Parameter("gain", 0.0, 1e4, linear=True)
DECAY = Parameter("decay", 0.5, 0.99999, (0.99, 0.9995))
RATE_POWER = Parameter("rate_power", 0.0, 2.0, (0.0, 0.5))


class AnnealingAreas:
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
