"""Checkpoints of a run: Megatron-Core's distributed format, sealed, with all that a resume needs.

Written by writer.py, read here.

checkpoints/step-00000400/
    shards/         model, optimizer and random states (torch_dist)
    hf/             config.json, tokenizer files: with them the checkpoint is a model
    position.json   step, sequences, what the data order was, layout (position.py)
    complete.json   SHA-256 of every file; written last (integrity.py)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_cpt.checkpoint.distributed_optimizer import differing, replace_packing, share_main_weights
from megatron_cpt.checkpoint.integrity import is_complete, verify
from megatron_cpt.checkpoint.position import FREQUENT, KEPT, Layout, Position, layout_faults, read_position
from megatron_cpt.checkpoint.vetting import read_table, vet
from megatron_cpt.config.errors import Fault, IntegrityFault, RankFailed, refuse
from megatron_cpt.model.build import DTYPES
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import all_agree
from megatron_cpt.parallel.seed import restore_random_state

DAMAGED = (
    "{checkpoint}: its optimizer state does not belong to its weights. It is a `fully_reshardable` checkpoint of a"
    " distributed optimizer whose gradients lay in several padded buckets (`parallel.overlap_gradient_reduce`, or tied"
    " embeddings over pipeline stages), saved by a version that saved these wrongly. Its weights are right, and so are"
    " exports. Start a new run in another folder with `start.checkpoint: {checkpoint}`, `start.optimizer: fresh` and"
    " data and schedule kept; or move it away and go on from an earlier checkpoint that was saved as `dp_reshardable`"
)
"""What is said of a checkpoint whose optimizer state is not that of its weights."""


def load(checkpoint: Path, model: Sequence[GPTModel], optimizer: MegatronOptimizer, layout: Layout) -> Position:
    """Puts model, optimizer and, on the layout that wrote them, random states back. Every rank calls it.

    The caller mends the optimizer afterwards (train/optimizer.py). On another layout the random states stay as
    they are: they belong to ranks.

    Raises:
        BadInput: the optimizer state does not load into this layout or precision.
        IntegrityFault: it is not complete, not intact or not safe to read.
    """
    position = read_position(checkpoint)
    refuse(layout_faults(checkpoint, position, layout))
    verify_and_vet(checkpoint)
    before, now = weights_precision(checkpoint / "shards"), next(model[0].parameters()).dtype
    refuse(precision_faults(checkpoint, position, before, now))
    content = model_state(model, has_layers_apart(checkpoint / "shards"))
    content["optimizer"] = optimizer_state(optimizer, dict(content), position.sharding, is_loading=True)
    if position.layout == layout:
        content["random"] = random_object({})
    loaded = load_shards(checkpoint, content)
    load_model_state(model, loaded)
    with differing(optimizer, before) as counts:
        optimizer.load_state_dict(loaded["optimizer"])
    if not all_agree(counts[1] == 0):
        raise IntegrityFault(DAMAGED.format(checkpoint=checkpoint))
    if before != now:
        share_main_weights(optimizer)
    if position.layout == layout:
        restore_random_state(loaded["random"])
    return position


def precision_faults(checkpoint: Path, position: Position, before: torch.dtype, now: torch.dtype) -> list[Fault]:
    """Why the optimizer state of a checkpoint does not load into a run of another precision: at most one fault.

    Whole parameters of a distributed optimizer do: main weights and moments are in fp32 in every precision.
    """
    if before == now or (position.layout.distributed_optimizer and position.sharding == KEPT):
        return []
    names = {dtype: name for name, dtype in DTYPES.items()}
    saved = f"saved as {FREQUENT}" if position.layout.distributed_optimizer else "of a plain optimizer"
    kept = f" or, from a checkpoint saved as {KEPT}, change it;" if position.layout.distributed_optimizer else ""
    return [
        Fault(
            f"{checkpoint}: written with training.precision = {names.get(before, before)}; this run has"
            f" {names.get(now, now)}",
            f"optimizer state {saved} is that of one precision.",
            f"Go on with the precision that it was written with;{kept} or start a new run in another folder with"
            f" `start.checkpoint: {checkpoint}`, `start.optimizer: fresh` and the data and schedule kept.",
        )
    ]


def load_weights(checkpoint: Path, model: Sequence[GPTModel]) -> None:
    """Loads the model's weights alone, into any layout. Raises IntegrityFault."""
    verify_and_vet(checkpoint)
    content = model_state(model, has_layers_apart(checkpoint / "shards"))
    load_model_state(model, load_shards(checkpoint, content))


def load_shards(checkpoint: Path, content: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's shards hold for the entries of a content. Every rank calls it.

    Raises:
        IntegrityFault: they do not hold it, or not so.
    """
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(content, str(checkpoint / "shards"))
    except CHECKPOINT_ERRORS as error:
        raise IntegrityFault(f"{checkpoint}: its shards do not load into this run ({reason(error)})") from error
    return loaded


CHECKPOINT_ERRORS = (CheckpointException, CheckpointingException)
"""What torch's and Megatron-Core's checkpoint code raise. The first is no Exception."""


def reason(error: BaseException) -> str:
    """What one of CHECKPOINT_ERRORS tells, in one line: torch's has a traceback of each rank that failed in its text.

    Raises:
        RankFailed: nothing, for only rank 0 was told.
    """
    if not isinstance(error, CheckpointException):
        return " ".join(str(error).split())
    causes = [" ".join(f"{type(cause).__name__}: {cause}".split()) for cause, _ in error.failures.values()]
    if not causes:
        raise RankFailed("rank 0 says why") from error
    return "; ".join(dict.fromkeys(causes))


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
        raise fault or RankFailed(f"{checkpoint}: refused by rank 0")


def model_state(model: Sequence[GPTModel], layers_apart: bool = False) -> dict[str, Any]:
    """The model's part of a checkpoint, with its tensors in place: an entry for each chunk, as in Megatron-LM.

    Args:
        layers_apart: each layer under names of its own, not as a slice of one tensor for all layers: where some
            layers are frozen, optimizer state would fill only a part of that.
    """
    metadata = {"non_homogeneous_layers": True} if layers_apart else None
    return {
        name: chunk.sharded_state_dict(metadata=metadata) for name, chunk in zip(chunk_names(model), model, strict=True)
    }


def load_model_state(model: Sequence[GPTModel], loaded: dict[str, Any]) -> None:
    """Puts what was loaded into the chunks."""
    for name, chunk in zip(chunk_names(model), model, strict=True):
        chunk.load_state_dict(loaded[name])


def chunk_names(model: Sequence[GPTModel]) -> list[str]:
    """Under which names the chunks of this rank stand in a checkpoint."""
    return ["model"] if len(model) == 1 else [f"model{number}" for number in range(len(model))]


def weights_precision(shards: Path) -> torch.dtype:
    """The precision in which the torch_dist folder of a checkpoint holds the model's weights."""
    content = read_table(shards).state_dict_metadata
    precisions = {
        entry.properties.dtype
        for name, entry in content.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith(("optimizer.", "chained_"))
    }
    return min(precisions, key=lambda precision: precision.itemsize, default=torch.float32)


def has_layers_apart(shards: Path) -> bool:
    """Whether the torch_dist folder of a checkpoint names its layers one by one."""
    return any(".layers.0." in name for name in read_table(shards).state_dict_metadata)


def optimizer_state(
    optimizer: MegatronOptimizer, model_content: dict[str, Any], sharding: str, is_loading: bool = False
) -> dict[str, Any]:
    """The optimizer's part of a checkpoint.

    Args:
        model_content: that of the model's weights, by which the optimizer's tensors are laid out.
        sharding: dp_reshardable or fully_reshardable.
    """
    replace_packing()
    metadata = {
        "distrib_optim_sharding_type": sharding,
        # Gathers on one rank what one rank writes. By default every rank would gather the whole.
        "distrib_optim_fully_reshardable_mem_efficient": True,
    }
    state: dict[str, Any] = optimizer.sharded_state_dict(model_content, is_loading=is_loading, metadata=metadata)
    return state


def random_object(state: dict[str, Any]) -> ShardedObject:
    """The random states of this rank, beside those of the others."""
    return ShardedObject("random", state, (groups.world_size(),), (groups.rank(),), replica_id=0)
