"""Checkpoints of a run: Megatron-Core's distributed format, sealed, with all that a resume needs.

checkpoints/step-00000400/
    shards/         model, optimizer and random states (torch_dist)
    hf/             config.json, tokenizer files: with them the checkpoint is a model
    position.json   step, sequences, what the data order was, layout (CheckpointState)
    complete.json   SHA-256 of every file; written last

A checkpoint is complete or absent, and its bytes are those that were written.

Nothing untrusted is unpickled. torch's format keeps its table of contents (`.metadata`) as a pickle, and non-tensor
values as pickles inside the shards, and reads both with full pickle. Here a restricted unpickler reads the table,
`weights_only` reads every such value, and what does not pass is refused before Megatron-Core touches it.
"""

import io
import pickle
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata

from megatron_cpt.checkpoint.distributed_optimizer import (
    chained_optimizers,
    differing,
    replace_packing,
    share_main_weights,
)
from megatron_cpt.config.errors import Fault, IntegrityFault, RankFailed, StorageFault, refuse
from megatron_cpt.model.build import DTYPES
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import all_agree, barrier, failing_together, first_on_rank_zero, restore_random_state
from megatron_cpt.runs.checkpoint_state import (
    FREQUENT,
    KEPT,
    CheckpointState,
    Layout,
    is_complete,
    is_intact,
    newest_checkpoint,
    read_hashes,
    read_state,
    refuse_altered,
    verify_description,
    without_optimizer,
    write_marker,
)
from megatron_cpt.runs.folder import (
    file_sha256,
    refuse_without_room,
    sync_file,
    sync_folder,
    unfinished_name,
    whole_folder,
    write_json,
)


def _sharding_faults(checkpoint: Path, position: CheckpointState, now: Layout) -> list[Fault]:
    """Why the optimizer state of a checkpoint does not load into a layout: at most one fault."""
    before = position.layout
    shown = f"{checkpoint}: written by {before}; this run has {now}"
    if before.distributed_optimizer != now.distributed_optimizer:
        rule = "the state of one kind of optimizer cannot be turned into that of the other."
        setting = f"parallel.distributed_optimizer={str(before.distributed_optimizer).lower()}"
        return [Fault(shown, rule, f"Go on with {setting}.")]
    model_differs = before.model_sizes != now.model_sizes
    if before.distributed_optimizer and position.sharding == FREQUENT and model_differs:
        rule = f"optimizer state saved as {FREQUENT} loads with the same tensor and pipeline sizes alone."
        remedy = (
            f"Go on from a checkpoint saved as {KEPT} (a run's last, those at multiples of `checkpoint.keep_every`)"
            " by moving the later ones away, or go on with the old sizes until the next of these."
        )
        return [Fault(shown, rule, remedy)]
    return []


_DAMAGED = (
    "{checkpoint}: its optimizer state does not belong to its weights. It is a `fully_reshardable` checkpoint of a"
    " distributed optimizer whose gradients lay in several padded buckets (`parallel.overlap_grad_reduce`, or tied"
    " embeddings over pipeline stages), saved by a version that saved these wrongly. Its weights are right, and so are"
    " exports. Start a new run in another folder with {instead}; or move it away and go on from an earlier checkpoint"
    " that was saved as `dp_reshardable`"
)
"""What is said of a checkpoint whose optimizer state is not that of its weights."""


def load(
    checkpoint: Path, model: Sequence[LanguageModule], optimizer: MegatronOptimizer, layout: Layout
) -> CheckpointState:
    """Puts model, optimizer and, on the layout that wrote them, random states back. Every rank calls it.

    The caller mends the optimizer afterwards (train/optimizer.py). On another layout the random states stay as
    they are: they belong to ranks.

    Raises:
        BadInput: the optimizer state does not load into this layout or precision.
        IntegrityFault: it is not complete, not intact or not safe to read.
    """
    _verify_description(checkpoint)
    position = read_state(checkpoint)
    refuse(_sharding_faults(checkpoint, position, layout))
    verify_and_vet(checkpoint)
    table = read_table(checkpoint / "shards")
    before, now = _weights_precision(table), next(model[0].parameters()).dtype
    refuse(_precision_faults(checkpoint, position, before, now))
    content = model_state(model, has_per_layer_keys(table))
    content["optimizer"] = optimizer_state(optimizer, dict(content), position.sharding, is_loading=True)
    own_random = position.layout == layout and position.updates is None
    if own_random:
        content["random"] = rng_object({})
    loaded = _load_shards(checkpoint, content, table)
    _load_model_state(model, loaded)
    if position.updates is not None:
        _count_updates(optimizer, content["optimizer"], loaded["optimizer"], position.updates)
    _take_scheduled_settings(optimizer, loaded["optimizer"])
    with differing(optimizer, before) as counts:
        optimizer.load_state_dict(loaded["optimizer"])
    if not all_agree(counts[1] == 0):
        raise IntegrityFault(_DAMAGED.format(checkpoint=checkpoint, instead=without_optimizer(checkpoint)))
    if before != now:
        share_main_weights(optimizer)
    if own_random:
        restore_random_state(loaded["random"])
    return position


def _count_updates(optimizer: MegatronOptimizer, asked: dict[Any, Any], loaded: dict[Any, Any], updates: int) -> None:
    """Gives loaded main weights and moments this run's parameter groups, at an update that another program counted.

    Args:
        asked: the optimizer's part of what was asked of the checkpoint, which holds the groups.
    """
    parts = len(chained_optimizers(optimizer))
    for own, state in [(asked, loaded)] if parts == 1 else [(asked[one], loaded[one]) for one in range(parts)]:
        state["param_state_sharding_type"] = own["param_state_sharding_type"]
        state["optimizer"] = {"param_groups": [group | {"step": updates} for group in own["optimizer"]["param_groups"]]}


_GROUP_NAMES = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr")
_SCHEDULED = ("max_lr", "min_lr", "start_wd", "end_wd")


def _take_scheduled_settings(optimizer: MegatronOptimizer, loaded: dict[Any, Any]) -> None:
    """Gives loaded parameter groups this run's ends of the schedules.

    Later releases than 0.16.1 look for a group by these too, and find none where a resume changes the learning rate.
    """
    parts = chained_optimizers(optimizer)
    for number, part in enumerate(parts):
        state = loaded if len(parts) == 1 else loaded[number]
        groups_now = [] if part.optimizer is None else part.optimizer.param_groups
        for group in state.get("optimizer", state).get("param_groups", ()):
            for now in groups_now:
                if all(now.get(name) == group.get(name) for name in _GROUP_NAMES):
                    group.update({name: now[name] for name in _SCHEDULED if name in now})


def _precision_faults(
    checkpoint: Path, position: CheckpointState, before: torch.dtype, now: torch.dtype
) -> list[Fault]:
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
            f"Go on with the precision that it was written with;{kept} or start a new run in another folder with "
            f"{without_optimizer(checkpoint)}.",
        )
    ]


def load_weights(checkpoint: Path, model: Sequence[LanguageModule]) -> None:
    """Loads the model's weights alone, into any layout. Raises IntegrityFault."""
    verify_and_vet(checkpoint)
    table = read_table(checkpoint / "shards")
    content = model_state(model, has_per_layer_keys(table))
    _load_model_state(model, _load_shards(checkpoint, content, table))


def _load_shards(checkpoint: Path, content: dict[str, Any], table: Any) -> dict[str, Any]:
    """What a checkpoint's shards hold for the entries of a content. Every rank calls it.

    Args:
        table: their table of contents (read_table).
    Raises:
        IntegrityFault: they do not hold it, or not so.
    """
    stored = frozenset(table.state_dict_metadata)
    with failing_together():
        _refuse_missing(checkpoint, content, stored)
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(
            {name: _without_absent_states(entry, stored) for name, entry in content.items()},
            str(checkpoint / "shards"),
        )
    except CHECKPOINT_ERRORS as error:
        raise IntegrityFault(
            f"{checkpoint}: its shards do not load into this run ({reason(error)}). {_OF_ANOTHER_MODEL}"
        ) from error
    return loaded


def _refuse_missing(checkpoint: Path, content: dict[str, Any], stored: Collection[str]) -> None:
    """Raises IntegrityFault where weights of this rank's part of the model are not in a checkpoint.

    Megatron-Core would name the first of them, and beside it all that is there.
    """
    wanted = {key for name, entry in content.items() if name.startswith("model") for key in _tensor_keys(entry)}
    if missing := sorted(wanted.difference(stored)):
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise IntegrityFault(
            f"{checkpoint}: lacks {', '.join(missing[:_MOST_NAMED])}{more}, which this run's model has. "
            f"{_OF_ANOTHER_MODEL}"
        )


def _tensor_keys(entry: Any) -> Iterator[str]:
    """Names under which the tensors of a part of a content stand in a checkpoint."""
    if isinstance(entry, ShardedTensor):
        yield entry.key
    elif isinstance(entry, ShardedTensorFactory):
        yield from _tensor_keys(entry.build())
    elif isinstance(entry, dict | list):
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from _tensor_keys(part)


_MOST_NAMED = 5
_OF_ANOTHER_MODEL = "Set `model.hf` to the checkpoint's own hf/, or load its export."
_EXTRA_STATE = "_extra_state"
"""Name under which Transformer Engine's layers keep what fp8 measured: empty without fp8, and absent without them."""


def _without_absent_states(entry: Any, stored: Collection[str]) -> Any:
    """A content without the extra states that a checkpoint does not hold: other layers wrote it, or without fp8."""
    if not isinstance(entry, dict):
        return entry
    return {
        name: _without_absent_states(value, stored)
        for name, value in entry.items()
        if not (isinstance(value, ShardedObject) and _EXTRA_STATE in value.key and value.unique_key not in stored)
    }


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
    with failing_together():
        if groups.rank() == 0:
            vet(checkpoint / "shards")


def model_state(model: Sequence[LanguageModule], per_layer_keys: bool = False) -> dict[str, Any]:
    """The model's part of a checkpoint, with its tensors in place: an entry for each chunk, as in Megatron-LM.

    Args:
        per_layer_keys: each layer under names of its own, not as a slice of one tensor for all layers: where some
            layers are frozen, optimizer state would fill only a part of that.
    """
    metadata = {"non_homogeneous_layers": True} if per_layer_keys else None
    return {
        name: chunk.sharded_state_dict(metadata=metadata)
        for name, chunk in zip(_chunk_names(model), model, strict=True)
    }


def _load_model_state(model: Sequence[LanguageModule], loaded: dict[str, Any]) -> None:
    """Puts what was loaded into the chunks."""
    for name, chunk in zip(_chunk_names(model), model, strict=True):
        missing, unexpected = chunk.load_state_dict(loaded[name], strict=False)
        lost = [*unexpected, *(key for key in missing if not key.endswith(_EXTRA_STATE))]
        if lost:
            raise IntegrityFault(
                f"a checkpoint and this model do not agree on {', '.join(lost[:_MOST_NAMED])}. {_OF_ANOTHER_MODEL}"
            )


def _chunk_names(model: Sequence[LanguageModule]) -> list[str]:
    """Under which names the chunks of this rank stand in a checkpoint."""
    return ["model"] if len(model) == 1 else [f"model{number}" for number in range(len(model))]


def _weights_precision(table: Any) -> torch.dtype:
    """The precision in which the torch_dist folder with this table of contents holds the model's weights."""
    content = table.state_dict_metadata
    precisions = {
        entry.properties.dtype
        for name, entry in content.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith(("optimizer.", "chained_"))
    }
    return min(precisions, key=lambda precision: precision.itemsize, default=torch.float32)


def has_per_layer_keys(table: Any) -> bool:
    """Whether the torch_dist folder with this table of contents (read_table) names its layers one by one."""
    return any(".layers.0." in name for name in table.state_dict_metadata)


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


def rng_object(state: dict[str, Any]) -> ShardedObject:
    """The random states of this rank, beside those of the others."""
    return ShardedObject("random", state, (groups.world_size(),), (groups.rank(),), replica_id=0)


_HASHES_OF = "hashes-{:05}.json"
"""What a rank leaves of its shards until the folder is sealed."""
# A rank writes two files of shards: Megatron-Core's writer has two processes.
_HASHED_AT_ONCE = 2


def leave_hashes(checkpoint: Path, rank: int) -> None:
    """Writes the hashes of the shards that a rank wrote, from any process of that rank."""
    shards = sorted((checkpoint / "shards").glob(f"__{rank}_*"))
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as threads:
        digests = threads.map(file_sha256, shards)
        hashes = {str(path.relative_to(checkpoint)): digest for path, digest in zip(shards, digests, strict=True)}
    write_json(checkpoint / _HASHES_OF.format(rank), hashes)


@contextmanager
def whole_folder_of_ranks(folder: Path, needed: int) -> Iterator[Path]:
    """`whole_folder` for all ranks, each of which enters and leaves it: rank 0 makes it and gives it its name.

    Args:
        needed: bytes that this rank would write alone, at most.
    Raises:
        BadInput: as whole_folder does.
        StorageFault: there is less room.
    """
    with ExitStack() as whole:
        with first_on_rank_zero():
            if groups.rank() == 0:
                refuse_without_room(folder, needed)
                unfinished = whole.enter_context(whole_folder(folder))
            else:
                unfinished = unfinished_name(folder)
        yield unfinished
        barrier()
    barrier()


def seal(checkpoint: Path) -> None:
    """Marks a folder as complete once every rank has left its hashes. Every rank calls it.

    Each rank looks for its own: a thousand that look for all would ask the file system a million times.

    Raises:
        StorageFault: a rank has left none.
    """
    own = checkpoint / _HASHES_OF.format(groups.rank())
    left = orjson.loads(own.read_bytes()) if own.is_file() else None
    own.unlink(missing_ok=True)
    of_ranks = groups.gathered(left)
    missing = [rank for rank, hashes in enumerate(of_ranks) if hashes is None]
    if missing:
        raise StorageFault(
            f"{checkpoint}: ranks {missing} left no hashes of their shards: is the disk full? {before(checkpoint)}"
        )
    with first_on_rank_zero():
        if groups.rank() == 0:
            hashes = {name: digest for of_rank in of_ranks for name, digest in of_rank.items()}
            for path in sorted(checkpoint.rglob("*")):
                if path.is_file() and path.suffix != ".distcp":
                    sync_file(path)
                    hashes[str(path.relative_to(checkpoint))] = file_sha256(path)
            sync_folder(checkpoint / "shards")
            sync_folder(checkpoint / "hf")
            write_marker(checkpoint, hashes)
            sync_folder(checkpoint.parent)


def before(checkpoint: Path) -> str:
    """What a run goes on from where a checkpoint could not be written."""
    newest = newest_checkpoint(checkpoint.parent)
    return f"{newest} is whole: the same command goes on from it." if newest else "There is no checkpoint before it."


def verify(checkpoint: Path) -> None:
    """Compares every file with the hash that its writer left. Every rank calls it and raises alike.

    Raises:
        IntegrityFault: a file is missing, or its bytes are not those that were written, or it is one more.
    """
    _verify_description(checkpoint)
    shards = [entry for entry in read_hashes(checkpoint).items() if entry[0].endswith(".distcp")]
    mine = shards[groups.rank() :: groups.world_size()]
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as threads:
        intact = threads.map(lambda entry: is_intact(checkpoint / entry[0], entry[1]), mine)
        broken = [name for (name, _), found in zip(mine, intact, strict=True) if not found]
    if not all_agree(not broken):
        refuse_altered(checkpoint, broken or ["found by another rank"])


def _verify_description(checkpoint: Path) -> None:
    """`verify_description` by rank 0 for all: tables of contents grow with the ranks. Every rank calls it."""
    fault: IntegrityFault | None = None
    if groups.rank() == 0:
        try:
            verify_description(checkpoint)
        except IntegrityFault as error:
            fault = error
    if not all_agree(fault is None):
        if fault is not None:
            raise fault
        refuse_altered(checkpoint, ["found by rank 0"])


_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {
        "SavePlan",
        "WriteItem",
        "WriteItemType",
        "TensorWriteData",
        "BytesIOWriteData",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {
        "Size",
        "float32",
        "float64",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    },
    "collections": {"OrderedDict"},
    # Where it was written; a path does nothing.
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
}


class _TableUnpickler(pickle.Unpickler):
    """Reads a table of contents and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_table(shards: Path) -> Any:
    """The table of contents of a torch_dist folder (torch's checkpoint Metadata). Raises IntegrityFault."""
    path = shards / ".metadata"
    try:
        with path.open("rb") as file:
            return _TableUnpickler(file).load()
    except OSError as error:
        raise IntegrityFault(f"{path}: not readable ({error})") from error
    except Exception as error:
        raise IntegrityFault(f"{path}: refused, not a table of contents: {error}") from error


def inside(shards: Path, name: str) -> Path:
    """A file of the folder. Raises IntegrityFault where the name leads out of it."""
    path = shards / name
    if path.parent != shards:
        raise IntegrityFault(f"{shards}: refused, a value lies outside the folder: {name}")
    return path


def vet(shards: Path) -> None:
    """Refuses a torch_dist folder whose pickles hold anything but plain values and tensors.

    Raises:
        IntegrityFault: what was refused, and where.
    """
    table = read_table(shards)
    for index, place in table.storage_data.items():
        if not isinstance(table.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            continue
        path = inside(shards, place.relative_path)
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                torch.load(io.BytesIO(file.read(place.length)), weights_only=True)
        except Exception as error:
            raise IntegrityFault(f"{path}: refused, {index.fqn} is more than plain values: {error}") from error
