"""What a start of a run changes since the steps that its checkpoint has done, and what of it is refused.

The configuration of every start is kept (RUN/config.step-N.yaml), so that what is compared is the one with which the
last of those steps was made, whatever was tried since. What a step cannot do without, the data already read and the
parts that are trained, the checkpoint says itself (position.json).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, refuse
from megatron_cpt.config.eval_schedule import parse_log_spaced
from megatron_cpt.config.load import load_config, plain
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.label_mask import label_mask, set_identity
from megatron_cpt.corpus.stream import scored_tokens
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.mixture.blend import BlendPlan, differences
from megatron_cpt.mixture.phases import source_of
from megatron_cpt.planning.checks import batch_faults, differing_fields
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.known_datasets import DatasetChange, changed_datasets
from megatron_cpt.planning.plan import RunPlan
from megatron_cpt.planning.text_tables import percent
from megatron_cpt.runs.checkpoint_state import CheckpointState, newest_checkpoint, read_state, without_optimizer
from megatron_cpt.runs.folder import RunFolder

# How a run is computed and what is kept of it, not what is computed: a finished run may be started again with others.
NOT_THE_RESULT = (
    *("run.log_interval", "run.profile", "run.profile_ranks"),
    *("run.peak_flops", "run.wandb_project", "run.allow_loss_changes"),
    *("parallel", "checkpoint", "stop", "timeout", "model.initial_loss_check"),
    *("training.micro_batch_size", "training.recompute"),
    *("validation.micro_batch_size", "tasks.micro_batch_size", "data.sources.*.paths", "validation.sets.*.paths"),
)
# Done with once the first step is made.
OF_THE_BEGINNING = ("init_from", "model.weights", "optimizer.moment_warmup_steps")
# No step depends on it: it tells of the model that the run began with.
OF_THE_BASE = ("base_history",)
# Which labels count and what they are told by: another loss by the same name. That of training text has no identity
# of its own that would show it, as a validation set has.
LOSS_MEANING = ("data.attention", "data.loss_mask", "data.sources.*.loss_mask_column")

# What another packing changes of every source.
_OF_PACKING = re.compile(r"sources\..*\.(identity|tokens): ")

_ALLOW = "`run.allow_loss_changes=true` goes on all the same, and the report shows the break"


@dataclass(frozen=True)
class SettingChange:
    """A setting that was changed between two starts of a run."""

    key: str
    """Its name, such as `schedule.peak_lr`."""
    before: Any
    """Its value at the start before; None too where it was not there."""
    now: Any
    """Its value now; None too where it is not there."""

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} before, {_shown(self.now)} now"


@dataclass(frozen=True)
class ResumeChanges:
    """What a start changes."""

    step: int = 0
    """Steps done before it."""
    changes: tuple[SettingChange, ...] = ()
    """Every setting that is another one than before."""
    unknown: str | None = None
    """Why they are not known; None where they are."""
    measures: tuple[str, ...] = ()
    """Names of the validation sets and tasks of files that are no longer what they were."""

    def lines(self) -> list[str]:
        """A line each, for people."""
        past = within(self.changes, OF_THE_BASE)
        found = [
            f"changed for all steps, those done too (lineage.json tells it anew): {change}"
            if change in past
            else f"changed from step {self.step + 1} on: {change}"
            for change in self.changes
        ]
        if self.unknown:
            found.append(f"what was changed after step {self.step} is not known: {self.unknown}")
        return [*found, *(measure_line(self.step, name) for name in self.measures)]


def measure_line(step: int, name: str) -> str:
    """What is said of a validation set or task that is another one after a step."""
    return f"changed from step {step + 1} on: {name} is a different one"


def resume_changes(plan: RunPlan) -> ResumeChanges:
    """What this start of a run changes; nothing where it has no checkpoint yet.

    Raises:
        BadInput: the run would go on with other data, other sizes of the steps done, other trained parts or other
            rotary positions than its checkpoint, or than the one whose data order or optimizer state it takes over
            (`init_from`); it is shorter than its checkpoint, at its end with another configuration, or changes what can
            no longer count, what a loss means, or what a validation set or the task of a file holds.
        IntegrityFault: a checkpoint contradicts itself.
    """
    config, folder = plan.config, RunFolder(plan.folder)
    newest = newest_checkpoint(folder.checkpoints)
    if newest is None:
        refuse([*_parent_faults(plan)])
        return ResumeChanges()
    state = read_state(newest)
    changed = changed_measures(state.measures, measures(config, plan.inputs))
    found = replace(_changes_since(folder, state.step, config), measures=tuple(changed))
    faults = [
        *_length_faults(config, str(newest), state.step),
        *batch_faults(config, str(newest), state.step, state.sequences, state.batches),
        *_order_faults(newest, state, plan),
        *_part_faults(newest, state, config),
        *_model_faults(newest, config, plan.inputs.shape),
    ]
    if state.step == config.total_steps:
        faults += _finished_faults(folder, state.step, found.changes)
    faults += [*_beginning_faults(found.changes), *_start_weights_faults(config, found.changes)]
    others = {
        name: list(changed_datasets(state, name, plan.inputs.validation_sets[name.removeprefix("validation.sets.")]))
        for name in changed
        if name.startswith("validation.sets.")
    }
    refuse([*faults, *_meaning_faults(config, found.changes), *measure_faults(config, changed, others)])
    return found


def _parent_faults(plan: RunPlan) -> Iterator[Fault]:
    """Another run's checkpoint, of which a new run is to keep what it cannot keep."""
    start = plan.config.init_from
    if start.checkpoint is None or not (start.load_data_position or start.load_optimizer):
        return
    checkpoint = Path(start.checkpoint)
    state = read_state(checkpoint)
    if start.load_data_position:
        yield from _order_faults(checkpoint, state, plan)
    if start.load_optimizer:
        yield from _part_faults(checkpoint, state, plan.config)


def _changes_since(folder: RunFolder, step: int, config: RunConfig) -> ResumeChanges:
    """The settings that differ from those with which a step was made."""
    path = _config_of_step(folder, step)
    try:
        before = load_config(path)
    except BadInput as error:
        return ResumeChanges(step, unknown=f"{path} cannot be read ({error})".replace("\n", " "))
    return ResumeChanges(step, tuple(setting_changes(before, config)))


def _config_of_step(folder: RunFolder, step: int) -> Path:
    """The file of the configuration with which a step was made."""
    earlier = [path for first, path in folder.configs().items() if first < step]
    return earlier[-1] if earlier else folder.config


def _length_faults(config: RunConfig, checkpoint: str, step: int) -> list[Fault]:
    """A run that is to end before the checkpoint that it goes on from."""
    if step <= config.total_steps:
        return []
    rule = f"the run ends after step {config.total_steps}, and {checkpoint} has done {step}: its weights are of these."
    remedy = (
        f"Give it at least {step} steps, or train the shorter run in another folder (`run.folder`); to shorten this "
        "one, move the checkpoints beyond its end away."
    )
    return [Fault(f"training.tokens = {config.training.tokens}", rule, remedy)]


def _order_faults(checkpoint: Path, state: CheckpointState, plan: RunPlan) -> Iterator[Fault]:
    """Other data than those that were read. Raises IntegrityFault where the checkpoint contradicts itself."""
    blend = plan.blend
    before, now = state.order, blend.describe(state.sequences)
    if not all(stream.identity for stream in blend.streams):  # assumed, not read: nobody knows what is in them
        changed = differences(_apart_from_text(before), _apart_from_text(now))
        same = not changed
    else:
        changed = _order_changes(before, now)
        same = blend.fingerprint(state.sequences) == state.order_fingerprint
        read = _read(blend.source_sequences(state.sequences))
        if same and read != _read(state.source_sequences):
            raise IntegrityFault(f"{checkpoint}: its counts of sequences are not those of the order that it names")
    if not same:
        others, told = [], []
        repacked = before.get("packing") != now.get("packing")
        for line in changed:
            name = line.removeprefix("sources.").partition(".identity: ")[0]
            source = f"data.sources.{source_of(name)}"
            found = list(changed_datasets(state, source, plan.inputs.sources[name])) if name in blend.sources else []
            others += found
            told += [f"{source}: {what}" for what, _ in found]
            if not found and not (repacked and _OF_PACKING.match(line)):
                told.append(line)
        told = list(dict.fromkeys(told))  # the buckets of a source read the same datasets
        yield Fault(
            f"{checkpoint}: {'; '.join(told) or 'order_fingerprint: altered'}",
            "a run goes on with the datasets, blend, packing, sequence length and seed that it began with.",
            f"{_known_again(others)}{_pinned(state, blend, plan.config)}Restore them (config.yaml in the run folder "
            "has them), or start a new run in another folder.",
        )


def _known_again(changes: Iterable[DatasetChange]) -> str:
    """What to do for datasets that may be the same as before."""
    return "".join(f"{remedy} " for remedy in dict.fromkeys(remedy for _, remedy in changes) if remedy is not None)


def _apart_from_text(order: Mapping[str, Any]) -> dict[str, Any]:
    """What of an order does not depend on the text that is read."""
    return {name: value for name, value in order.items() if name not in ("sources", "phases")}


def _order_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two orders (BlendPlan.describe), a line each; phases by their shares."""
    lines = differences(_apart_from_phases(before), _apart_from_phases(now))
    for number, (old, new) in enumerate(zip_longest(before["phases"], now["phases"])):
        said, says = _phase(old, before["sequence_length"]), _phase(new, now["sequence_length"])
        if said != says:
            lines.append(f"phases.{number}: {said} before, {says} now")
        elif old != new:
            lines += differences(old, new, f"phases.{number}.")
    return lines


def _apart_from_phases(order: Mapping[str, Any]) -> dict[str, Any]:
    """An order without its phases; its packing by the name of the setting."""
    named = {"data.packing": order.get("packing") or "null"}
    return named | {name: value for name, value in order.items() if name not in ("packing", "phases")}


def _phase(phase: Mapping[str, Any] | None, sequence_length: int) -> str:
    """A phase of an order: from_tokens 200704, code 90.00 %, general 10.00 %."""
    if phase is None:
        return "not there"
    weights = phase["weights"]
    shares = [f"{name} {percent(weight / sum(weights.values()))}" for name, weight in weights.items()]
    return ", ".join([f"from_tokens {phase['first_sequence'] * sequence_length}", *shares])


def _read(source_sequences: Mapping[str, int]) -> dict[str, int]:
    """The counts of the sources that have been read: one that has not may come, or go, at any resume."""
    return {name: count for name, count in source_sequences.items() if count}


def _pinned(state: CheckpointState, blend: BlendPlan, config: RunConfig) -> str:
    """What to write for a phase that has begun at a learning rate which this run, of another length, has elsewhere."""
    for before, now in zip(state.order["phases"], blend.phases, strict=False):
        if before["first_sequence"] != now.first_sequence and config.data.phases:
            phase = config.data.phases[now.number]
            tokens = before["first_sequence"] * config.data.sequence_length
            found = f"Phase {now.number} follows the learning rate, which moves with the run's length, and has begun: "
            return f"{found}write `from_tokens: {tokens}` for its `from_lr`. " if phase.from_lr else ""
    return ""


def _part_faults(checkpoint: Path, state: CheckpointState, config: RunConfig) -> Iterator[Fault]:
    """Optimizer state of other parts, or of other groups of them, than this run trains."""
    before, now = state.parts, trained_parts(config)
    if before is None or before == now:
        return
    changed = [f"{name}: {before.get(name)} before, {now[name]} now" for name in now if before.get(name) != now[name]]
    yield Fault(
        f"{checkpoint}: {'; '.join(changed)}",
        "optimizer state is of the parts that were trained, in groups by learning rate and weight decay.",
        "Restore them (config.yaml in the run folder has them), or start a new run in another folder with "
        f"{without_optimizer(checkpoint)}.",
    )


def trained_parts(config: RunConfig) -> dict[str, Any]:
    """What is trained and in which groups, as checkpoints tell."""
    optimizer = config.optimizer
    return {
        "model.frozen": asdict(config.model.frozen),
        "optimizer.lr_multipliers": asdict(optimizer.lr_multipliers),
        "optimizer.no_weight_decay": sorted(optimizer.no_weight_decay),
    }


def _model_faults(checkpoint: Path, config: RunConfig, shape: ModelShape | None) -> Iterator[Fault]:
    """Another model than a run began with, or other rotary positions."""
    if shape is None:
        return
    before = read_shape(checkpoint / "hf")
    if differing := differing_fields(before, shape):
        rule = f"is of another model than the run began with: they differ in {', '.join(differing)}."
        remedy = f"Restore its config.json ({checkpoint / 'hf'} has it), or start a new run in another folder."
        yield Fault(f"model.hf = {config.model.hf}", rule, remedy)
    shown = [f"{one.rope_base:g}, {one.rope_scaling or 'not scaled'}" for one in (before, shape)]
    if shown[0] != shown[1]:
        yield Fault(
            f"{checkpoint}: rotary positions of base {shown[0]} before, {shown[1]} now",
            "a run goes on with the positions that it began with.",
            "Restore `model.rope` or config.json of `model.hf`, or start a new run in another folder with "
            f"`init_from.checkpoint: {checkpoint}`.",
        )


def _finished_faults(folder: RunFolder, step: int, changes: Sequence[SettingChange]) -> list[Fault]:
    """A run at its end whose results are of another configuration."""
    free = within(changes, NOT_THE_RESULT)
    differing = [change for change in changes if change not in free]
    if not differing:
        return []
    shown = f"{folder.path}: done after step {step}; {'; '.join(map(str, differing))}"
    rule = "it is done with another configuration: nothing is left to train with this one."
    remedy = (
        "Restore it (config.yaml in the run folder has it), or train in another folder (`run.folder`), or give the run "
        "more `training.tokens`."
    )
    return [Fault(shown, rule, remedy)]


def _beginning_faults(changes: Sequence[SettingChange]) -> list[Fault]:
    """Settings that counted when the run began, and can no longer."""
    rule = "it counts where a run begins, and this one has begun: it would change nothing."
    return [
        Fault(str(change), rule, "Restore it, or start a new run in another folder.")
        for change in within(changes, OF_THE_BEGINNING)
    ]


def _start_weights_faults(config: RunConfig, changes: Sequence[SettingChange]) -> list[Fault]:
    """Another folder of the start weights, from which a resume reads again what weight updates are measured from."""
    if not config.validation.weight_updates or config.init_from.checkpoint is not None:
        return []
    rule = (
        "validation.weight_updates measures from its weights, and those of another folder are not what was begun with."
    )
    remedy = "Restore it (a link to where the folder now is serves too), or set `validation.weight_updates: false`."
    return [Fault(str(change), rule, remedy) for change in within(changes, ["model.hf"])]


def _meaning_faults(config: RunConfig, changes: Sequence[SettingChange]) -> list[Fault]:
    """Settings that change what is counted as the loss."""
    if config.run.allow_loss_changes:
        return []
    rule = "it changes what the losses of this run mean, so that those before and after cannot be compared."
    return [Fault(str(change), rule, f"Restore it; {_ALLOW}.") for change in within(changes, LOSS_MEANING)]


def measures(config: RunConfig, inputs: RunInputs) -> dict[str, str]:
    """Identity of every validation set and of every task of a file, by its name in messages.

    Sets that are assumed, and not here, are left out.
    """
    found = {}
    for name, stream in inputs.validation_sets.items():
        if stream.identity:
            settings, length = config.validation.sets[name], config.data.sequence_length
            labels = int(scored_tokens(stream.tokens, length, settings.tokens).sum())
            mask = label_mask(config.data, stream, settings.loss_mask_column)
            found[f"validation.sets.{name}"] = set_identity(stream, length, labels, config.data.attention, mask)
    return found | {f"task {task.name}": task.identity for tasks in inputs.tasks.values() for task in tasks}


def changed_measures(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Names of those that have another identity than before; `before`: None where it is not known."""
    return [name for name, identity in now.items() if (before or {}).get(name, identity) != identity]


def measure_faults(
    config: RunConfig, changed: Sequence[str], datasets: Mapping[str, Sequence[DatasetChange]] | None = None
) -> list[Fault]:
    """Validation sets and tasks that are no longer what they were when the checkpoint was written.

    Args:
        changed: their names.
        datasets: what became of the datasets of each, where it is known.
    """
    if config.run.allow_loss_changes:
        return []
    rule = "it is no longer what was measured before (its text, its budget, or which labels count and how)"
    remedy = f"Restore it, or give the changed one another name; {_ALLOW}."
    found = []
    for name in changed:
        others = (datasets or {}).get(name, ())
        told = "".join(f"; {what}" for what, _ in others)
        found.append(Fault(name, f"{rule}{told}.", f"{_known_again(others)}{remedy}"))
    return found


def setting_changes(before: RunConfig, now: RunConfig) -> list[SettingChange]:
    """Every setting in which two configurations differ, in the order of the sections; a folder may be moved.

    A length in steps is that in tokens which it means.
    """
    meant = {change.key for change in _changes(_in_tokens(before), _in_tokens(now), "")} - {"run.folder"}
    return [change for change in _changes(plain(before), plain(now), "") if change.key in meant]


def _in_tokens(config: RunConfig) -> dict[str, Any]:
    """A configuration as `plain` has it, with its lengths in tokens.

    Where the batch size ramps up, a number of steps is one of tokens only by its place: such lengths stay as written.
    """
    size = None if config.batches.ramp else config.tokens_per_step
    settings: dict[str, Any] = _spaced_in_tokens(plain(config, size), size)
    settings["training"]["tokens"] = config.total_tokens
    settings["base_history"] = plain(config.base_history)  # in steps of the base
    return settings


def _spaced_in_tokens(settings: Any, tokens_per_step: int | None) -> Any:
    """Settings in which each `log_spaced` has its end in tokens."""
    if not isinstance(settings, Mapping) or tokens_per_step is None:
        return settings
    found = {name: _spaced_in_tokens(value, tokens_per_step) for name, value in settings.items()}
    if found.get("log_spaced") is not None:
        spaced = parse_log_spaced(found["log_spaced"])
        found["log_spaced"] = (spaced.per_decade, spaced.end.tokens(tokens_per_step))
    return found


def within(changes: Iterable[SettingChange], keys: Iterable[str]) -> list[SettingChange]:
    """The changes of some settings, each named by its key or by its section's; `*` stands for any name."""
    patterns = [pattern for key in keys for pattern in (key, f"{key}.*")]
    return [change for change in changes if any(fnmatchcase(change.key, pattern) for pattern in patterns)]


def _changes(before: Any, now: Any, key: str) -> Iterator[SettingChange]:
    if _is_section(before) and _is_section(now):
        old, new = _entries(before), _entries(now)
        for name in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield SettingChange(key, before, now)


def _is_section(value: Any) -> bool:
    """Whether parts of a value have names or numbers of their own: sections, and lists of sections."""
    return isinstance(value, Mapping) or (isinstance(value, list) and all(isinstance(one, Mapping) for one in value))


def _entries(value: Mapping[str, Any] | list[Any]) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {str(place): one for place, one in enumerate(value)}


def _shown(value: Any) -> str:
    """A value on one line, as YAML has it, without what is not set in it."""
    if isinstance(value, Mapping):
        said = [f"{name}: {_shown(one)}" for name, one in value.items() if one not in (None, {}, [])]
        return "{" + ", ".join(said) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "not set" if value is None else str(value)
