"""Going on from a checkpoint of the same run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_cpt.checkpoint.position import Layout, Position, read_position
from megatron_cpt.checkpoint.sharded import load
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, refuse
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.shape import read_shape
from megatron_cpt.mixture.plan import BlendPlan, differences
from megatron_cpt.model.build import unwrap
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.seed import seed_everything
from megatron_cpt.planning.plan import RunPlan
from megatron_cpt.planning.resume_changes import length_faults
from megatron_cpt.planning.start_faults import batch_faults
from megatron_cpt.train.optimizer import group_settings, mend_after_load


def resume(
    checkpoint: Path,
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    config: RunConfig,
    plan: RunPlan,
) -> Position:
    """Loads a checkpoint of this run, or of one whose data order this run goes on with, and returns its position.

    Raises:
        BadInput: the data order, the sizes of the steps done or what is trained are no longer the same, or the
            optimizer state does not load into this layout.
        IntegrityFault: the checkpoint is not what was written.
    """
    position = read_position(checkpoint)
    refuse([*batch_faults(config, str(checkpoint), position.step, position.sequences, position.batches)])
    refuse(length_faults(config, str(checkpoint), position.step))
    check_order(checkpoint, position, plan.blend, config)
    check_parts(checkpoint, position, config)
    # Those of a rank of another layout are of no use here; the same resume draws the same numbers again.
    seed_everything(config.run.seed + 1 + position.step)
    load_state(checkpoint, model, optimizer, config)
    return position


def load_state(
    checkpoint: Path, model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, config: RunConfig
) -> None:
    """Loads weights, optimizer and random states; what the config says of the optimizer stays as it says.

    Raises as `resume` does.
    """
    settings = group_settings(optimizer)
    load(checkpoint, unwrap(model), optimizer, layout(config))
    mend_after_load(optimizer, settings)


def check_order(checkpoint: Path, position: Position, blend: BlendPlan, config: RunConfig) -> None:
    """Raises BadInput where a run would go on with other data, IntegrityFault where the position contradicts itself."""
    changed = differences(position.order, blend.describe(position.sequences))
    if blend.fingerprint(position.sequences) != position.order_fingerprint:
        raise BadInput(
            Fault(
                f"{checkpoint}: {'; '.join(changed) or 'order_fingerprint: altered'}",
                "a run goes on with the datasets, blend, sequence length and seed that it began with.",
                f"{_pinned(position, blend, config)}Restore them (config.yaml in the run folder has them), or start "
                "a new run in another folder.",
            )
        )
    if _read(blend.source_sequences(position.sequences)) != _read(position.source_sequences):
        raise IntegrityFault(f"{checkpoint}: its counts of sequences are not those of the order that it names")


def _read(source_sequences: Mapping[str, int]) -> dict[str, int]:
    """The counts of the sources that have been read: one that has not may come, or go, at any resume."""
    return {name: count for name, count in source_sequences.items() if count}


def _pinned(position: Position, blend: BlendPlan, config: RunConfig) -> str:
    """What to write for a phase that has begun at a learning rate which this run, of another length, has elsewhere."""
    for before, now in zip(position.order["phases"], blend.phases, strict=False):
        if before["first_sequence"] != now.first_sequence and config.data.phases:
            phase = config.data.phases[now.number]
            tokens = before["first_sequence"] * config.data.sequence_length
            found = f"Phase {now.number} follows the learning rate, which moves with the run's length, and has begun: "
            return f"{found}write `from_tokens: {tokens}` for its `from_lr`. " if phase.from_lr else ""
    return ""


def check_parts(checkpoint: Path, position: Position, config: RunConfig) -> None:
    """Raises BadInput where optimizer state is of other parts, or of other groups of them, than this run trains."""
    before, now = position.parts, trained_parts(config)
    if before is None or before == now:
        return
    changed = [f"{name}: {before.get(name)} before, {now[name]} now" for name in now if before.get(name) != now[name]]
    raise BadInput(
        Fault(
            f"{checkpoint}: {'; '.join(changed)}",
            "optimizer state is of the parts that were trained, in groups by learning rate and weight decay.",
            "Restore them (config.yaml in the run folder has them), or start a new run in another folder with"
            f" `start.checkpoint: {checkpoint}`, `start.optimizer: fresh` and the data and schedule kept.",
        )
    )


def check_positions(checkpoint: Path, config: RunConfig) -> None:
    """Raises BadInput where a run would go on with other rotary positions than it began with."""
    before = read_shape(checkpoint / "hf")
    now = read_shape(config.model.hf, config.model.rope)
    shown = [f"{shape.rope_base:g}, {shape.rope_scaling or 'not scaled'}" for shape in (before, now)]
    if shown[0] != shown[1]:
        raise BadInput(
            Fault(
                f"{checkpoint}: rotary positions of base {shown[0]} before, {shown[1]} now",
                "a run goes on with the positions that it began with.",
                f"Restore `model.rope`, or start a new run in another folder with `start.checkpoint: {checkpoint}`.",
            )
        )


def trained_parts(config: RunConfig) -> dict[str, Any]:
    """What is trained and in which groups, as checkpoints tell."""
    optimizer = config.optimizer
    return {
        "model.frozen": asdict(config.model.frozen),
        "optimizer.rates": asdict(optimizer.rates),
        "optimizer.undecayed": sorted(optimizer.undecayed),
    }


def layout(config: RunConfig) -> Layout:
    """The layout of this run, as its checkpoints name it."""
    parallel = config.parallel
    return Layout(
        world=groups.world_size(),
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
        context=parallel.context,
        expert=parallel.expert,
        distributed_optimizer=parallel.distributed_optimizer,
    )
