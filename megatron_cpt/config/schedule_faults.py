"""Learning-rate schedules that do not fit the run, or whose parts do not fit each other."""

from collections.abc import Iterator

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schedule import decay_tokens
from megatron_cpt.config.schema import RunConfig

# Which kinds know a setting; where it is set for another, it would be ignored in silence.
BELONGS_TO = {
    "decay": ("wsd", "infinite"),
    "decay_shape": ("wsd", "infinite"),
    "cooldown": ("infinite",),
    "plateau": ("infinite",),
    "stairs": ("stairs",),
}
TO_FINAL = ("linear", "cosine", "wsd", "infinite")


def schedule_faults(config: RunConfig) -> Iterator[Fault]:
    """Everything wrong with the schedule of a run."""
    schedule = config.schedule
    for name, kinds in BELONGS_TO.items():
        value = getattr(schedule, name)
        if value and schedule.kind not in kinds:
            shown = f"schedule.{name}" if isinstance(value, list) else f"schedule.{name} = {value}"
            kind = " or ".join(f"`{kind}`" for kind in kinds)
            rule = f"it belongs to {kind}, and schedule.kind is {schedule.kind}."
            yield Fault(shown, rule, f"Take it out, or use `schedule.kind: {kinds[0]}`.")
    if schedule.initial and not schedule.warmup:
        rule = "there is no warm-up that could begin there."
        yield Fault(f"schedule.initial = {schedule.initial:g}", rule, "Set `schedule.warmup`, or take it out.")
    yield from rate_faults(config)
    if config.training.batch_ramp is not None and (in_steps := [*step_faults(config)]):
        yield from in_steps
        return
    yield from length_faults(config)
    if schedule.kind == "stairs":
        yield from stair_faults(config)


def step_faults(config: RunConfig) -> Iterator[Fault]:
    """Parts of a schedule in steps, where steps are of several sizes: the rate follows the tokens."""
    schedule = config.schedule
    parts = {name: getattr(schedule, name) for name in ("warmup", "cooldown", "decay")}
    parts |= {f"stairs.{number}.from_tokens": stair.from_tokens for number, stair in enumerate(schedule.stairs)}
    for name, duration in parts.items():
        if duration is not None and duration.unit == "steps":
            rule = "with training.batch_ramp steps are of several sizes, and the rate follows the tokens."
            first = config.token_batches.total(duration.amount)
            remedy = f"Give it in tokens (the first {duration.amount} steps of this run take {first})."
            yield Fault(f"schedule.{name} = {duration}", rule, remedy)


def rate_faults(config: RunConfig) -> Iterator[Fault]:
    """Rates that are not in the order that the kind has."""
    schedule = config.schedule
    shown = f"schedule.final = {schedule.final:g}"
    if schedule.kind in TO_FINAL and schedule.final > schedule.peak:
        rule = f"it should not be above schedule.peak = {schedule.peak:g}."
        yield Fault(shown, rule, "Lower it, or raise the peak.")
    shape = schedule.decay_shape or ("exponential" if schedule.kind == "infinite" else None)
    if schedule.kind in ("wsd", "infinite") and shape == "exponential" and not schedule.final:
        rule = "an exponential decay never reaches 0."
        yield Fault(shown, rule, "Set a final rate, such as a hundredth of the peak, or another `decay_shape`.")
    if schedule.kind == "infinite":
        if schedule.plateau is None:
            rule = "`infinite` cools down to a rate that stays, and none is given."
            yield Fault("schedule.plateau", rule, "Set it between `final` and `peak`.")
        elif not schedule.final <= schedule.plateau <= schedule.peak:
            rule = f"it should lie between schedule.final = {schedule.final:g} and schedule.peak = {schedule.peak:g}."
            yield Fault(f"schedule.plateau = {schedule.plateau:g}", rule, "Set it between them.")


def length_faults(config: RunConfig) -> Iterator[Fault]:
    """Parts of the schedule that are together longer than the run."""
    schedule, total, step = config.schedule, config.total_tokens, config.tokens_per_step
    if "kept" in (config.start.schedule, config.start.data):
        return  # its length is not that of the run
    warmup = schedule.warmup.tokens(step) if schedule.warmup else 0
    if warmup > total:
        yield Fault(
            f"schedule.warmup = {schedule.warmup}",
            f"it is longer than the run of {total} tokens ({config.total_steps} steps).",
            "Shorten the warm-up, or train longer.",
        )
        return
    if schedule.kind in TO_FINAL and warmup == total:
        yield Fault(
            f"schedule.warmup = {schedule.warmup}",
            f"it takes the whole run: nothing is left to bring the rate to {schedule.final:g}.",
            "Shorten the warm-up, or use `schedule.kind: constant`.",
        )
        return
    if schedule.kind not in ("wsd", "infinite"):
        return
    cooldown = schedule.cooldown.tokens(step) if schedule.cooldown else 0
    decay = decay_tokens(schedule, total, step)
    if warmup + cooldown + decay > total:
        shown = schedule.decay or f"a tenth of the run, {decay} tokens"
        parts = "warm-up, cool-down and decay" if cooldown else "warm-up and decay"
        rule = f"{parts} together ({warmup + cooldown + decay} tokens) are longer than the run ({total} tokens)."
        yield Fault(f"schedule.decay = {shown}", rule, "Shorten one of them, or train longer.")


def stair_faults(config: RunConfig) -> Iterator[Fault]:
    """Stairs that are missing, not in the order of training, or beyond the run."""
    schedule, step = config.schedule, config.tokens_per_step
    if not schedule.stairs:
        remedy = "List `{from_tokens: ..., rate: ...}`."
        yield Fault("schedule.stairs is empty", "`stairs` needs at least one change of the rate.", remedy)
    before = schedule.warmup.tokens(step) if schedule.warmup else 0
    for number, stair in enumerate(schedule.stairs):
        place = stair.from_tokens.tokens(step)
        shown = f"schedule.stairs.{number}.from_tokens = {stair.from_tokens}"
        if place < before or (number and place == before):
            rule = f"it begins at {place} tokens, and what comes before it ends at {before}."
            yield Fault(shown, rule, "List the stairs in the order of training, after the warm-up.")
        elif place >= config.total_tokens:
            rule = f"it is not reached by the run of {config.total_tokens} tokens."
            yield Fault(shown, rule, "Move it to the front, or train longer.")
        before = place
