"""Nothing untrusted is unpickled: distributed checkpoints are vetted before Megatron-Core reads them.

torch's format keeps its table of contents (`.metadata`) as a pickle, and non-tensor values as pickles
inside the shards, and reads both with full pickle. Here the table is read with an unpickler that knows
the few types such a table is made of, and every such value is read with `weights_only`; what does not
pass is refused before anything else touches it.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from megatron_cpt.config.errors import IntegrityFault

ALLOWED = {
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


class TableUnpickler(pickle.Unpickler):
    """Reads a table of contents and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_table(shards: Path) -> Any:
    """The table of contents of a torch_dist folder (torch's checkpoint Metadata). Raises IntegrityFault."""
    path = shards / ".metadata"
    try:
        with path.open("rb") as file:
            return TableUnpickler(file).load()
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
