"""The learning rates of a run as a plan tells them: before it, at its first step, at the highest, at its last."""

from collections.abc import Iterator

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schedule import consumed_tokens, decay_tokens, known_history, schedule_tokens
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import short_count
from megatron_cpt.planning.start_state import RunPosition, start_state

_HIGH_RATE = 0.02
"""Peak rates above this are named: pretraining of the smallest models takes less."""
_SAME = 1e-6
"""Rates that differ by less than this share of the larger one are the same."""


def rates_of(config: RunConfig, start: RunPosition) -> dict[str, float | None]:
    """The rate of the last update before the run (None: not known), of its first, its highest and its last."""
    steps = range(start.step + 1, config.total_steps + 1)
    if not steps:
        return {"before": start.rate_before, "first": None, "peak": None, "last": None}
    rates = [start.rate_at(config, step) for step in _turning_steps(config, start, steps)]
    return {"before": start.rate_before, "first": rates[0], "peak": max(rates), "last": rates[-1]}


def _turning_steps(config: RunConfig, start: RunPosition, steps: range) -> list[int]:
    """The first and the last of some steps and those between at which a schedule may turn, in order.

    A schedule rises or falls the whole way from one of them to the next.
    """
    schedule, size = config.schedule, config.tokens_per_step
    places = [schedule.warmup] if schedule.warmup else []
    places += [piece.from_tokens for piece in schedule.pieces]
    before = start.schedule_shift + consumed_tokens(schedule, size)
    tokens = [place.tokens(size) - before for place in places]
    nearest = [config.token_batches.nearest_step(max(0, place)) for place in tokens]
    near = {step + offset for step in nearest for offset in (-1, 0, 1) if step + offset in steps}
    return sorted(near | {steps[0], steps[-1]})


def rate_lines(config: RunConfig, start: RunPosition, resume: RunPosition | None) -> list[str]:
    """The rates of the run, and those around the place where it goes on."""
    rates = rates_of(config, start)
    if rates["first"] is None:
        return []
    before = f"{_text_of(rates['before'])} before, " if rates["before"] is not None else ""
    lines = [
        f"Rate     {before}{_text_of(rates['first'])} at the first step, {_text_of(rates['peak'])} at the highest, "
        f"{_text_of(rates['last'])} at the last"
    ]
    if resume is not None and start.step < resume.step < config.total_steps:
        before = f"{_text_of(resume.rate_before)} at it, " if resume.rate_before is not None else ""
        after = _text_of(resume.rate_at(config, resume.step + 1))
        lines.append(f"Resume   after step {resume.step:,}: rate {before}{after} at the next step")
    return lines


def history_lines(config: RunConfig) -> list[str]:
    """What is known of a base that was made elsewhere, as the laws will read it."""
    if config.base_history is None:
        return []
    known = known_history(config.base_history)
    peak, final, tokens = known["peak_learning_rate"], known["final_learning_rate"], known["tokens"]
    potential = f" ({final / peak:.0%} of the peak)" if peak and final is not None else ""
    trained = "tokens not known" if tokens is None else f"{short_count(tokens)} tokens"
    areas = ", ".join(
        f"{name} {_text_of(known[area])}" for name, area in (("S1", "forward_area"), ("S2", "annealing_area"))
    )
    return [
        f"Base     {config.base_history.name or 'as given'}: {trained}, rate {_text_of(peak)} at the highest, "
        f"{_text_of(final)} at the last{potential}; {areas}"
    ]


def rate_warnings(config: RunConfig, start: RunPosition) -> Iterator[str]:
    """A peak that few models bear; a schedule that is to go on from the parent's and does not have its rate there."""
    if config.schedule.peak_lr > _HIGH_RATE:
        yield (
            f"schedule.peak_lr = {_text_of(config.schedule.peak_lr)} is far above what continual pretraining takes "
            "(1e-5 to "
            "1e-3): most models lose what they knew at it."
        )
    if not config.init_from.load_schedule or not differs(start.rate_before, now := _rate_there(config, start)):
        return
    yield (
        f"init_from.load_schedule is true, and the rate jumps where the run begins: the parent's last update had "
        f"{_text_of(start.rate_before)}, and this schedule has {_text_of(now)} there. A schedule that depends on the "
        "length of the run has another past when that changes."
    )


def decay_faults(config: RunConfig) -> Iterator[Fault]:
    """A final decay that a kept schedule has begun before the run does, and one that nobody has given a length."""
    schedule, start = config.schedule, start_state(config)
    if not config.init_from.load_schedule or schedule.kind not in ("wsd", "infinite"):
        return
    left = config.total_tokens - start.tokens
    horizon = schedule_tokens(schedule, config.total_tokens + start.schedule_shift, config.tokens_per_step)
    decay = decay_tokens(schedule, horizon, config.tokens_per_step)
    remedy = f"Set it to {left} tokens or less: a run that is all decay has `schedule.decay: {config.training.tokens}`."
    if config.init_from.load_data_position:
        remedy = f"Set it to {left} tokens or less: so many are left after the checkpoint."
    if schedule.decay is None and not config.init_from.load_data_position:
        rule = f"with init_from.load_schedule, a tenth of parent and run together would be {decay} tokens."
        yield Fault("schedule.decay is not set", rule, remedy)
    elif decay > left and differs(start.rate_before, now := _rate_there(config, start)):
        rule = (
            f"it is longer than the run's own {left} tokens and would have begun before the checkpoint: the rate would "
            f"go from {_text_of(start.rate_before)} to {_text_of(now)} at once."
        )
        yield Fault(f"schedule.decay = {schedule.decay or f'a tenth, {decay} tokens'}", rule, remedy)


def _rate_there(config: RunConfig, start: RunPosition) -> float:
    """The rate that the schedule has for the last update before the run."""
    return start.rate_at(config, start.step)


def differs(before: float | None, now: float) -> bool:
    """Whether two rates are known and not the same."""
    return before is not None and abs(before - now) > _SAME * max(before, now)


def _text_of(rate: float | None) -> str:
    """A learning rate in three digits."""
    return "not known" if rate is None else f"{rate:.3g}"
