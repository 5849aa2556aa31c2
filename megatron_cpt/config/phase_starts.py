"""The steps at which the phases of a run begin, as far as the configuration alone tells."""

from megatron_cpt.config.blend import PhaseSettings
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import share_of_peak


def phase_steps(config: RunConfig) -> list[int | None]:
    """Steps before each phase; None for one that begins with an epoch: the blend tells (mixture/phases.py).

    A phase that begins at a learning rate which is never reached begins after the run.
    """
    return [_steps(config, phase) for phase in config.data.phases]


def fallen_to(config: RunConfig, share: float) -> int:
    """Updates before the first whose rate has fallen to a share of the peak, after the highest; all, if none has."""
    size, total, consumed = config.tokens_per_step, config.total_tokens, config.token_batches.total
    rates = [learning_rate(config.schedule, consumed(step), total, size) for step in range(1, config.total_steps + 1)]
    highest = rates.index(max(rates))
    # A rate that is to be exactly a share of the peak may come out a rounding error above it.
    limit = share * config.schedule.peak * (1 + 1e-12)
    return next((number for number in range(highest, len(rates)) if rates[number] <= limit), len(rates))


def _steps(config: RunConfig, phase: PhaseSettings) -> int | None:
    if phase.from_lr is not None:
        return fallen_to(config, share_of_peak(phase.from_lr))
    if phase.from_tokens is not None:
        return phase.from_tokens.whole_steps(config.tokens_per_step, config.token_batches.ramp)
    return None
