"""What is wrong with a configuration although each of its values is right: every rule that needs no file.

Rules that need data, the model's own config.json or the machine are those of planning/faults.py.
"""

from collections.abc import Iterator

from megatron_cpt.config.blend_faults import phase_faults, share_faults, source_faults
from megatron_cpt.config.errors import Fault
from megatron_cpt.config.layout_faults import layout_faults, nearest_multiples
from megatron_cpt.config.marks import LOG_MARKS_GRAMMAR, mark_steps, parse_log_marks
from megatron_cpt.config.megatron_names import DDP, OPTIMIZER, TRANSFORMER, contradictions
from megatron_cpt.config.names import name_faults, path_faults
from megatron_cpt.config.profile import profiled_steps
from megatron_cpt.config.schedule_faults import schedule_faults
from megatron_cpt.config.schema import MarksSettings, RunConfig


def config_faults(config: RunConfig, world_size: int | None = None) -> list[Fault]:
    """Everything that the configuration alone gets wrong.

    Args:
        world_size: ranks of the run; None where it is not known: rules about it are left out.
    """
    return [
        *run_faults(config),
        *source_faults(config),
        *phase_faults(config),
        *share_faults(config.data),
        *layout_faults(config, world_size),
        *schedule_faults(config),
        *rope_faults(config),
        *optimizer_faults(config),
        *validation_faults(config),
        *task_faults(config),
        *checkpoint_faults(config),
        *contradictions("megatron.transformer", config.megatron.transformer, TRANSFORMER),
        *contradictions("megatron.optimizer", config.megatron.optimizer, OPTIMIZER),
        *contradictions("megatron.ddp", config.megatron.ddp, DDP),
    ]


def run_faults(config: RunConfig) -> Iterator[Fault]:
    """Empty names of folders, and steps to profile that are none."""
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


def rope_faults(config: RunConfig) -> Iterator[Fault]:
    """Numbers of a scaling that there is none of."""
    rope = config.model.rope
    if rope is None or rope.scaling not in ("kept", "none"):
        return
    given = {"factor": rope.factor, "original_positions": rope.original_positions, "further": rope.further or None}
    for name, value in given.items():
        if value is not None:
            rule = f"is a number of a scaling, and model.rope.scaling is {rope.scaling}."
            yield Fault(f"model.rope.{name} = {value}", rule, "Set it to linear, llama3 or yarn, or take this out.")


def optimizer_faults(config: RunConfig) -> Iterator[Fault]:
    """Decays of moments with which AdamW divides by 0, and layers with two rates or none."""
    for name in ("beta1", "beta2"):
        if getattr(config.optimizer, name) == 1:
            yield Fault(f"optimizer.{name} = 1", "it should be below 1.", "The usual are 0.9 and 0.95.")
    named: set[int] = set()
    for number, group in enumerate(config.optimizer.rates.layers):
        shown = f"optimizer.rates.layers.{number} = {group.first} to {group.last}"
        if group.first > group.last:
            yield Fault(shown, "the first layer comes after the last.", "Exchange them.")
        layers = set(range(group.first, group.last + 1))
        if layers & named:
            rule = f"layer {min(layers & named)} has a rate already."
            yield Fault(shown, rule, "Name each layer once.")
        named |= layers


def validation_faults(config: RunConfig) -> Iterator[Fault]:
    """Validation sets that are wrongly named or without paths, and marks that cannot be read."""
    sets, length = config.validation.sets, config.data.sequence_length
    yield from name_faults("validation.sets", sets)
    yield from _mark_faults("validation.marks", config.validation.marks)
    measured = config.validation.stability_gradient
    if measured is not None and measured not in sets:
        rule = f"is no validation set; there are: {', '.join(sets) or 'none'}."
        yield Fault(f"validation.stability_gradient = {measured}", rule, "Name one, or take it out.")
    if config.validation.weight_updates and config.model.weights == "random":
        rule = "updates are measured from weights that can be read again after a stop, and model.weights is random."
        yield Fault("validation.weight_updates = true", rule, "Set it to false, or start from a folder's weights.")
    for name, settings in sets.items():
        yield from path_faults(f"validation.sets.{name}.paths", settings.paths)
        if settings.marks:
            yield from _mark_faults(f"validation.sets.{name}.marks", settings.marks)
        if settings.tokens is not None and settings.tokens < length:
            yield Fault(
                f"validation.sets.{name}.tokens = {settings.tokens}",
                f"it holds no whole sequence of data.sequence_length = {length} tokens.",
                "Raise it, or take it out to use the whole set.",
            )


def task_faults(config: RunConfig) -> Iterator[Fault]:
    """Tasks that are wrongly named or without a path, and marks that cannot be read."""
    tasks = config.tasks
    yield from name_faults("tasks.sets", tasks.sets)
    yield from name_faults("tasks.groups", tasks.groups)
    yield from _mark_faults("tasks.marks", tasks.marks)
    for name, settings in tasks.sets.items():
        if not settings.path.strip():
            yield Fault(f"tasks.sets.{name}.path is empty", "there is nothing to ask.", "Name a JSONL file.")
        if settings.marks:
            yield from _mark_faults(f"tasks.sets.{name}.marks", settings.marks)
    yield from name_faults("tasks.harness", tasks.harness)
    for name, asked in tasks.harness.items():
        if not asked.tasks:
            yield Fault(f"tasks.harness.{name}.tasks is empty", "there is nothing to ask.", "Name tasks.")
        if asked.marks:
            yield from _mark_faults(f"tasks.harness.{name}.marks", asked.marks)


def checkpoint_faults(config: RunConfig) -> Iterator[Fault]:
    """Checkpoints at distances that do not fit each other, and a best one that nothing would show."""
    if config.start.data == "new":  # else its steps count from a checkpoint: planning/start_faults.py
        yield from best_faults(config)
    checkpoint, step = config.checkpoint, config.tokens_per_step
    if checkpoint.keep_every is None:
        return
    shown = f"checkpoint.keep_every = {checkpoint.keep_every}"
    if checkpoint.every is None:
        rule = "there is one checkpoint, at the end: `checkpoint.every` is not set."
        yield Fault(shown, rule, "Set `checkpoint.every`, or take this out.")
        return
    kept, every = checkpoint.keep_every.steps(step), checkpoint.every.steps(step)
    if kept % every:
        rule = f"{kept} steps are not a multiple of checkpoint.every, {every} steps."
        yield Fault(shown, rule, f"The nearest are {nearest_multiples(kept, every)} steps.")


def best_faults(config: RunConfig, first_step: int = 0) -> Iterator[Fault]:
    """A best checkpoint that nothing would show, in a run that begins after some step."""
    best, step = config.checkpoint.keep_best, config.tokens_per_step
    if best is None:
        return
    shown = f"checkpoint.keep_best = {best}"
    if best not in config.validation.sets:
        known = ", ".join(config.validation.sets) or "none"
        yield Fault(shown, f"there is no such validation set (there are: {known}).", "Name one of `validation.sets`.")
        return
    marks = config.validation.sets[best].marks or config.validation.marks
    if marks.log is not None and [*_mark_faults("", marks)]:
        return
    every = config.checkpoint.every.steps(step) if config.checkpoint.every else config.total_steps
    saved = {*range(every, config.total_steps + 1, every), config.total_steps}
    ramp = config.token_batches.after(first_step).ramp
    evaluated = {first_step + mark for mark in mark_steps(marks, config.total_steps - first_step, step, ramp)}
    if not saved & evaluated - {first_step}:
        rule = f"`{best}` is evaluated at none of the steps that are saved."
        yield Fault(shown, rule, "Set `every` of its marks to a multiple of `checkpoint.every`.")


def _mark_faults(name: str, marks: MarksSettings) -> Iterator[Fault]:
    if marks.log is None:
        return
    try:
        parse_log_marks(marks.log)
    except ValueError:
        yield Fault(f"{name}.log = '{marks.log}'", f"it should read like {LOG_MARKS_GRAMMAR}.", "Rewrite it.")
