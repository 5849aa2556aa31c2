"""Every rule on a configuration that needs no file: values that are right alone and wrong together.

Rules that need data, the model's config.json or the machine are in planning/checks.py.
"""

from collections.abc import Iterator

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.eval_schedule import LOG_SPACED_GRAMMAR, evaluation_steps, parse_log_spaced
from megatron_cpt.config.parallel_checks import rank_faults
from megatron_cpt.config.passed_fields import passed_field_faults
from megatron_cpt.config.schedule import consumed_tokens, decay_tokens, schedule_tokens
from megatron_cpt.config.schema import (
    EvalIntervalSettings,
    RunConfig,
    ScheduleSettings,
    name_faults,
    path_faults,
)
from megatron_cpt.config.source_checks import phase_faults, share_faults, source_faults
from megatron_cpt.config.units import LARGEST_COUNT, counted, nearest_multiples, profiled_steps, short_count


def config_faults(config: RunConfig, world_size: int | None = None) -> list[Fault]:
    """Everything that the configuration alone gets wrong.

    Args:
        world_size: ranks of the run; None where it is not known: rules about it are left out.
    """
    return [
        *_run_faults(config),
        *source_faults(config),
        *phase_faults(config),
        *share_faults(config.data),
        *rank_faults(config, world_size),
        *schedule_faults(config),
        *_history_faults(config),
        *_rope_faults(config),
        *_optimizer_faults(config),
        *_validation_faults(config),
        *_task_faults(config),
        *_checkpoint_faults(config),
        *passed_field_faults(config.megatron),
    ]


def _run_faults(config: RunConfig) -> Iterator[Fault]:
    """Empty names of folders, steps to profile that are none, and runs beyond all counts."""
    try:
        config.run.profile is None or profiled_steps(config.run.profile)
    except ValueError as error:
        yield Fault(f"run.profile = '{config.run.profile}'", f"{error}.", "Write a step or two: `10` or `10-12`.")
    for name, folder, remedy in (
        ("run.folder", config.run.folder, "Name the folder that the run is to be written to."),
        ("model.hf", config.model.hf, "Name a folder with a Hugging Face model."),
    ):
        if not folder.strip():
            yield Fault(f"{name} = '{folder}'", "a folder needs a name.", remedy)
    if config.total_tokens > LARGEST_COUNT:
        rule = f"that are {config.total_tokens:.0e} tokens, more than any run counts ({short_count(LARGEST_COUNT)})."
        yield Fault(f"training.tokens = {config.training.tokens}", rule, "Lower it.")


def _rope_faults(config: RunConfig) -> Iterator[Fault]:
    """Numbers of a scaling that there is none of."""
    rope = config.model.rope
    if rope is None or rope.scaling not in ("keep", "none"):
        return
    given = {"factor": rope.factor, "original_positions": rope.original_positions, "further": rope.extra or None}
    for name, value in given.items():
        if value is not None:
            rule = f"is a number of a scaling, and model.rope.scaling is {rope.scaling}."
            yield Fault(f"model.rope.{name} = {value}", rule, "Set it to linear, llama3 or yarn, or take this out.")


def _optimizer_faults(config: RunConfig) -> Iterator[Fault]:
    """Decays of moments with which AdamW divides by 0, and layers with two rates or none."""
    for name in ("beta1", "beta2"):
        if getattr(config.optimizer, name) == 1:
            yield Fault(f"optimizer.{name} = 1", "it should be below 1.", "The usual are 0.9 and 0.95.")
    named: set[int] = set()
    for number, group in enumerate(config.optimizer.lr_multipliers.layers):
        shown = f"optimizer.lr_multipliers.layers.{number} = {group.first} to {group.last}"
        if group.first > group.last:
            yield Fault(shown, "the first layer comes after the last.", "Exchange them.")
        layers = set(range(group.first, group.last + 1))
        if layers & named:
            rule = f"layer {min(layers & named)} has a rate already."
            yield Fault(shown, rule, "Name each layer once.")
        named |= layers


def _validation_faults(config: RunConfig) -> Iterator[Fault]:
    """Validation sets that are wrongly named or without paths, and eval intervals that cannot be read."""
    sets, length = config.validation.sets, config.data.sequence_length
    yield from name_faults("validation.sets", sets)
    yield from _interval_faults("validation.eval_interval", config.validation.eval_interval)
    for measured in config.validation.gradient_conflict:
        if measured not in sets:
            rule = f"is no validation set; there are: {', '.join(sets) or 'none'}."
            yield Fault(f"validation.gradient_conflict: {measured}", rule, "Name one, or take it out.")
        if config.validation.gradient_conflict.count(measured) > 1:
            yield Fault(f"validation.gradient_conflict: {measured}", "is named twice.", "Name it once.")
            break
    if config.validation.weight_updates and config.model.weights == "random":
        rule = "updates are measured from weights that can be read again after a stop, and model.weights is random."
        yield Fault("validation.weight_updates = true", rule, "Set it to false, or start from a folder's weights.")
    for name, settings in sets.items():
        yield from path_faults(f"validation.sets.{name}.paths", settings.paths)
        if settings.eval_interval:
            yield from _interval_faults(f"validation.sets.{name}.eval_interval", settings.eval_interval)
        if settings.tokens is not None and settings.tokens < length:
            yield Fault(
                f"validation.sets.{name}.tokens = {settings.tokens}",
                f"it holds no whole sequence of data.sequence_length = {length} tokens.",
                "Raise it, or take it out to use the whole set.",
            )


def _task_faults(config: RunConfig) -> Iterator[Fault]:
    """Tasks that are wrongly named or without a path, and eval intervals that cannot be read."""
    tasks = config.tasks
    yield from name_faults("tasks.files", tasks.files)
    yield from name_faults("tasks.groups", tasks.groups)
    yield from _interval_faults("tasks.eval_interval", tasks.eval_interval)
    for name, settings in tasks.files.items():
        if not settings.path.strip():
            yield Fault(f"tasks.files.{name}.path is empty", "there is nothing to ask.", "Name a JSONL file.")
        if settings.eval_interval:
            yield from _interval_faults(f"tasks.files.{name}.eval_interval", settings.eval_interval)
    yield from name_faults("tasks.lm_eval", tasks.lm_eval)
    for name, asked in tasks.lm_eval.items():
        if not asked.tasks:
            yield Fault(f"tasks.lm_eval.{name}.tasks is empty", "there is nothing to ask.", "Name tasks.")
        if asked.eval_interval:
            yield from _interval_faults(f"tasks.lm_eval.{name}.eval_interval", asked.eval_interval)


def _checkpoint_faults(config: RunConfig) -> Iterator[Fault]:
    """Checkpoints at distances that do not fit each other, and a best one that nothing would show."""
    if not config.init_from.load_data_position:  # else its steps count from a checkpoint: planning/checks.py
        yield from best_faults(config)
    checkpoint, step = config.checkpoint, config.tokens_per_step
    if checkpoint.keep_every is None:
        return
    shown = f"checkpoint.keep_every = {checkpoint.keep_every}"
    if checkpoint.save_interval is None:
        rule = "there is one checkpoint, at the end: `checkpoint.save_interval` is not set."
        yield Fault(shown, rule, "Set `checkpoint.save_interval`, or take this out.")
        return
    kept, every = checkpoint.keep_every_steps(step), checkpoint.save_interval.steps(step)
    if kept is not None and kept % every:
        rule = f"{kept} steps are not a multiple of checkpoint.save_interval, {every} steps."
        yield Fault(shown, rule, f"The nearest are {nearest_multiples(kept, every)} steps.")


def best_faults(config: RunConfig, first_step: int = 0) -> Iterator[Fault]:
    """A best checkpoint that nothing would show, in a run that begins after some step."""
    best = config.checkpoint.keep_best
    if best is None:
        return
    shown = f"checkpoint.keep_best = {best}"
    if best not in config.validation.sets:
        known = ", ".join(config.validation.sets) or "none"
        yield Fault(shown, f"there is no such validation set (there are: {known}).", "Name one of `validation.sets`.")
        return
    interval = config.validation.sets[best].eval_interval or config.validation.eval_interval
    if interval.log_spaced is not None and [*_interval_faults("", interval)]:
        return
    saved, evaluated = _saved_and_evaluated(config, interval, first_step)
    if not saved & evaluated:
        rule = f"`{best}` is evaluated at none of the steps that are saved."
        yield Fault(shown, rule, "Set `every` of its eval_interval to a multiple of `checkpoint.save_interval`.")


def best_warnings(config: RunConfig, first_step: int = 0) -> Iterator[str]:
    """Saves and evaluations that seldom fall on the same step: each distance in tokens is rounded to steps by itself.

    The config has no faults.
    """
    best, save, step = config.checkpoint.keep_best, config.checkpoint.save_interval, config.tokens_per_step
    if best is None or save is None:
        return
    interval = config.validation.sets[best].eval_interval or config.validation.eval_interval
    saves = save.steps(step)
    evaluations = interval.every.steps(step) if interval.every is not None else None
    saved, evaluated = _saved_and_evaluated(config, interval, first_step)
    known = saved & evaluated
    if known == saved:
        return
    of_evaluations = f" (every {evaluations} steps)" if evaluations is not None else ""
    told = (
        f"checkpoint.keep_best = {best}: {counted(len(saved), 'save')} (every {saves} steps) and "
        f"{counted(len(evaluated), 'evaluation')}{of_evaluations} have "
        f"{counted(len(known), 'step')} in common; only there a checkpoint can be the best."
    )
    if evaluations is None:
        yield f"{told} Set `every` of its eval_interval to a multiple of `checkpoint.save_interval`."
    elif saves % evaluations and evaluations % saves:
        small, large = sorted((saves, evaluations))
        yield (
            f"{told} Give `checkpoint.save_interval` and `every` of its eval_interval in steps, one a multiple of the "
            f"other. The nearest multiples of {small} are {nearest_multiples(large, small)}."
        )


def _saved_and_evaluated(
    config: RunConfig, interval: EvalIntervalSettings, first_step: int
) -> tuple[set[int], set[int]]:
    """The steps after `first_step` after which a run saves, and those after which a set of an interval is evaluated."""
    step, last = config.tokens_per_step, config.total_steps
    every = config.checkpoint.save_interval.steps(step) if config.checkpoint.save_interval else last
    ramp = config.token_batches.after(first_step).ramp
    evaluated = {first_step + step for step in evaluation_steps(interval, last - first_step, step, ramp)}
    return {*range(every, last + 1, every), last} - {*range(first_step + 1)}, evaluated - {first_step}


def _interval_faults(name: str, interval: EvalIntervalSettings) -> Iterator[Fault]:
    if interval.log_spaced is None:
        return
    try:
        parse_log_spaced(interval.log_spaced)
    except ValueError:
        yield Fault(
            f"{name}.log_spaced = '{interval.log_spaced}'", f"it should read like {LOG_SPACED_GRAMMAR}.", "Rewrite it."
        )


# Which kinds know a setting; where it is set for another, it would be ignored in silence.
_BELONGS_TO = {
    "decay": ("wsd", "infinite"),
    "decay_shape": ("wsd", "infinite"),
    "cooldown": ("infinite",),
    "plateau_lr": ("infinite",),
    "pieces": ("piecewise",),
    "tokens": ("linear", "cosine", "wsd", "infinite"),
}
_TO_FINAL = _BELONGS_TO["tokens"]


def schedule_faults(config: RunConfig) -> Iterator[Fault]:
    """Everything wrong with the schedule of a run."""
    schedule = config.schedule
    for name, kinds in _BELONGS_TO.items():
        value = getattr(schedule, name)
        if value and schedule.kind not in kinds:
            shown = f"schedule.{name}" if isinstance(value, list) else f"schedule.{name} = {value}"
            kind = " or ".join(f"`{kind}`" for kind in kinds)
            rule = f"it belongs to {kind}, and schedule.kind is {schedule.kind}."
            yield Fault(shown, rule, f"Take it out, or use `schedule.kind: {kinds[0]}`.")
    if schedule.initial_lr and not schedule.warmup:
        rule = "there is no warm-up that could begin there."
        yield Fault(f"schedule.initial_lr = {schedule.initial_lr:g}", rule, "Set `schedule.warmup`, or take it out.")
    yield from rate_faults(config)
    if config.training.batch_size_rampup is not None and (in_steps := [*_step_faults(config)]):
        yield from in_steps
        return
    yield from _length_faults(config)
    if schedule.kind == "piecewise":
        yield from _piece_faults(config)


def _history_faults(config: RunConfig) -> Iterator[Fault]:
    """A history of the base that cannot have been, or of weights that have none."""
    history = config.base_history
    if history is None:
        return
    if config.model.weights == "random" and config.init_from.checkpoint is None:
        rule = "random weights have no history."
        yield Fault("base_history", rule, "Take it out, or start from `model.weights: hf`.")
    shown, peak, final = f"base_history.final_lr = {history.final_lr}", history.peak_lr, history.final_lr
    if peak is not None and final is not None and final > peak:
        yield Fault(shown, f"it should not be above base_history.peak_lr = {peak:g}.", "Exchange them.")
    for name in ("decay", "decay_shape"):
        if getattr(history, name) is not None and history.kind != "wsd":
            rule = f"it belongs to `wsd`, and base_history.kind is {history.kind or 'not given'}."
            yield Fault(f"base_history.{name} = {getattr(history, name)}", rule, "Take it out, or set the kind to wsd.")
    if history.decay_shape == "exponential" and history.final_lr == 0:
        yield Fault(shown, "an exponential decay never reaches 0.", "Give the final rate, or another `decay_shape`.")
    if history.tokens is None:
        return
    if history.schedule_tokens is not None and history.schedule_tokens < history.tokens:
        rule = f"training was longer: base_history.tokens = {history.tokens}."
        remedy = "Give the length of the whole schedule, or take it out."
        yield Fault(f"base_history.schedule_tokens = {history.schedule_tokens}", rule, remedy)
    if history.tokens_per_step is not None and history.tokens_per_step > history.tokens:
        rule = f"one step is more than base_history.tokens = {history.tokens}."
        yield Fault(f"base_history.tokens_per_step = {history.tokens_per_step}", rule, "Exchange them.")
    elif history.tokens_per_step is not None and history.schedule is not None:
        size = history.tokens_per_step
        total = history.schedule_tokens or history.tokens // size * size
        correct = "correct its tokens, or those of a step"
        yield from _parts_faults(
            history.schedule, total, size, total // size, "base_history", "schedule of the base", correct
        )


def _step_faults(config: RunConfig) -> Iterator[Fault]:
    """Parts of a schedule in steps, where steps are of several sizes: the rate follows the tokens."""
    schedule = config.schedule
    parts = {name: getattr(schedule, name) for name in ("warmup", "cooldown", "decay", "tokens", "consumed")}
    parts |= {f"pieces.{number}.from_tokens": piece.from_tokens for number, piece in enumerate(schedule.pieces)}
    for name, duration in parts.items():
        if duration is not None and duration.unit == "steps":
            rule = "with training.batch_size_rampup steps are of several sizes, and the rate follows the tokens."
            first = config.tokens_at(duration.amount)
            remedy = f"Give it in tokens (the first {duration.amount} steps of this run take {first})."
            yield Fault(f"schedule.{name} = {duration}", rule, remedy)


def rate_faults(config: RunConfig) -> Iterator[Fault]:
    """Rates that are not in the order that the kind has."""
    schedule = config.schedule
    shown = f"schedule.final_lr = {schedule.final_lr:g}"
    if schedule.kind in _TO_FINAL and schedule.final_lr > schedule.peak_lr:
        rule = f"it should not be above schedule.peak_lr = {schedule.peak_lr:g}."
        yield Fault(shown, rule, "Lower it, or raise the peak.")
    shape = schedule.decay_shape or ("exponential" if schedule.kind == "infinite" else None)
    if schedule.kind in ("wsd", "infinite") and shape == "exponential" and not schedule.final_lr:
        rule = "an exponential decay never reaches 0."
        yield Fault(shown, rule, "Set a final rate, such as a hundredth of the peak, or another `decay_shape`.")
    if schedule.kind == "infinite":
        if schedule.plateau_lr is None:
            rule = "`infinite` cools down to a rate that stays, and none is given."
            yield Fault("schedule.plateau_lr", rule, "Set it between `final_lr` and `peak_lr`.")
        elif not schedule.final_lr <= schedule.plateau_lr <= schedule.peak_lr:
            bounds = f"schedule.final_lr = {schedule.final_lr:g} and schedule.peak_lr = {schedule.peak_lr:g}"
            rule = f"it should lie between {bounds}."
            yield Fault(f"schedule.plateau_lr = {schedule.plateau_lr:g}", rule, "Set it between them.")


def _length_faults(config: RunConfig) -> Iterator[Fault]:
    """Parts of the schedule that are together longer than it."""
    schedule, step = config.schedule, config.tokens_per_step
    if not schedule.tokens and (config.init_from.load_schedule or config.init_from.load_data_position):
        return  # its length is not that of the run
    words: tuple[str, ...] = ()
    total, steps = config.total_tokens, config.total_steps
    if schedule.tokens or schedule.consumed:
        total = schedule_tokens(schedule, total, step)
        steps, words = total // step, ("schedule", "schedule", "raise `schedule.tokens`")
    yield from _parts_faults(schedule, total, step, steps, *words)


def _parts_faults(
    schedule: ScheduleSettings,
    total: int,
    step: int,
    steps: int,
    section: str = "schedule",
    whole: str = "run",
    longer: str = "train longer",
) -> Iterator[Fault]:
    """Parts of a schedule that are together longer than its `total` tokens, in steps of `step` tokens.

    Args:
        steps: how many these are; more than `total / step`, where the first are smaller.
        section: that has the schedule.
        whole: what the parts must fit into, in a word.
        longer: how to make that longer.
    """
    warmup = schedule.warmup.tokens(step) if schedule.warmup else 0
    if warmup > total:
        yield Fault(
            f"{section}.warmup = {schedule.warmup}",
            f"it is longer than the {whole} of {total} tokens ({steps} steps).",
            f"Shorten the warm-up, or {longer}.",
        )
        return
    if schedule.kind in _TO_FINAL and warmup == total:
        yield Fault(
            f"{section}.warmup = {schedule.warmup}",
            f"it takes the whole {whole}: nothing is left to bring the rate to {schedule.final_lr:g}.",
            f"Shorten the warm-up, or use `{section}.kind: constant`.",
        )
        return
    if schedule.kind not in ("wsd", "infinite"):
        return
    cooldown = schedule.cooldown.tokens(step) if schedule.cooldown else 0
    decay = decay_tokens(schedule, total, step)
    if warmup + cooldown + decay > total:
        shown = schedule.decay or f"a tenth of the {whole}, {decay} tokens"
        parts = "warm-up, cool-down and decay" if cooldown else "warm-up and decay"
        rule = f"{parts} together ({warmup + cooldown + decay} tokens) are longer than the {whole} ({total} tokens)."
        yield Fault(f"{section}.decay = {shown}", rule, f"Shorten one of them, or {longer}.")


def _piece_faults(config: RunConfig) -> Iterator[Fault]:
    """Pieces that are missing, not in the order of training, or beyond the run."""
    schedule, step = config.schedule, config.tokens_per_step
    if not schedule.pieces:
        remedy = "List `{from_tokens: ..., lr: ...}`."
        yield Fault("schedule.pieces is empty", "`piecewise` needs at least one change of the rate.", remedy)
    before = schedule.warmup.tokens(step) if schedule.warmup else 0
    for number, piece in enumerate(schedule.pieces):
        place = piece.from_tokens.tokens(step)
        shown = f"schedule.pieces.{number}.from_tokens = {piece.from_tokens}"
        if place < before or (number and place == before):
            rule = f"it begins at {place} tokens, and what comes before it ends at {before}."
            yield Fault(shown, rule, "List the pieces in the order of training, after the warm-up.")
        elif place >= consumed_tokens(schedule, step) + config.total_tokens:
            rule = f"it is not reached by the run of {config.total_tokens} tokens."
            yield Fault(shown, rule, "Move it to the front, or train longer.")
        before = place
