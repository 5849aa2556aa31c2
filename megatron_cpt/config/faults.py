"""What is wrong with a configuration although each of its values is right: every rule that needs no file.

Rules that need data, the model's own config.json or the machine are those of planning/faults.py.
"""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.marks import LOG_MARKS_GRAMMAR, parse_log_marks
from megatron_cpt.config.megatron_names import DDP, OPTIMIZER, TRANSFORMER, contradictions
from megatron_cpt.config.schedule import decay_tokens
from megatron_cpt.config.schema import DataSettings, MarksSettings, RunConfig

# Names stand in file names, TensorBoard tags and `data.sources.NAME.weight=2`.
_NAME = re.compile(r"[\w-]+")


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
        *optimizer_faults(config),
        *validation_faults(config),
        *task_faults(config),
        *checkpoint_faults(config),
        *contradictions("megatron.transformer", config.megatron.transformer, TRANSFORMER),
        *contradictions("megatron.optimizer", config.megatron.optimizer, OPTIMIZER),
        *contradictions("megatron.ddp", config.megatron.ddp, DDP),
    ]


def run_faults(config: RunConfig) -> Iterator[Fault]:
    """Empty names of folders."""
    for name, folder, remedy in (
        ("run.folder", config.run.folder, "Name the folder that the run is to be written to."),
        ("model.hf", config.model.hf, "Name a folder with a Hugging Face model."),
    ):
        if not folder.strip():
            yield Fault(f"{name} = '{folder}'", "a folder needs a name.", remedy)


def source_faults(config: RunConfig) -> Iterator[Fault]:
    """Training sources that are missing, wrongly named or without paths."""
    sources = config.data.sources
    if not sources:
        yield Fault("data.sources is empty", "a run needs text.", "Name at least one source and its `paths`.")
    yield from _name_faults("data.sources", sources)
    for name, source in sources.items():
        yield from _path_faults(f"data.sources.{name}.paths", source.paths)


def phase_faults(config: RunConfig) -> Iterator[Fault]:
    """Phases that do not follow each other from the beginning of the run, or that name no source."""
    data, before = config.data, -1
    for number, phase in enumerate(data.phases):
        shown = f"data.phases.{number}.from_tokens = {phase.from_tokens}"
        first = phase.first_step(config.tokens_per_step)
        if number == 0 and first:
            rule = "the first phase begins with the run."
            yield Fault(shown, rule, "Set it to 0, or put a phase from 0 before it.")
        elif first <= before:
            rule = f"it begins at step {first}, and the phase before it at step {before}: each lasts at least one step."
            yield Fault(shown, rule, "List the phases in the order of training.")
        before = first
        for name in phase.weights:
            if name not in data.sources:
                close = get_close_matches(name, data.sources, n=1) or list(data.sources)[:1]
                remedy = f"The nearest is `{close[0]}`." if close else "Name it under `data.sources`."
                yield Fault(f"data.phases.{number}.weights.{name}", "there is no such source.", remedy)


def share_faults(data: DataSettings) -> Iterator[Fault]:
    """Weights and a replay ratio that do not say how the sources share the run, or a phase of it."""
    if not data.phases:
        yield from _share_faults(data, "data")
    for number, phase in enumerate(data.phases):
        yield from _share_faults(data.in_phase(phase), f"data.phases.{number}")


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


def layout_faults(config: RunConfig, world_size: int | None) -> Iterator[Fault]:
    """Batches and model parts that the ranks cannot share evenly."""
    parallel, training = config.parallel, config.training
    if parallel.virtual_pipeline > 1:
        yield Fault(
            f"parallel.virtual_pipeline = {parallel.virtual_pipeline}",
            "interleaved pipelines are not supported in this version.",
            "Set it to 1.",
        )
    model_ranks = parallel.tensor * parallel.pipeline
    if world_size is not None and world_size % model_ranks:
        yield Fault(
            f"{world_size} ranks",
            f"each copy of the model takes parallel.tensor * parallel.pipeline = {model_ranks} ranks.",
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


def schedule_faults(config: RunConfig) -> Iterator[Fault]:
    """A learning-rate schedule that does not fit the run."""
    schedule, total, step = config.schedule, config.total_tokens, config.tokens_per_step
    if schedule.kind != "constant" and schedule.final > schedule.peak:
        yield Fault(
            f"schedule.final = {schedule.final:g}",
            f"it should not be above schedule.peak = {schedule.peak:g}.",
            "Lower it, or raise the peak.",
        )
    warmup = schedule.warmup.tokens(step) if schedule.warmup else 0
    if warmup > total:
        yield Fault(
            f"schedule.warmup = {schedule.warmup}",
            f"it is longer than the run of {total} tokens ({config.total_steps} steps).",
            "Shorten the warm-up, or train longer.",
        )
    elif schedule.kind != "constant" and warmup == total:
        yield Fault(
            f"schedule.warmup = {schedule.warmup}",
            f"it takes the whole run: nothing is left to bring the rate to {schedule.final:g}.",
            "Shorten the warm-up, or use `schedule.kind: constant`.",
        )
    if schedule.decay and schedule.kind != "wsd":
        rule = f"a separate decay belongs to `wsd`, and schedule.kind is {schedule.kind}."
        yield Fault(f"schedule.decay = {schedule.decay}", rule, "Take it out, or use `schedule.kind: wsd`.")
    decay = decay_tokens(schedule, total, step) if schedule.kind == "wsd" else 0
    if warmup < total < warmup + decay:
        shown = schedule.decay or f"a tenth of the run, {decay} tokens"
        rule = f"warm-up and decay together ({warmup + decay} tokens) are longer than the run ({total} tokens)."
        yield Fault(f"schedule.decay = {shown}", rule, "Shorten one of them, or train longer.")


def optimizer_faults(config: RunConfig) -> Iterator[Fault]:
    """Decays of moments with which AdamW divides by 0."""
    for name in ("beta1", "beta2"):
        if getattr(config.optimizer, name) == 1:
            yield Fault(f"optimizer.{name} = 1", "it should be below 1.", "The usual are 0.9 and 0.95.")


def validation_faults(config: RunConfig) -> Iterator[Fault]:
    """Validation sets that are wrongly named or without paths, and marks that cannot be read."""
    sets, length = config.validation.sets, config.data.sequence_length
    yield from _name_faults("validation.sets", sets)
    yield from _mark_faults("validation.marks", config.validation.marks)
    measured = config.validation.stability_gradient
    if measured is not None and measured not in sets:
        rule = f"is no validation set; there are: {', '.join(sets) or 'none'}."
        yield Fault(f"validation.stability_gradient = {measured}", rule, "Name one, or take it out.")
    if config.validation.weight_updates and config.model.weights == "random":
        rule = "updates are measured from weights that can be read again after a stop, and model.weights is random."
        yield Fault("validation.weight_updates = true", rule, "Set it to false, or start from a folder's weights.")
    for name, settings in sets.items():
        yield from _path_faults(f"validation.sets.{name}.paths", settings.paths)
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
    yield from _name_faults("tasks.sets", tasks.sets)
    yield from _name_faults("tasks.groups", tasks.groups)
    yield from _mark_faults("tasks.marks", tasks.marks)
    for name, settings in tasks.sets.items():
        if not settings.path.strip():
            yield Fault(f"tasks.sets.{name}.path is empty", "there is nothing to ask.", "Name a JSONL file.")
        if settings.marks:
            yield from _mark_faults(f"tasks.sets.{name}.marks", settings.marks)


def checkpoint_faults(config: RunConfig) -> Iterator[Fault]:
    """Checkpoints at distances that do not fit each other."""
    checkpoint, step = config.checkpoint, config.tokens_per_step
    if checkpoint.asynchronous:
        rule = "asynchronous saves are not supported in this version."
        yield Fault("checkpoint.asynchronous = true", rule, "Set it to false.")
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
        yield Fault(shown, rule, f"The nearest are {_nearest_multiples(kept, every)} steps.")


def _name_faults(section: str, names: Iterable[str]) -> Iterator[Fault]:
    for name in names:
        if not _NAME.fullmatch(name):
            rule = "a name holds letters, digits, `-` and `_`: it stands in file names and dotted settings."
            yield Fault(f"{section}: '{name}'", rule, "Rename it.")


def _path_faults(name: str, paths: list[str]) -> Iterator[Fault]:
    remedy = "Name dataset prefixes (`DIR/NAME` of `DIR/NAME.bin`), selections or globs."
    if not paths:
        yield Fault(f"{name} is empty", "there is nothing to read.", remedy)
    elif not all(path.strip() for path in paths):
        yield Fault(f"{name} has an empty path", "a path names something.", remedy)


def _mark_faults(name: str, marks: MarksSettings) -> Iterator[Fault]:
    if marks.log is None:
        return
    try:
        parse_log_marks(marks.log)
    except ValueError:
        yield Fault(f"{name}.log = '{marks.log}'", f"it should read like {LOG_MARKS_GRAMMAR}.", "Rewrite it.")


def _nearest_multiples(number: int, factor: int) -> str:
    below = number // factor * factor
    return f"{below} and {below + factor}" if below else f"{factor} and {2 * factor}"
