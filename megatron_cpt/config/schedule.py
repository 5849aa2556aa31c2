"""Learning-rate schedules as pure functions of tokens, and what phases and scaling laws need of them.

The learning rate of an update is the schedule at the tokens consumed after it. So the first warm-up update is not 0,
and the last update of a run has the final learning rate.
"""

import math
from dataclasses import dataclass
from functools import cache

from megatron_cpt.config.schema import BaseHistorySettings, DecayShape, PhaseSettings, RunConfig, ScheduleSettings
from megatron_cpt.config.units import share_of_peak


def phase_steps(config: RunConfig) -> list[int | None]:
    """Steps before each phase; None for one that begins with an epoch: the blend tells (mixture/phases.py).

    A phase that begins at a learning rate which is never reached begins after the run.
    """
    return [_steps(config, phase) for phase in config.data.phases]


def _step_when_lr_reaches(config: RunConfig, share: float) -> int:
    """Updates before the first whose rate has fallen to a share of the peak, after the highest; all, if none has."""
    size, total, consumed = config.tokens_per_step, config.total_tokens, config.tokens_at
    rates = [learning_rate(config.schedule, consumed(step), total, size) for step in range(1, config.total_steps + 1)]
    highest = rates.index(max(rates))
    # A rate that is to be exactly a share of the peak may come out a rounding error above it.
    limit = share * config.schedule.peak_lr * (1 + 1e-12)
    return next((number for number in range(highest, len(rates)) if rates[number] <= limit), len(rates))


def _steps(config: RunConfig, phase: PhaseSettings) -> int | None:
    if phase.from_lr is not None:
        return _step_when_lr_reaches(config, share_of_peak(phase.from_lr))
    if phase.from_tokens is not None:
        return phase.from_tokens.whole_steps(config.tokens_per_step, config.token_batches.ramp)
    return None


# arXiv:2408.11029 section 3 and arXiv:2505.07796 Eq. 1: the same decay in all their fits.
ANNEALING_DECAY = 0.999


def learning_rate(schedule: ScheduleSettings, tokens: int, total_tokens: int, tokens_per_step: int) -> float:
    """The learning rate of one update.

    Each kind begins with a linear warm-up from `initial_lr` to `peak_lr`, if there is one; then:

    - `constant`: the peak.
    - `linear`, `cosine`: decay to `final_lr` over the rest of the run. With a warm-up it is the re-warming and
      re-decaying of arXiv:2403.08763; from the base run's final rate, without warm-up and to a
      hundredth of it, the restart of arXiv:2407.07263.
    - `wsd`: the peak, then over the last `decay` tokens down to `final_lr` (arXiv:2404.06395).
    - `infinite`: down to `plateau_lr` over `cooldown` tokens in the shape of a cosine, the plateau, then over the
      last `decay` tokens down to `final_lr` (arXiv:2403.08763, its infinite schedule).
    - `piecewise`: the peak, then the rate of each of `pieces` from its place on (two stages: arXiv:2503.12811).

    The run begins `consumed` tokens behind the beginning of the schedule, and the schedule ends with the run, or after
    `tokens`.

    Args:
        tokens: tokens consumed after the update (the first update: `tokens_per_step`).
        total_tokens: tokens of the whole run.
        tokens_per_step: tokens of one update, for durations given in steps. Where updates grow at the beginning, those
            are refused (checks.py), and it is that of the later ones.
    """
    peak, final = schedule.peak_lr, schedule.final_lr
    total_tokens = schedule_tokens(schedule, total_tokens, tokens_per_step)
    tokens += consumed_tokens(schedule, tokens_per_step)
    warmup = schedule.warmup.tokens(tokens_per_step) if schedule.warmup else 0
    if tokens < warmup:
        return between(schedule.initial_lr, peak, 1 - tokens / warmup)
    match schedule.kind:
        case "constant":
            return peak
        case "linear" | "cosine":
            return decayed(peak, final, schedule.kind, _progress(tokens, warmup, total_tokens))
        case "piecewise":
            passed = [piece.lr for piece in schedule.pieces if tokens > piece.from_tokens.tokens(tokens_per_step)]
            return passed[-1] if passed else peak
    annealed_from = total_tokens - decay_tokens(schedule, total_tokens, tokens_per_step)
    high = peak
    if schedule.kind == "infinite" and schedule.plateau_lr is not None:
        cooldown = schedule.cooldown.tokens(tokens_per_step) if schedule.cooldown else 0
        high = decayed(peak, schedule.plateau_lr, "cosine", _progress(tokens, warmup, warmup + cooldown))
    shape = schedule.decay_shape or ("exponential" if schedule.kind == "infinite" else "linear")
    return decayed(high, final, shape, _progress(tokens, annealed_from, total_tokens))


def decayed(high: float, low: float, shape: DecayShape, progress: float) -> float:
    """A rate on its way from `high` (progress 0) to `low` (progress 1), both reached exactly.

    `1-sqrt` is that of arXiv:2405.18392, `exponential` (a straight line in the logarithm) that of arXiv:2403.08763.
    """
    match shape:
        case "linear":
            return between(low, high, progress)
        case "cosine":
            return between(low, high, 1 - 0.5 * (1 + math.cos(math.pi * progress)))
        case "1-sqrt":
            return between(low, high, math.sqrt(progress))
        case "exponential":
            return float(high ** (1 - progress) * low**progress)


def between(low: float, high: float, share: float) -> float:
    """A share of `low`, the rest of `high`. This form, not low + (high - low) * ..., gives both ends exactly."""
    return high * (1 - share) + low * share


def consumed_tokens(schedule: ScheduleSettings, tokens_per_step: int) -> int:
    """Tokens of the schedule that lie before the run."""
    return schedule.consumed.tokens(tokens_per_step) if schedule.consumed else 0


def schedule_tokens(schedule: ScheduleSettings, total_tokens: int, tokens_per_step: int) -> int:
    """Tokens from the beginning of the schedule to the end of its decay, of a run of `total_tokens`."""
    if schedule.tokens:
        return schedule.tokens.tokens(tokens_per_step)
    return consumed_tokens(schedule, tokens_per_step) + total_tokens


def decay_tokens(schedule: ScheduleSettings, total_tokens: int, tokens_per_step: int) -> int:
    """Tokens of the final decay of `wsd` and `infinite`: what is set, else a tenth of the whole, at least one update.

    Args:
        total_tokens: of the schedule (schedule_tokens).
    """
    if schedule.decay:
        return schedule.decay.tokens(tokens_per_step)
    return max(total_tokens // 10, tokens_per_step)


def _progress(tokens: int, begin: int, end: int) -> float:
    """How far `tokens` lies between two points: 0 up to `begin`, 1 from `end` on."""
    if tokens >= end:
        return 1.0
    return max(0, tokens - begin) / (end - begin)


@dataclass
class Areas:
    """The areas under the learning rate that the loss laws need, summed update by update."""

    before: float | None = None
    """The rate before the first update, such as the parent's final rate. None: there is none, and S2 counts from the
    end of the first rise, as that of the annealing law does."""
    decay: float = ANNEALING_DECAY
    """What is left of a change of rate after one update."""
    updates: int = 0
    """Updates so far."""
    forward: float = 0.0
    """S1 of arXiv:2408.11029 and arXiv:2505.07796 Eq. 1: the sum of the rates of all updates."""
    annealing: float = 0.0
    """S2 of the same: how far the rate has been annealed, with a lag. The sum over updates i of m_i, where
    m_i = decay * m_(i-1) + (rate_(i-1) - rate_i). A rate that rises (re-warming) counts negative."""
    peak: float | None = None
    """The highest rate; None before the first update."""
    final: float | None = None
    """The last."""
    _momentum: float = 0.0
    _counts_changes: bool = False

    def add(self, rate: float) -> None:
        """Takes the rate of the next update."""
        previous = self.before if self.final is None else self.final
        self._counts_changes |= self.before is not None or (previous is not None and rate < previous)
        change = previous - rate if self._counts_changes and previous is not None else 0.0
        self._momentum = self.decay * self._momentum + change
        self.updates += 1
        self.forward += rate
        self.annealing += self._momentum
        self.peak = rate if self.peak is None else max(self.peak, rate)
        self.final = rate


@cache
def known_history(history: BaseHistorySettings) -> dict[str, float | None]:
    """The learning-rate history of a base made elsewhere, under the names of lineage.json; None for what is not known.

    The areas are those that a run of ours with this schedule would have: `Areas`, update by update (some 2 microseconds
    each, once a process).
    """
    schedule, size, tokens = history.schedule, history.tokens_per_step, history.tokens
    areas = Areas()
    if schedule is not None and size is not None and tokens is not None:
        steps = tokens // size
        horizon = history.schedule_tokens or steps * size
        for step in range(1, steps + 1):
            areas.add(learning_rate(schedule, step * size, horizon, size))
    known = areas.updates > 0
    whole = history.schedule_tokens in (None, tokens)
    final = history.peak_lr if history.kind == "constant" else history.final_lr if whole else None
    return {
        "forward_area": areas.forward if known else None,
        "annealing_area": areas.annealing if known else None,
        "peak_learning_rate": history.peak_lr,
        "final_learning_rate": areas.final if known else final,
        "tokens": tokens,
    }
