"""Every rule on a configuration that needs no file: values that are right alone and wrong together.

Rules that need data, the model's config.json or the machine are in planning/checks.py.
"""

from collections.abc import Iterator, Mapping, Sized
from difflib import get_close_matches
from itertools import pairwise
from math import prod
from typing import Any

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.eval_schedule import LOG_SPACED_GRAMMAR, evaluation_steps, parse_log_spaced
from megatron_cpt.config.schedule import decay_tokens, phase_steps
from megatron_cpt.config.schema import (
    DataSettings,
    EvalIntervalSettings,
    ParallelSettings,
    QualitySettings,
    RunConfig,
    ScheduleSettings,
    SourceSettings,
    name_faults,
    path_faults,
)
from megatron_cpt.config.units import LARGEST_COUNT, epochs_of_source, profiled_steps, short_count


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
        *_rank_faults(config, world_size),
        *schedule_faults(config),
        *_history_faults(config),
        *_rope_faults(config),
        *_optimizer_faults(config),
        *_validation_faults(config),
        *_task_faults(config),
        *_checkpoint_faults(config),
        *_contradictions("megatron.transformer", config.megatron.transformer, _TRANSFORMER),
        *_contradictions("megatron.optimizer", config.megatron.optimizer, _OPTIMIZER),
        *_contradictions("megatron.ddp", config.megatron.ddp, DDP),
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
        yield Fault(shown, rule, f"The nearest are {_nearest_multiples(kept, every)} steps.")


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
    told = (
        f"checkpoint.keep_best = {best}: {_counted(saved, 'save')} (every {saves} steps) and "
        f"{_counted(evaluated, 'evaluation')}{f' (every {evaluations} steps)' if evaluations is not None else ''} have "
        f"{_counted(known, 'step')} in common; only there a checkpoint can be the best."
    )
    if evaluations is None:
        yield f"{told} Set `every` of its eval_interval to a multiple of `checkpoint.save_interval`."
    elif saves % evaluations and evaluations % saves:
        small, large = sorted((saves, evaluations))
        yield (
            f"{told} Give `checkpoint.save_interval` and `every` of its eval_interval in steps, one a multiple of the "
            f"other. The nearest multiples of {small} are {_nearest_multiples(large, small)}."
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


def source_faults(config: RunConfig) -> Iterator[Fault]:
    """Training sources that are missing, wrongly named, without paths or with settings at odds."""
    sources = config.data.sources
    if not sources:
        yield Fault("data.sources is empty", "a run needs text.", "Name at least one source and its `paths`.")
    yield from name_faults("data.sources", sources)
    if config.data.packing is not None and config.data.attention != "within_documents":
        rule = "documents that are packed into a sequence would see each other."
        yield Fault(f"data.packing = {config.data.packing}", rule, "Set data.attention: within_documents.")
    if config.data.packing is not None and config.data.sequence_length == 1:
        rule = "a sequence of one token holds no label of its document."
        yield Fault("data.sequence_length = 1 with data.packing", rule, "Take longer sequences.")
    for name, source in sources.items():
        yield from path_faults(f"data.sources.{name}.paths", source.paths)
        yield from _target_faults(f"data.sources.{name}", source)
        if source.quality is not None:
            yield from _quality_faults(f"data.sources.{name}.quality", source.quality)
        if source.sample_per_epoch is not None:
            yield from _draw_faults(f"data.sources.{name}.sample_per_epoch", source, config.data.sequence_length)
    yield from _mixed_target_faults(config.data)


def phase_faults(config: RunConfig) -> Iterator[Fault]:
    """Phases that do not follow each other from the beginning of the run, or that name no source."""
    before = -1
    for number, (phase, first) in enumerate(zip(config.data.phases, phase_steps(config), strict=True)):
        where = f"data.phases.{number}"
        yield from _beginning_faults(config, number, first, before)
        before = before if first is None else first
        if phase.ramp and number == 0:
            yield Fault(f"{where}.ramp = {phase.ramp}", "there is no phase before the first.", "Take it out.")
        for name in phase.weights:
            if name not in config.data.sources:
                yield _unknown_source(f"{where}.weights.{name}", name, config.data)


def share_faults(data: DataSettings) -> Iterator[Fault]:
    """Weights and a replay ratio that do not say how the sources share the run, or a phase of it."""
    if not data.phases:
        yield from _share_faults(data, "data")
    for number, phase in enumerate(data.phases):
        yield from _share_faults(data.in_phase(phase), f"data.phases.{number}")


def _beginning_faults(config: RunConfig, number: int, first: int | None, before: int) -> Iterator[Fault]:
    """`first` and `before`: steps before this phase and before the one before, -1 where there is none."""
    phase = config.data.phases[number]
    shown = f"data.phases.{number}.{phase.beginning}"
    ways = [way for way in (phase.from_tokens, phase.from_lr, phase.from_epoch) if way is not None]
    if len(ways) != 1:
        rule = "a phase begins at one of `from_tokens`, `from_lr` and `from_epoch`."
        yield Fault(shown.rstrip("."), rule, "Give it one of them.")
    elif number == 0 and (phase.from_tokens is None or first):
        yield Fault(shown, "the first phase begins with the run.", "Set it to 0, or put a phase from 0 before it.")
    elif first is not None and first <= before:
        rule = f"it begins at step {first}, and the phase before it at step {before}: each lasts at least one step."
        yield Fault(shown, rule, "List the phases in the order of training.")
    if phase.from_lr is not None:
        yield from _rate_faults(config, shown, first)
    if phase.from_epoch is not None and epochs_of_source(phase.from_epoch)[1] not in config.data.sources:
        yield _unknown_source(shown, epochs_of_source(phase.from_epoch)[1], config.data)


def _rate_faults(config: RunConfig, shown: str, first: int | None) -> Iterator[Fault]:
    if config.data.when_exhausted == "stop":
        rule = (
            "where a run stops by data.when_exhausted = stop its schedule ends too, so that this rate and that end "
            "would depend on each other."
        )
        yield Fault(shown, rule, "Use `from_tokens`, or set training.tokens to the length meant.")
    elif first is not None and first >= config.total_steps:
        final = f"schedule.kind = {config.schedule.kind}, schedule.final_lr = {config.schedule.final_lr:g}"
        yield Fault(shown, f"the learning rate never falls to it ({final}).", "Raise the share, or lower the final.")


def _unknown_source(shown: str, name: str, data: DataSettings) -> Fault:
    close = get_close_matches(name, data.sources, n=1) or list(data.sources)[:1]
    remedy = f"The nearest is `{close[0]}`." if close else "Name it under `data.sources`."
    return Fault(shown, "there is no such source.", remedy)


def _target_faults(where: str, source: SourceSettings) -> Iterator[Fault]:
    targets = {
        "tokens": source.tokens,
        "epochs": source.epochs,
        "quality.epochs": source.quality and source.quality.epochs,
    }
    given = [f"{name} = {value}" for name, value in targets.items() if value is not None]
    if len(given) > 1:
        yield Fault(f"{where}: {', '.join(given)}", "are targets, and a source has one.", "Keep one of them.")


def _mixed_target_faults(data: DataSettings) -> Iterator[Fault]:
    """A weight says nothing beside a number of tokens."""
    by_role = data.replay_ratio is not None or any(phase.replay_ratio is not None for phase in data.phases)
    for role in ("domain", "replay") if by_role else ("all",):
        members = {name: source for name, source in data.sources.items() if role in ("all", source.role)}
        without = [name for name, source in members.items() if source.weight and not source.has_target]
        if without and len(without) < sum(bool(source.weight) for source in members.values()):
            whose = "the run" if role == "all" else f"role `{role}`"
            yield Fault(
                f"data.sources: {', '.join(without)} without a target",
                f"other sources of {whose} have targets in tokens or epochs, beside which a weight means nothing.",
                "Give each of them `tokens` or `epochs`, or none.",
            )


def _quality_faults(where: str, quality: QualitySettings) -> Iterator[Fault]:
    bounds = quality.buckets
    if bounds[:1] != [0] or bounds[-1:] != [1] or any(low >= high for low, high in pairwise(bounds)):
        yield Fault(f"{where}.buckets = {bounds}", "bounds rise from 0 to 1.", "Write them as [0, 0.1, 0.5, 1].")
    if not quality.score.strip():
        yield Fault(f"{where}.score = '{quality.score}'", "a score has a name.", "Name it as `score --by` did.")
    curves = {"epochs": quality.epochs, "shares": quality.shares, "temperature": quality.temperature}
    given = {name: value for name, value in curves.items() if value is not None}
    if len(given) != 1:
        shown = f"{where}: {', '.join(given) or 'no curve'}"
        yield Fault(shown, "one of `epochs`, `shares` and `temperature` says what buckets give.", "Give one of them.")
    for name, values in given.items():
        if not isinstance(values, list):
            continue
        if len(values) != len(bounds) - 1:
            rule = f"there are {len(bounds) - 1} buckets and {len(values)} values."
            yield Fault(f"{where}.{name} = {values}", rule, "Give one for each bucket, the best first.")
        if not any(values):
            yield Fault(f"{where}.{name} = {values}", "every bucket is dropped.", "Give one more than 0.")


def _draw_faults(where: str, source: SourceSettings, sequence_length: int) -> Iterator[Fault]:
    assert source.sample_per_epoch is not None
    shown = f"{where}.tokens = {source.sample_per_epoch.tokens}"
    if source.sample_per_epoch.tokens < sequence_length:
        yield Fault(shown, f"a draw holds at least one sequence of {sequence_length} tokens.", "Raise it.")
    if source.quality is not None:
        rule = "buckets of a source are read in epochs of their own, not in draws."
        yield Fault(shown, rule, "Draw from a selection (`megatron-cpt select`), or take `quality` out.")


def _share_faults(data: DataSettings, section: str) -> Iterator[Fault]:
    sources, ratio = data.sources, data.replay_ratio
    if not sources:
        return
    if ratio is None:
        if not any(source.weight for source in sources.values()):
            shown = "data.sources" if section == "data" else section
            yield Fault(f"{shown}: all weights are 0", "nothing would be read.", "Give one a weight.")
        return
    shown = f"{section}.replay_ratio = {ratio:g}"
    for role, share in (("replay", ratio), ("domain", 1 - ratio)):
        members = [source for source in sources.values() if source.role == role]
        weighted = [name for name, source in sources.items() if source.role == role and source.weight]
        if share and not members:
            rule = f"it gives {share:.4g} of the tokens to `{role}` sources, and there are none."
            yield Fault(shown, rule, f"Give a source `role: {role}`, or take the ratio out.")
        elif share and not weighted:
            rule = f"it gives {share:.4g} of the tokens to `{role}` sources, whose weights are all 0."
            yield Fault(shown, rule, f"Give a `{role}` source a weight, or take the ratio out.")


# Which kinds know a setting; where it is set for another, it would be ignored in silence.
_BELONGS_TO = {
    "decay": ("wsd", "infinite"),
    "decay_shape": ("wsd", "infinite"),
    "cooldown": ("infinite",),
    "plateau_lr": ("infinite",),
    "pieces": ("piecewise",),
}
_TO_FINAL = ("linear", "cosine", "wsd", "infinite")


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
    parts = {name: getattr(schedule, name) for name in ("warmup", "cooldown", "decay")}
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
    """Parts of the schedule that are together longer than the run."""
    if config.init_from.load_schedule or config.init_from.load_data_position:
        return  # its length is not that of the run
    yield from _parts_faults(config.schedule, config.total_tokens, config.tokens_per_step, config.total_steps)


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
        elif place >= config.total_tokens:
            rule = f"it is not reached by the run of {config.total_tokens} tokens."
            yield Fault(shown, rule, "Move it to the front, or train longer.")
        before = place


def _rank_faults(config: RunConfig, world_size: int | None) -> Iterator[Fault]:
    """Batches and model parts that the ranks cannot share evenly, and settings that lack what they rest on."""
    parallel, training = config.parallel, config.training
    yield from _dependence_faults(config)
    sizes = {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "context": parallel.context}
    if world_size is not None and world_size < 1:
        yield Fault(f"{world_size} ranks", "a run has at least one.", "Give `--nproc` a number from 1 on.")
        return
    model_ranks = prod(sizes.values())
    if world_size is not None and world_size % model_ranks:
        factors = " * ".join(f"parallel.{name}" for name, size in sizes.items() if name != "context" or size > 1)
        yield Fault(
            f"{world_size} ranks",
            f"each copy of the model takes {factors} = {model_ranks} ranks.",
            f"Start a multiple of {model_ranks} ranks, or lower those sizes.",
        )
        return
    replicas = 1 if world_size is None else world_size // model_ranks
    forward = training.micro_batch_size * replicas
    if training.global_batch_size % forward:
        factors = "training.micro_batch_size" + (" * data-parallel ranks" if replicas > 1 else "")
        yield Fault(
            f"training.global_batch_size = {training.global_batch_size}",
            f"it should be a multiple of {factors} = {forward}.",
            f"The nearest are {_nearest_multiples(training.global_batch_size, forward)}.",
        )
    elif in_ramp := [*_ramp_faults(config, forward)]:
        yield from in_ramp
    elif world_size is not None:
        sizes_of_steps = [*(piece.size for piece in config.batches.ramp), training.global_batch_size]
        for micro_batches in sorted({size // forward for size in sizes_of_steps}):
            yield from _interleaving_faults(parallel, micro_batches)
    if world_size is not None and replicas * parallel.context % parallel.expert:
        yield Fault(
            f"parallel.expert = {parallel.expert}",
            f"experts are divided among the {replicas * parallel.context} ranks that would hold the same ones.",
            f"Use a divisor of {replicas * parallel.context}, or start more ranks.",
        )


def _dependence_faults(config: RunConfig) -> Iterator[Fault]:
    """Settings that mean nothing without another one."""
    parallel, length = config.parallel, config.data.sequence_length
    if parallel.sequence and parallel.tensor == 1:
        rule = "it divides sequences over tensor-parallel ranks, and parallel.tensor is 1."
        yield Fault("parallel.sequence = true", rule, "Raise parallel.tensor, or take it out.")
    parts = sequence_parts(parallel)
    if length % parts:
        names = [f"parallel.tensor = {parallel.tensor}"] if parallel.sequence else []
        names += [f"2 * parallel.context = {2 * parallel.context}"] if parallel.context > 1 else []
        yield Fault(
            f"data.sequence_length = {length}",
            f"ranks that share sequences share them evenly: it should be a multiple of {' times '.join(names)}.",
            f"The nearest are {_nearest_multiples(length, parts)}.",
        )
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        rule = "a pipeline of one stage has nothing to interleave."
        yield Fault(
            f"parallel.virtual_pipeline = {parallel.virtual_pipeline}", rule, "Raise parallel.pipeline, or set it to 1."
        )
    passed = config.megatron.transformer
    if isinstance(passed.get("cp_comm_type"), list):
        # Megatron-LM pull request 3389.
        yield Fault(
            f"megatron.transformer.cp_comm_type = {passed['cp_comm_type']}",
            "Megatron-Core before 0.17 gives each layer the word of the next.",
            "Give one word for all layers.",
        )
    if passed.get("tp_comm_overlap"):
        yield Fault(
            "megatron.transformer.tp_comm_overlap = true",
            "Transformer Engine overlaps tensor-parallel communication in buffers of its own, which are not made here: "
            "the first layer would fail.",
            "Take it out. parallel.sequence and the overlaps of data parallelism are there.",
        )
    if parallel.virtual_pipeline > 1 and passed.get("deallocate_pipeline_outputs"):
        # Megatron-LM pull request 4047.
        yield Fault(
            "megatron.transformer.deallocate_pipeline_outputs = true",
            "Megatron-Core before 0.18 frees what an interleaved pipeline is still sending, and the next stage reads "
            "other numbers.",
            "Take it out, or set parallel.virtual_pipeline to 1.",
        )
    balance = passed.get("moe_router_load_balancing_type")
    together = config.data.attention == "within_documents" and config.training.micro_batch_size > 1
    if together and "seq_aux_loss" in ([balance] if isinstance(balance, str) else balance or []):
        yield Fault(
            f"megatron.transformer.moe_router_load_balancing_type = {balance}",
            "with data.attention: within_documents a micro batch is one row, and the balance of each sequence would be "
            "that of the row.",
            "Set training.micro_batch_size to 1, or use aux_loss.",
        )
    if parallel.overlap_param_gather and not parallel.distributed_optimizer:
        rule = "parameters are gathered only where the distributed optimizer divides them."
        yield Fault("parallel.overlap_param_gather = true", rule, "Set parallel.distributed_optimizer, or take it out.")
    elif parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        rule = "Megatron-Core overlaps the gathering of parameters only together with the reduction of gradients."
        yield Fault("parallel.overlap_param_gather = true", rule, "Set parallel.overlap_grad_reduce as well.")


def _ramp_faults(config: RunConfig, forward: int) -> Iterator[Fault]:
    """A ramp of batch sizes that does not lead to the full one, or whose pieces the ranks cannot share evenly.

    Args:
        forward: sequences of one forward pass over all replicas.
    """
    ramp, size = config.training.batch_size_rampup, config.training.global_batch_size
    if ramp is None:
        return
    if ramp.start >= size:
        rule = f"it should be below training.global_batch_size = {size}."
        yield Fault(f"training.batch_size_rampup.start = {ramp.start}", rule, "Lower it, or take the ramp out.")
        return
    if (size - ramp.start) % ramp.increment:
        rule = f"it does not lead from {ramp.start} to training.global_batch_size = {size} in even pieces."
        remedy = f"Use a divisor of {size - ramp.start}."
        yield Fault(f"training.batch_size_rampup.increment = {ramp.increment}", rule, remedy)
    for name, value in (("start", ramp.start), ("increment", ramp.increment)):
        if value % forward:
            yield Fault(
                f"training.batch_size_rampup.{name} = {value}",
                f"every batch of the ramp should be a multiple of {forward}, the sequences of one forward pass over "
                "all data-parallel ranks.",
                f"The nearest are {_nearest_multiples(value, forward)}.",
            )


def sequence_parts(parallel: ParallelSettings) -> int:
    """Equal parts that the ranks cut each sequence into."""
    return (parallel.tensor if parallel.sequence else 1) * (2 * parallel.context if parallel.context > 1 else 1)


def _interleaving_faults(parallel: ParallelSettings, micro_batches: int) -> Iterator[Fault]:
    """Micro batches of a step that do not fill rounds of an interleaved pipeline."""
    if parallel.virtual_pipeline > 1 and parallel.pipeline > 1 and micro_batches % parallel.pipeline:
        yield Fault(
            f"{micro_batches} micro batches in a step",
            f"an interleaved pipeline takes a multiple of parallel.pipeline = {parallel.pipeline} of them.",
            "Raise training.global_batch_size, lower training.micro_batch_size, or set parallel.virtual_pipeline to 1.",
        )


def _counted(things: Sized, noun: str) -> str:
    """How many things there are, in words."""
    return f"{len(things)} {noun}{'s' if len(things) != 1 else ''}"


def _nearest_multiples(number: int, factor: int) -> str:
    """The multiples of a factor on both sides of a number, in words."""
    below = number // factor * factor
    return f"{below} and {below + factor}" if below else f"{factor} and {2 * factor}"


_SHAPE = "the model's own config.json, in the folder `model.hf`"
_PRECISION = "`training.precision`"

_TRANSFORMER = {
    **dict.fromkeys(
        (
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "normalization",
            "layernorm_epsilon",
            "layernorm_zero_centered_gamma",
            "add_bias_linear",
            "add_qkv_bias",
            "gated_linear_unit",
            "activation_func",
            "qk_layernorm",
            "rotary_interleaved",
            "softmax_scale",
            "window_size",
            "num_moe_experts",
            "multi_latent_attention",
        ),
        _SHAPE,
    ),
    **dict.fromkeys(("hidden_dropout", "attention_dropout"), "`model.dropout`"),
    **dict.fromkeys(("perform_initialization", "use_cpu_initialization"), "`model.weights`"),
    **dict.fromkeys(
        ("params_dtype", "pipeline_dtype", "bf16", "fp16", "enable_autocast", "autocast_dtype"), _PRECISION
    ),
    "tensor_model_parallel_size": "`parallel.tensor`",
    "sequence_parallel": "`parallel.sequence`",
    "context_parallel_size": "`parallel.context`",
    "expert_model_parallel_size": "`parallel.expert`",
    **dict.fromkeys(("recompute_granularity", "recompute_method", "recompute_num_layers"), "`training.recompute`"),
    "pipeline_model_parallel_size": "`parallel.pipeline`",
    **dict.fromkeys(
        (
            "virtual_pipeline_model_parallel_size",
            "microbatch_group_size_per_vp_stage",
            # With interleaved stages any other values of these two give wrong losses in silence.
            "overlap_p2p_comm",
            "batch_p2p_comm",
        ),
        "`parallel.virtual_pipeline`",
    ),
    **dict.fromkeys(
        (
            "hierarchical_context_parallel_sizes",
            "expert_tensor_parallel_size",
            "calculate_per_token_loss",
            # 0.16.1 rounds the residual stream to bf16 all the same; torch's norms refuse it in every release.
            "fp32_residual_connection",
            # Weights that are stored in fp8 or fp4: no checkpoint and no export of them was tried. `fp8` alone computes
            # in it, and is passed.
            "fp8_param",
            "fp4_param",
            "variable_seq_lengths",
            "finalize_model_grads_func",
            "grad_scale_func",
            "no_sync_func",
            "grad_sync_func",
            "param_sync_func",
            "moe_layer_recompute",
            "timers",
        )
    ),
}
_OPTIMIZER = {
    "lr": "`schedule.peak_lr`",
    "min_lr": "`schedule.final_lr`",
    "decoupled_lr": "`schedule.peak_lr`",
    "decoupled_min_lr": "`schedule.final_lr`",
    "weight_decay": "`optimizer.weight_decay`",
    "adam_beta1": "`optimizer.beta1`",
    "adam_beta2": "`optimizer.beta2`",
    "adam_eps": "`optimizer.epsilon`",
    "clip_grad": "`optimizer.clip_grad`",
    **dict.fromkeys(("params_dtype", "bf16", "fp16"), _PRECISION),
    "use_distributed_optimizer": "`parallel.distributed_optimizer`",
    **dict.fromkeys(("optimizer", "decoupled_weight_decay", "timers")),
}
DDP = {
    "use_distributed_optimizer": "`parallel.distributed_optimizer`",
    "overlap_grad_reduce": "`parallel.overlap_grad_reduce`",
    "overlap_param_gather": "`parallel.overlap_param_gather`",
    **dict.fromkeys(
        (
            "grad_reduce_in_fp32",
            "average_in_collective",
            "use_megatron_fsdp",
            "use_custom_fsdp",
            # More than one takes process groups that are not made here.
            "num_distributed_optimizer_instances",
            # Weights that are stored in fp8 or fp4, as above.
            "fp8_param_gather",
            "fp4_param_gather",
            "reuse_grad_buf_for_mxfp8_param_ag",
        )
    ),
}


def _contradictions(section: str, passed: Mapping[str, Any], ours: Mapping[str, str | None]) -> list[Fault]:
    """A fault for each passed name that we set ourselves.

    Args:
        section: what users write: `megatron.transformer`.
        ours: one of the tables above.
    """
    return [
        Fault(
            f"{section}.{name} = {value}",
            "megatron-cpt sets this field itself.",
            f"Take it out and use {ours[name]}." if ours[name] else "Take it out; it cannot be chosen.",
        )
        for name, value in passed.items()
        if name in ours
    ]
