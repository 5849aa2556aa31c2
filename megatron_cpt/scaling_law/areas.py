"""What the loss laws need of a learning-rate schedule: areas, one value an update, over every applied update.

S1, the forward area, is the sum of the rates so far; S2, the annealing area, sums how far the rate has
come down, with a lag of 1 / (1 - decay) updates. Both are in units of the learning rate times updates.
"""

import numpy as np
from scipy.signal import lfilter

from megatron_cpt.config.schedule import ANNEALING_DECAY

LEAST_RATE = 1e-30
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
        momentum = momentum * np.maximum(rates, LEAST_RATE) ** rate_power
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
    return sums, np.maximum(rates[kept], LEAST_RATE), before[kept]
