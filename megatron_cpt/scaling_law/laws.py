"""Laws of the loss along a learning-rate schedule, each a plain function, as its paper has it.

Losses are in nats per token. Areas (areas.py) are sums of learning rates over steps, so the constants of a law
hold for one batch size. Parameters may be complex with a tiny imaginary part: fit.py differentiates that way.
"""

import numpy as np

from megatron_cpt.scaling_law.areas import rate_drops

CELLS_AT_ONCE = 4_000_000
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
    rows = max(1, CELLS_AT_ONCE // max(1, len(drops)))
    for first in range(0, len(steps), rows):
        since = np.maximum(areas[first : first + rows, None] - before, 0.0)
        reduction[first : first + rows] = (1 - (1 + scale * since) ** -drop_exponent) @ drops
    return floor + amplitude * areas**-exponent - drop_size * reduction
