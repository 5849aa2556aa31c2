"""Laws of the loss, each a plain function as its paper has it, and as the fit takes it.

Along a learning-rate schedule: the annealing law (arXiv:2408.11029), the law of continual pretraining
(arXiv:2505.07796), the Multi-Power Law (arXiv:2503.12811). At the end of training: laws over model size, tokens and
mixture. `forward_areas` and `annealing_areas` are S1 and S2, one value per update.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from scipy.signal import lfilter

from megatron_cpt.config.schedule import ANNEALING_DECAY
from megatron_cpt.scaling_law.curves import Curve


class Measured(Protocol):
    """A curve or a table."""

    @property
    def losses(self) -> np.ndarray:
        """float64 [points or rows]: nats per token."""


Observed = TypeVar("Observed", bound=Measured)

Scale = Literal["as it is", "log", "log of 1 - x"]
"""`log`: of a positive parameter. `log of 1 - x`: of a decay an update, whose time constant is 1 / (1 - x) updates."""

Number = TypeVar("Number", float, complex, np.ndarray)

_TINY = 1e-30
"""Stands for 0 under a logarithm."""

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
    scale: Scale = "as it is"
    """On which it is searched and judged: that on which it acts."""
    prior: tuple[float, float] | None = None
    """Centre, and width on the scale of the search: decides where the curves do not."""

    def inner(self, value: float) -> float:
        """A value on the scale of the search."""
        if self.scale == "as it is":
            return value
        return float(np.log(max(value if self.scale == "log" else 1 - value, _TINY)))

    def value(self, inner: Number) -> Number:
        """The value at a place on the scale of the search; also of complex places."""
        if self.scale == "as it is":
            return inner
        return np.exp(inner) if self.scale == "log" else 0.0 - np.expm1(inner)  # a decay of 0 is not printed as -0

    def slope(self, inner: float) -> float:
        """By how much the value changes with its place on the scale of the search, either way."""
        return 1.0 if self.scale == "as it is" else float(np.exp(inner))

    @property
    def ends(self) -> tuple[float, float]:
        """The bounds on the scale of the search, rising."""
        low, high = sorted((self.inner(self.low), self.inner(self.high)))
        return low, high

    @property
    def start_ends(self) -> tuple[float, float]:
        """Where starts are drawn from, on the scale of the search, rising."""
        low, high = sorted((self.inner(self.start[0]), self.inner(self.start[1])))
        return low, high

    def size(self, value: float) -> float:
        """What an error on the scale of the search is compared with, to tell whether the value is known.

        1 on a logarithmic scale, where errors are relative. A linear parameter has its own size. Any other may be
        known to be 0: it has its size, or half of where starts are drawn from if that is larger.
        """
        if self.scale != "as it is":
            return 1.0
        return abs(value) if self.linear else max(abs(value), (self.start[1] - self.start[0]) / 2)


@dataclass(frozen=True)
class Law(Generic[Observed]):
    """A law that can be fitted to curves, or to tables."""

    name: str
    """As users type it."""
    parameters: tuple[Parameter, ...]
    exact: Callable[[Observed], Model]
    """Takes every update by itself."""
    quick: Callable[[Sequence[Observed]], Model]
    """Of several, one after another, for the search; may take neighbouring changes of the rate together."""
    held: Callable[[Sequence[Observed]], dict[str, float]]
    """What a fit to these curves holds unless it is told otherwise: parameters that they cannot tell, or that are
    fitted on demand alone, and their values."""


def held_decay(curves: Sequence[Curve]) -> dict[str, float]:
    """The decay of 0.999, held where a curve is long enough to show it, 2 / (1 - 0.999) = 2,000 updates."""
    short = max(int(curve.steps[-1]) for curve in curves) < 2 / (1 - ANNEALING_DECAY)
    return {} if short else {"decay": ANNEALING_DECAY}


FLOOR = Parameter("floor", 0.0, 20.0, linear=True)
AMPLITUDE = Parameter("amplitude", 0.0, 100.0, linear=True)
EXPONENT = Parameter("exponent", 0.02, 3.0, (0.1, 1.0), scale="log")
GAIN = Parameter("gain", 0.0, 1e4, linear=True)
DECAY = Parameter("decay", 0.0, 0.99999, (0.0, 0.99999), scale="log of 1 - x")
DROP_SIZE = Parameter("drop_size", 0.0, 1e6, linear=True)
RATE_POWER = Parameter("rate_power", 0.0, 2.0, (0.0, 0.5))


def one_by_one(model_of: Callable[[Observed], Model]) -> Callable[[Sequence[Observed]], Model]:
    """The model of several, each computed by itself."""

    def together(observed: Sequence[Observed]) -> Model:
        models = [model_of(one) for one in observed]
        return lambda values: np.concatenate([model(values) for model in models])

    return together


class AnnealingAreas:
    """S2 at the points of curves, remembered while decay and rate power stay the same.

    Curves of the same rates share the sum.
    """

    def __init__(
        self, curves: Sequence[Curve], previous_rates: Sequence[float | None], rates: Sequence[np.ndarray]
    ) -> None:
        schedules: dict[tuple[float | None, bytes], int] = {}
        self._schedules: list[tuple[np.ndarray, float | None]] = []
        self._of_curves: list[tuple[int, np.ndarray]] = []
        for curve, previous, of_curve in zip(curves, previous_rates, rates, strict=True):
            key = (previous, of_curve.tobytes())
            if key not in schedules:
                schedules[key] = len(schedules)
                self._schedules.append((of_curve, previous))
            self._of_curves.append((schedules[key], curve.steps - 1))
        self._key: tuple[complex, complex] | None = None
        self._areas = np.empty(0)

    def at(self, decay: complex, rate_power: complex) -> np.ndarray:
        """complex128 or float64 [points of all curves]."""
        key = (_real_if_real(decay), _real_if_real(rate_power))
        if key != self._key:
            sums = [annealing_areas(rates, key[0], previous, key[1]) for rates, previous in self._schedules]
            self._areas = np.concatenate([sums[schedule][places] for schedule, places in self._of_curves])
            self._key = key
        return self._areas


def _real_if_real(value: complex) -> complex:
    return float(np.real(value)) if np.imag(value) == 0 else value


_GROUPED_UPDATES = 32
"""Changes of the rate taken together in the search for the Multi-Power Law's parameters."""


def _annealing(curves: Sequence[Curve]) -> Model:
    return _annealing_by(curves, [_after_warmup(curve.rates) for curve in curves])


def annealing_with_warmup(curve: Curve) -> Model:
    """The annealing law with the rises of the warm-up counting negative in S2."""
    return _annealing_by([curve], [curve.rates])


def _annealing_by(curves: Sequence[Curve], annealed: Sequence[np.ndarray]) -> Model:
    forward = np.concatenate([forward_areas(curve.rates)[curve.steps - 1] for curve in curves])
    annealing = AnnealingAreas(curves, [None] * len(curves), annealed)

    def model(values: np.ndarray) -> np.ndarray:
        floor, amplitude, exponent, gain, decay, power = values
        return annealing_law(forward, annealing.at(decay, power), floor, amplitude, exponent, gain)

    return model


def _after_warmup(rates: np.ndarray) -> np.ndarray:
    """Rates whose first rise is level: S2 of pretraining counts from the end of the warm-up."""
    peak = int(np.argmax(np.append(np.diff(rates) < 0, True)))
    return np.concatenate([np.full(peak, rates[peak]), rates[peak:]])


def _multi_power(curve: Curve) -> Model:
    return lambda values: multi_power_law(curve.rates, curve.steps, *values)


def _multi_power_grouped(curve: Curve) -> Model:
    areas = np.cumsum(curve.rates)[curve.steps - 1]
    drops, after, before = rate_drops(curve.rates, _GROUPED_UPDATES)
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
    exact=lambda curve: _annealing([curve]),
    quick=_annealing,
    held=lambda curves: {"rate_power": 0.0} | held_decay(curves),
)

RATE_WEIGHTED = Law(
    name="annealing-rate-weighted",
    parameters=(FLOOR, AMPLITUDE, EXPONENT, GAIN, DECAY, RATE_POWER),
    exact=lambda curve: _annealing([curve]),
    quick=_annealing,
    held=held_decay,
)

# The priors are near what arXiv:2503.12811 found at each of three sizes (C 2.03 to 2.13, beta 0.58 to 0.60, gamma
# 0.64 to 0.66): two or three schedules leave a valley between the three along which the fit hardly changes, and
# schedules left out are predicted far worse without (problem.py).
MULTI_POWER = Law(
    name="multi-power",
    parameters=(
        FLOOR,
        AMPLITUDE,
        EXPONENT,
        DROP_SIZE,
        Parameter("drop_speed", 1e-3, 1e4, (0.1, 30.0), scale="log", prior=(2.0, 1.0)),
        Parameter("drop_exponent", 0.02, 5.0, (0.1, 1.5), scale="log", prior=(0.6, 0.5)),
        Parameter("rate_exponent", 0.0, 2.0, (0.1, 1.0), prior=(0.6, 0.2)),
    ),
    exact=_multi_power,
    quick=one_by_one(_multi_power_grouped),
    held=lambda _: {},
)


def domain_pretraining_law(
    model_size: float | np.ndarray,
    tokens: float | np.ndarray,
    share: float | np.ndarray,
    floor: float,
    size_amplitude: float,
    size_exponent: float,
    token_amplitude: float,
    share_power: float,
    token_exponent: float,
    share_amplitude: float,
    share_offset: float,
    share_exponent: float,
) -> np.ndarray:
    """L = E + A / N^alpha + B r^eta / D^beta + C / (r + epsilon)^gamma, the D-CPT law (arXiv:2406.01375).

    Fitted for each validation set by itself; `share` is that set's own data among the training tokens (general or
    domain). `model_size` N and `tokens` D in any unit, which the amplitudes then have too.
    """
    by_size = size_amplitude / np.asarray(model_size) ** size_exponent
    by_tokens = token_amplitude * np.asarray(share) ** share_power / np.asarray(tokens) ** token_exponent
    return floor + by_size + by_tokens + share_amplitude / (np.asarray(share) + share_offset) ** share_exponent


def forgetting_law(
    model_size: float | np.ndarray,
    domain_tokens: float | np.ndarray,
    injected_share: float | np.ndarray,
    start: float,
    amplitude: float,
    exponent: float,
    injection_gain: float,
    size_exponent: float,
) -> np.ndarray:
    """L = L0 + A D^beta / ((1 + B p) N)^alpha, the loss on the old data (arXiv:2502.06042).

    Args:
        model_size: N, parameters.
        domain_tokens: D, unique tokens of the new data.
        injected_share: p, share of old data among the training tokens.
        start: L0, the loss before, nats.
        amplitude, exponent, injection_gain, size_exponent: A, beta, B, alpha.
    """
    capacity = (1 + injection_gain * np.asarray(injected_share)) * np.asarray(model_size)
    return start + amplitude * np.asarray(domain_tokens) ** exponent / capacity**size_exponent


def mixing_law(shares: np.ndarray, floor: float, scale: float, slopes: np.ndarray) -> np.ndarray:
    """L = c + k exp(sum_j t_j r_j), the data mixing law (arXiv:2403.16952).

    Args:
        shares: float64 [mixtures, sources], each row adding up to 1.
        floor, scale: c and k, nats.
        slopes: float64 [sources], t.

    Returns:
        float64 [mixtures].
    """
    return floor + scale * np.exp(shares @ slopes)


def critical_mixture_share(tokens: float | np.ndarray, amplitude: float, exponent: float, offset: float) -> np.ndarray:
    """R = a T^s + b, the largest share of new data whose general loss still comes back in time (arXiv:2407.17467).

    `tokens` is T in units of 0.2B tokens, as the printed constants have it. The result is cut to [0, 1].
    """
    return np.clip(amplitude * np.asarray(tokens, dtype=float) ** exponent + offset, 0.0, 1.0)


def other_set_loss(
    old_loss: float | np.ndarray, new_loss: float | np.ndarray, old_weight: float, new_weight: float
) -> np.ndarray:
    """L = w1 L_old + w2 L_new, the loss on a set that is neither (arXiv:2505.07796 Eq. 6).

    The weights belong to the data sets alone, whatever the schedule; they need not add up to 1.
    """
    return old_weight * np.asarray(old_loss) + new_weight * np.asarray(new_loss)


_CELLS_AT_ONCE = 4_000_000
"""Of the [points, drops] table of the Multi-Power Law: 32 MB."""


def annealing_law(
    forward_area: np.ndarray, annealing_area: np.ndarray, floor: float, amplitude: float, exponent: float, gain: float
) -> np.ndarray:
    """L = L0 + A S1^-alpha - C S2 (arXiv:2408.11029; arXiv:2505.07796 Eq. 1, with another S2 its Eq. 9).

    Args:
        forward_area: S1, areas.forward_areas. Any shape; the loss has the same.
        annealing_area: S2, areas.annealing_areas.
        floor: L0, nats.
        amplitude: A, nats at S1 = 1.
        exponent: alpha.
        gain: C, nats per unit of S2.
    """
    return floor + amplitude * forward_area**-exponent - gain * annealing_area


def shift(forward_area: np.ndarray, size: float, speed: float, exponent: float) -> np.ndarray:
    """B (1 - (1 + E S1)^-beta), what a change of the data does to the loss (arXiv:2505.07796 Eq. 3).

    Args:
        forward_area: S1 since the data changed.
        size: B, nats: positive on the old data, negative on the new.
        speed: E, per unit of S1.
        exponent: beta.
    """
    return size * (1 - (1 + speed * forward_area) ** -exponent)


def replay_factor(domain_share: float | np.ndarray, bend: complex) -> np.ndarray:
    """(1 - e^(-a r)) / (1 - e^(-a)), the part of the shift that remains at a share r of new data: 0 at 0, 1 at 1.

    Both printed factors of arXiv:2505.07796 Eq. 8, normalised: 1 - e^(-a r) is a > 0, e^(a r) - 1 is a < 0. With
    a strongly negative the first per cents of replay take away most of the shift, as arXiv:2403.08763 measured.
    At a = 0 it is r itself.
    """
    share = np.asarray(domain_share)
    if abs(bend) < 1e-6:
        return share * (1 + bend * (1 - share) / 2)
    if np.real(bend) < 0:  # the same fraction, multiplied through by e^a, which does not overflow
        return np.exp(bend * (1 - share)) * np.expm1(bend * share) / np.expm1(bend)
    return np.expm1(-bend * share) / np.expm1(-bend)


def injection_factor(replay_ratio: float | np.ndarray, gain: complex, exponent: complex) -> np.ndarray:
    """(1 + B p)^-nu, the part of the shift that remains with a share p of old text among the tokens.

    The effective capacity of arXiv:2502.06042, 1 + B p, put to the shift of arXiv:2505.07796 Eq. 3: unlike
    `replay_factor` it falls steeply over the first per cents and slowly after. A gain B or exponent nu of 0 gives 1.
    """
    return (1 + gain * np.asarray(replay_ratio)) ** -exponent


def continual_law(
    forward_area: np.ndarray,
    annealing_area: np.ndarray,
    base_forward_area: float | np.ndarray,
    base_annealing_area: float | np.ndarray,
    floor: float | np.ndarray,
    amplitude: float,
    exponent: float,
    base_gain: float | np.ndarray,
    gain: float | np.ndarray,
    shift_size: float,
    shift_speed: float,
    shift_exponent: float,
    domain_share: float | np.ndarray = 1.0,
    bend: complex = 0.0,
) -> np.ndarray:
    """The loss during continual pretraining (arXiv:2505.07796 Eq. 4, and Eq. 8 for the replay).

    L = L0 + A (S1pt + S1cpt)^-alpha - C1 S2pt - C2 S2cpt + B (1 - (1 + E S1cpt)^-beta) f(r), with constants of its
    own for each validation set. S2pt stands still once the data have changed; S2cpt counts from the base's final
    rate. A base of unknown history has S1pt as a parameter and S2pt in L0, and is taken to end at a rate of 0.

    Args:
        forward_area, annealing_area: S1cpt and S2cpt, of the updates on the new data.
        base_forward_area, base_annealing_area: S1pt and S2pt, of the base's pretraining.
        floor, amplitude, exponent: L0 (nats), A (nats), alpha.
        base_gain, gain: C1 and C2, nats per unit of S2.
        shift_size, shift_speed, shift_exponent: B (nats), E, beta, as in `shift`.
        domain_share, bend: share of new data among the training tokens, and a of `replay_factor`.
    """
    moved = shift(forward_area, shift_size, shift_speed, shift_exponent) * replay_factor(domain_share, bend)
    total = base_forward_area + forward_area
    return floor + amplitude * total**-exponent - base_gain * base_annealing_area - gain * annealing_area + moved


def at_size(
    model_size: float | np.ndarray,
    floor: float,
    base_gain: float,
    gain: float,
    size_amplitude: float,
    size_exponent: float,
    base_gain_growth: float,
    gain_growth: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L0 + F N^-gamma3, C1 N^gamma1 and C2 N^gamma2: what of `continual_law` depends on size (arXiv:2505.07796 Eq. 7).

    The shift does not depend on it.

    Args:
        model_size: N, parameters without embeddings, in millions as the printed constants have it.
        floor, base_gain, gain: L0 (nats), C1 and C2 (nats per unit of S2), at the size where the powers are 1.
        size_amplitude, size_exponent: F (nats), gamma3.
        base_gain_growth, gain_growth: gamma1, gamma2.
    """
    size = np.asarray(model_size, dtype=float)
    return floor + size_amplitude * size**-size_exponent, base_gain * size**base_gain_growth, gain * size**gain_growth


def multi_power_law(
    rates: np.ndarray,
    steps: np.ndarray,
    floor: float,
    amplitude: float,
    exponent: float,
    drop_size: float,
    drop_speed: float,
    drop_exponent: float,
    rate_exponent: float,
) -> np.ndarray:
    """L = L0 + A S1^-alpha - B sum_k (rate_(k-1) - rate_k) G(rate_k^-gamma S_k), G(x) = 1 - (1 + C x)^-beta.

    arXiv:2503.12811. S_k is the sum of the rates from update k to the point. The warm-up is part of the sum, its
    rises counting negative, as in the paper's own code: L0 depends on it.

    Args:
        rates: float64 [updates], the rate of each update from the first on.
        steps: int [points], updates done where the loss is wanted, at least 1.
        floor, amplitude, exponent: L0 (nats), A (nats), alpha.
        drop_size, drop_speed, drop_exponent, rate_exponent: B (nats per unit of rate), C, beta, gamma.

    Returns:
        float64 [points].
    """
    areas = np.cumsum(rates)[steps - 1]
    drops, after, before = rate_drops(rates)
    scale = drop_speed * after**-rate_exponent
    reduction = np.empty(len(steps))
    rows = max(1, _CELLS_AT_ONCE // max(1, len(drops)))
    for first in range(0, len(steps), rows):
        since = np.maximum(areas[first : first + rows, None] - before, 0.0)
        reduction[first : first + rows] = (1 - (1 + scale * since) ** -drop_exponent) @ drops
    return floor + amplitude * areas**-exponent - drop_size * reduction


_LEAST_RATE = 1e-30
"""Stands for a rate of 0 where a power of the rate is wanted."""


def forward_areas(rates: np.ndarray) -> np.ndarray:
    """S1 after each update (arXiv:2408.11029; arXiv:2505.07796 Eq. 1): float64 [updates] of float64 [updates]."""
    return np.cumsum(rates)


def annealing_areas(
    rates: np.ndarray,
    decay: complex = ANNEALING_DECAY,
    previous_rate: float | None = None,
    rate_power: complex = 0.0,
) -> np.ndarray:
    """S2 after each update: the running sum of m_i rate_i^power, where m_i = decay m_(i-1) + rate_(i-1) - rate_i.

    With a power of 0 it is S2 of arXiv:2408.11029 (arXiv:2505.07796 Eq. 1); with 0.1 or 0.2 that of
    arXiv:2505.07796 Eq. 9, which stands still where the rate is 0. A rate that rises counts negative. The decay
    is per update, 0.999 in both papers: half of a change of the rate has its effect after 693 updates.

    Args:
        rates: float64 [updates], the rate of each update.
        decay: what is left of a change of the rate after one update.
        previous_rate: the rate before the first update (a parent's final rate); None: no change at the first.
        rate_power: exponent of the rate as a weight.
    """
    changes = -np.diff(rates, prepend=rates[0] if previous_rate is None else previous_rate)
    momentum = lfilter([1.0], [1.0, -decay], changes)
    if rate_power != 0:
        momentum = momentum * np.where(rates > 0, np.maximum(rates, _LEAST_RATE) ** rate_power, 0.0)
    return np.cumsum(momentum)


def rate_drops(rates: np.ndarray, group: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The changes of the rate, as the Multi-Power Law sums them (arXiv:2503.12811).

    The first update is a change from 0, with no time for its effect yet.

    Args:
        rates: float64 [updates], the rate of each update.
        group: changes within so many neighbouring updates are taken as one, at their middle; 1 is exact.

    Returns:
        float64 [changes] each: rate_(k-1) - rate_k, not 0; rate_k; the sum of the rates before update k.
    """
    before = np.cumsum(rates) - rates
    drops = -np.diff(rates, prepend=0.0)
    kept = np.flatnonzero(drops)
    sums = drops[kept]
    if group > 1 and len(kept):
        starts = np.flatnonzero(np.diff(kept // group, prepend=-1))
        sums = np.add.reduceat(sums, starts)
        kept = kept[(starts + np.append(starts[1:], len(kept)) - 1) // 2]
    return sums, np.maximum(rates[kept], _LEAST_RATE), before[kept]
