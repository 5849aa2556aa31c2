"""What a run cannot take from another run's checkpoint, and parts of a model that cannot be left untrained."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.faults import best_faults
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.shape import ModelShape, read_shape
from megatron_cpt.planning.rates import decay_faults
from megatron_cpt.planning.start_state import newest_checkpoint, position_of

SIZE, RAMP = "training.global_batch_size", "training.batch_ramp"
LARGEST_RATE = 1.0
"""Peak learning rates above this are mistakes."""

NOT_THE_MODEL = ("max_positions", "rope_base", "rope_scaling")
"""What two folders of one model may say differently."""


def start_faults(config: RunConfig, shape: ModelShape | None) -> Iterator[Fault]:
    """Everything wrong with the section `start`."""
    start = config.start
    if start.checkpoint is None:
        for name, value in (("optimizer", start.optimizer), ("schedule", start.schedule), ("data", start.data)):
            if value == "kept":
                rule = "there is no checkpoint that it could be kept of."
                yield Fault(f"start.{name} = kept", rule, "Set `start.checkpoint`, or take it out.")
        return
    shown = f"start.checkpoint = {start.checkpoint}"
    checkpoint = Path(start.checkpoint)
    if not (checkpoint / "complete.json").is_file():
        rule = "is not a complete checkpoint."
        yield Fault(shown, rule, "Name one, such as RUN/checkpoints/step-00000400, or leave it out and set `model.hf`.")
        return
    yield from shape_differences(shown, checkpoint, shape)
    if "kept" in (start.schedule, start.data) and any(phase.from_lr is not None for phase in config.data.phases):
        rule = "a phase that begins at a learning rate needs a schedule that begins with the run."
        yield Fault(shown, rule, "Give the phase `from_tokens`, or leave `start.schedule` and `start.data` new.")
    if "kept" in (start.optimizer, start.schedule, start.data):
        yield from position_faults(config, shown, checkpoint)


def shape_differences(shown: str, checkpoint: Path, shape: ModelShape | None) -> Iterator[Fault]:
    """A checkpoint of another model than `model.hf` describes."""
    try:
        theirs = read_shape(checkpoint / "hf")
    except BadInput as error:
        yield from error.faults
        return
    names = [field.name for field in fields(theirs) if field.name not in NOT_THE_MODEL]
    differing = [name for name in names if shape is not None and getattr(theirs, name) != getattr(shape, name)]
    if differing:
        rule = f"is of another model than model.hf describes: they differ in {', '.join(differing)}."
        yield Fault(shown, rule, f"Set `model.hf` to {checkpoint / 'hf'}.")


def position_faults(config: RunConfig, shown: str, checkpoint: Path) -> Iterator[Fault]:
    """A checkpoint that has nothing to be kept, or that the run cannot go on counting from."""
    path = checkpoint / "position.json"
    if not path.is_file():
        rule = "holds weights alone: no run wrote it."
        remedy = "Leave `optimizer` fresh, `schedule` new and `data` new."
        yield Fault(shown, rule, remedy)
        return
    position = position_of(checkpoint)
    if newest_checkpoint(config) is None:
        yield from decay_faults(config)
    if config.start.data == "new":
        return
    yield from batch_faults(config, shown, position["step"], position["sequences"], position.get("batches"))
    if config.total_tokens <= position["tokens"]:
        rule = (
            f"with data kept, it counts from the beginning, and the checkpoint stands at {position['tokens']} tokens."
        )
        yield Fault(f"training.tokens = {config.training.tokens}", rule, "Raise it, or set `start.data: new`.")
    else:
        yield from best_faults(config, position["step"])


def batch_faults(
    config: RunConfig, shown: str, step: int, sequences: int, before: Mapping[str, Any] | None
) -> Iterator[Fault]:
    """A position that a run with these batch sizes does not pass: its steps took more sequences, or fewer.

    Args:
        before: the settings of the steps done (batch_settings). None: not known.
    """
    here = config.batches.total(step)
    if here == sequences:
        return
    now, before = batch_settings(config), before or {}
    value = f"training.global_batch_size = {now[SIZE]}, batch_ramp = {_ramp(now[RAMP])}; {shown}"
    rule = f"its {step} steps took {sequences} sequences, and here they take {here}: steps go on counting."
    parts = [f"Set it to {before[SIZE]}."] if before.get(SIZE, now[SIZE]) != now[SIZE] else []
    if before.get(RAMP, now[RAMP]) != now[RAMP]:
        parts.append(f"Set `training.batch_ramp: {_ramp(before[RAMP])}`, as it was.")
    if parts and before[RAMP] is None and now[SIZE] > before[SIZE]:
        ramp = {"start": before[SIZE], "increment": now[SIZE] - before[SIZE]}
        ramp["tokens"] = sequences * config.data.sequence_length
        parts.append(f"Or, for {now[SIZE]} a step from there on, set `training.batch_ramp: {_ramp(ramp)}`.")
    whole = " ".join(parts) or "Set both as they were there (config.yaml in the run folder has them)."
    yield Fault(value, rule, whole)


def batch_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that say how many sequences each step takes."""
    ramp = config.training.batch_ramp
    return {SIZE: config.training.global_batch_size, RAMP: None if ramp is None else asdict(ramp)}


def _ramp(ramp: Mapping[str, int] | None) -> str:
    """A ramp as YAML has it on one line."""
    return "null" if ramp is None else "{" + ", ".join(f"{name}: {value}" for name, value in ramp.items()) + "}"


def rate_faults(config: RunConfig, shape: ModelShape) -> Iterator[Fault]:
    """Rates and exemptions of parts that the model does not have."""
    optimizer = config.optimizer
    if config.schedule.peak > LARGEST_RATE:
        rule = (
            f"AdamW moves every weight by about the learning rate at each step: above {LARGEST_RATE:g} nothing is left."
        )
        yield Fault(f"schedule.peak = {config.schedule.peak:g}", rule, "Continual pretraining takes 1e-5 to 1e-3.")
    for number, group in enumerate(optimizer.rates.layers):
        if group.last >= shape.layers:
            rule = f"the model's layers are 0 to {shape.layers - 1}."
            shown = f"optimizer.rates.layers.{number} = {group.first} to {group.last}"
            yield Fault(shown, rule, "Name layers that it has.")
    if shape.tied_embeddings and optimizer.rates.output not in (1, optimizer.rates.embedding):
        rule = "the output layer of this model has the weights of the embedding."
        yield Fault(f"optimizer.rates.output = {optimizer.rates.output:g}", rule, "Set `optimizer.rates.embedding`.")


def frozen_faults(config: RunConfig, shape: ModelShape) -> Iterator[Fault]:
    """Frozen parts that leave nothing to train, on the whole model or on a pipeline stage."""
    frozen, stages = config.model.frozen, config.parallel.pipeline
    shown = f"model.frozen = {frozen.bottom} bottom and {frozen.top} top layers"
    if frozen.bottom + frozen.top > shape.layers:
        yield Fault(shown, f"the model has {shape.layers} layers.", "Freeze fewer.")
    elif stages > 1 and not shape.layers % stages:
        of_stage = shape.layers // stages
        if frozen.bottom >= of_stage or frozen.top >= of_stage:
            rule = f"it leaves nothing to train on a pipeline stage of {of_stage} layers."
            yield Fault(shown, rule, f"Freeze fewer than {of_stage} at each end, or use fewer stages.")
    if frozen.embeddings and stages > 1 and shape.tied_embeddings:
        rule = "an embedding that the first and the last stage share cannot be frozen."
        remedy = "Use one pipeline stage, or `optimizer.rates.embedding: 0`."
        yield Fault("model.frozen.embeddings = true", rule, remedy)
