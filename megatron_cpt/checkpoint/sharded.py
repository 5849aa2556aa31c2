"""Checkpoints of a run: Megatron-Core's distributed format, sealed, with all that a resume needs.

checkpoints/step-00000400/
    shards/         model, optimizer and random states (torch_dist)
    hf/             config.json, tokenizer files: with them the checkpoint is a model
    position.json   step, sequences, what the data order was, layout
    complete.json   SHA-256 of every file; written last (integrity.py)
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_cpt.checkpoint.hf_folder import COMPANIONS
from megatron_cpt.checkpoint.integrity import is_complete, seal, verify
from megatron_cpt.checkpoint.vetting import vet
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import all_agree, barrier
from megatron_cpt.parallel.seed import random_state, restore_random_state
from megatron_cpt.runs.durable import write_json

# dp_reshardable is cheap and loads into another data-parallel size at most; fully_reshardable gathers a shard's
# optimizer on one rank and loads into any layout. The default of Megatron-Core 0.16.1 cannot be saved at all.
FREQUENT, KEPT = "dp_reshardable", "fully_reshardable"
HF_FILES = ("config.json", "lineage.json", *COMPANIONS)


@dataclass(frozen=True)
class Layout:
    """How the ranks that wrote a checkpoint shared the model."""

    world: int
    """Ranks."""
    tensor: int
    """Tensor-parallel size."""
    pipeline: int
    """Pipeline stages."""
    distributed_optimizer: bool
    """Whether optimizer state was sharded over replicas."""


@dataclass(frozen=True)
class Position:
    """Where a run was when a checkpoint was written."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens trained."""
    sequences: int
    """Sequences of the order consumed: the whole data state."""
    order: dict[str, Any]
    """What decided those sequences: datasets, phases, sequence length, seed (BlendPlan.describe)."""
    order_fingerprint: str
    """Hash of that."""
    source_sequences: dict[str, int]
    """Sequences of each source among them, as a check."""
    layout: Layout
    """The ranks that wrote it."""
    sharding: str
    """How optimizer state is laid out: dp_reshardable or fully_reshardable."""


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint; names sort by step."""
    return f"step-{step:08}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if is_complete(path))


def save(folder: Path, model: GPTModel, optimizer: MegatronOptimizer, position: Position, hf_folder: Path) -> Path:
    """Writes a checkpoint into the folder of checkpoints and returns it. Every rank calls it."""
    checkpoint = folder / checkpoint_name(position.step)
    if groups.rank() == 0:
        shutil.rmtree(checkpoint, ignore_errors=True)  # a save that was cut short, never a sealed one
        (checkpoint / "shards").mkdir(parents=True)
        (checkpoint / "hf").mkdir()
        for name in HF_FILES:
            if (hf_folder / name).is_file():
                shutil.copyfile(hf_folder / name, checkpoint / "hf" / name)
        write_json(checkpoint / "position.json", asdict(position))
    barrier()
    content = model_state(model)
    content["optimizer"] = optimizer.sharded_state_dict(
        content["model"], metadata={"distrib_optim_sharding_type": position.sharding}
    )
    content["random"] = random_object(random_state())
    with quiet():
        dist_checkpointing.save(content, str(checkpoint / "shards"))
    seal(checkpoint)
    return checkpoint


def load(checkpoint: Path, model: GPTModel, optimizer: MegatronOptimizer, layout: Layout) -> Position:
    """Puts model, optimizer and random states back as they were. Every rank calls it.

    The caller mends the optimizer afterwards (train/optimizer.py).

    Raises:
        BadInput: the checkpoint was written by another layout.
        IntegrityFault: it is not complete, not intact or not safe to read.
    """
    verify_and_vet(checkpoint)
    position = read_position(checkpoint)
    if position.layout != layout:
        raise BadInput(
            Fault(
                f"{checkpoint}: written by {describe(position.layout)}; this run has {describe(layout)}",
                "a run is resumed on the layout that it was started on.",
                "Start it with those sizes again, or start a new run from this checkpoint's HF export.",
            )
        )
    content = model_state(model)
    content["optimizer"] = optimizer.sharded_state_dict(
        content["model"], is_loading=True, metadata={"distrib_optim_sharding_type": position.sharding}
    )
    content["random"] = random_object({})
    with quiet():
        loaded = dist_checkpointing.load(content, str(checkpoint / "shards"))
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    restore_random_state(loaded["random"])
    return position


def load_weights(checkpoint: Path, model: GPTModel) -> None:
    """Loads the model's weights alone, into any layout. Raises IntegrityFault."""
    verify_and_vet(checkpoint)
    with quiet():
        loaded = dist_checkpointing.load(model_state(model), str(checkpoint / "shards"))
    model.load_state_dict(loaded["model"])


def verify_and_vet(checkpoint: Path) -> None:
    """Refuses a checkpoint that is not complete, not intact or not safe to read, on all ranks alike."""
    if not is_complete(checkpoint):
        raise IntegrityFault(f"{checkpoint}: not a complete checkpoint (it has no complete.json)")
    verify(checkpoint)
    fault: IntegrityFault | None = None
    if groups.rank() == 0:
        try:
            vet(checkpoint / "shards")
        except IntegrityFault as error:
            fault = error
    if not all_agree(fault is None):
        raise fault or IntegrityFault(f"{checkpoint}: refused by rank 0")


def read_position(checkpoint: Path) -> Position:
    """The position in a checkpoint. Raises IntegrityFault."""
    try:
        values = orjson.loads((checkpoint / "position.json").read_bytes())
        return Position(**{**values, "layout": Layout(**values["layout"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityFault(f"{checkpoint / 'position.json'}: not a readable position ({error})") from error


def model_state(model: GPTModel) -> dict[str, Any]:
    """The model's part of a checkpoint, with its tensors in place."""
    return {"model": model.sharded_state_dict()}


def random_object(state: dict[str, Any]) -> ShardedObject:
    """The random states of this rank, beside those of the others."""
    return ShardedObject("random", state, (groups.world_size(),), (groups.rank(),), replica_id=0)


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what torch says to Megatron-Core's developers: deprecations of calls that are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def describe(layout: Layout) -> str:
    """A layout in words."""
    optimizer = "a distributed" if layout.distributed_optimizer else "a plain"
    return f"{layout.world} ranks, tensor {layout.tensor}, pipeline {layout.pipeline}, {optimizer} optimizer"
