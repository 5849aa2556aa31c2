"""Learning-rate schedules as pure functions of tokens, and what of them the loss laws need.

The rate of an update is the schedule at the tokens consumed after it, so that the first warm-up
update is not 0 and the last update of a run has the final rate.
"""

import math
from collections.abc import Iterable

from megatron_cpt.config.schema import ScheduleSettings

# arXiv:2408.11029 section 3 and arXiv:2505.07796 Eq. 1: the same decay in all their fits.
ANNEALING_DECAY = 0.999


def learning_rate(schedule: ScheduleSettings, tokens: int, total_tokens: int, tokens_per_step: int) -> float:
    """The learning rate of one update.

    Args:
        tokens: tokens consumed after the update (the first update: `tokens_per_step`).
        total_tokens: tokens of the whole run.
        tokens_per_step: tokens of one update, for durations given in steps.
    """
    warmup = schedule.warmup.tokens(tokens_per_step) if schedule.warmup else 0
    if tokens < warmup:
        return schedule.peak * tokens / warmup
    match schedule.kind:
        case "constant":
            return schedule.peak
        case "linear":
            remaining = 1 - _progress(tokens, warmup, total_tokens)
        case "cosine":
            remaining = 0.5 * (1 + math.cos(math.pi * _progress(tokens, warmup, total_tokens)))
        case "wsd":
            decay = decay_tokens(schedule, total_tokens, tokens_per_step)
            remaining = 1 - _progress(tokens, total_tokens - decay, total_tokens)
    # This form, not final + (peak - final) * remaining, gives both ends exactly.
    return schedule.peak * remaining + schedule.final * (1 - remaining)


def decay_tokens(schedule: ScheduleSettings, total_tokens: int, tokens_per_step: int) -> int:
    """Tokens of the final decay of `wsd`: what is set, else a tenth of the run and at least one update."""
    if schedule.decay:
        return schedule.decay.tokens(tokens_per_step)
    return max(total_tokens // 10, tokens_per_step)


def _progress(tokens: int, begin: int, end: int) -> float:
    """How far `tokens` lies between two points: 0 up to `begin`, 1 from `end` on."""
    if tokens >= end:
        return 1.0
    return max(0, tokens - begin) / (end - begin)


def forward_area(rates: Iterable[float]) -> float:
    """S1 of arXiv:2408.11029 and arXiv:2505.07796 Eq. 1: the sum of the rates of all updates."""
    return math.fsum(rates)


def annealing_area(rates: Iterable[float], decay: float = ANNEALING_DECAY, previous_rate: float | None = None) -> float:
    """S2 of arXiv:2408.11029 and arXiv:2505.07796 Eq. 1: how far the rate has been annealed, with a lag.

    S2 = sum over updates i of m_i, where m_i = decay * m_(i-1) + (rate_(i-1) - rate_i). A rate that
    rises (warm-up, re-warming) counts negative.

    Args:
        rates: the rate of each update, in order.
        decay: what is left of a change of rate after one update.
        previous_rate: the rate before the first update, such as the parent's final rate; None: no
            change at the first update.
    """
    area = momentum = 0.0
    for rate in rates:
        change = 0.0 if previous_rate is None else previous_rate - rate
        momentum = decay * momentum + change
        area += momentum
        previous_rate = rate
    return area
