"""A checkpoint of weights alone, written one parameter at a time: no model stands in memory.

torch's own writer of distributed checkpoints asks its planner for each part when it is about to write it; the planner
here reads it only then. What is left is a checkpoint as Megatron-Core writes it, and is read as one.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import save as write
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron_cpt.checkpoint.sharded import CHECKPOINT_ERRORS, reason
from megatron_cpt.checkpoint.stored import Stored
from megatron_cpt.config.errors import StorageFault
from megatron_cpt.runs.durable import write_json

# Files, each written by a thread of its own.
FILES = 2


class ReadAsWritten(DefaultSavePlanner):
    """Names what a checkpoint is to hold, and reads each part when its turn to be written comes."""

    def __init__(
        self,
        places: Mapping[str, Stored],
        values: Mapping[str, Any],
        dtype: torch.dtype,
        read: Callable[[str], Tensor],
    ) -> None:
        """Takes what write_weights takes."""
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._names = {(place.key, place.offset): name for name, place in places.items()}
        self._places, self._values, self._dtype, self._read = places, values, dtype, read
        self.failures: list[Exception] = []

    def create_local_plan(self) -> SavePlan:
        """All parameters, each as one chunk, and all values."""
        tensors = [
            WriteItem(
                index=MetadataIndex(place.key, place.offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(place.offset), torch.Size(place.own)),
                    properties=TensorProperties(dtype=self._dtype),
                    size=torch.Size(place.whole),
                ),
            )
            for place in self._places.values()
        ]
        values = [WriteItem(index=MetadataIndex(key), type=WriteItemType.BYTE_IO) for key in self._values]
        self.plan = SavePlan([*tensors, *values])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """One part: a tensor on the CPU, or the bytes of a value."""
        if write_item.type is WriteItemType.BYTE_IO:
            content = io.BytesIO()
            torch.save([self._values[write_item.index.fqn]], content)  # Megatron-Core reads a list
            return content
        assert write_item.index.offset is not None
        name = self._names[write_item.index.fqn, tuple(write_item.index.offset)]
        own = self._places[name].own
        # A thread of the writer would end at an error without a word: it is kept, and raised when all have ended.
        if not self.failures:
            try:
                return self._read(name).view(own)
            except Exception as error:
                self.failures.append(error)
        return torch.empty(own, dtype=self._dtype)


def write_streamed(
    shards: Path,
    places: Mapping[str, Stored],
    values: Mapping[str, Any],
    dtype: torch.dtype,
    read: Callable[[str], Tensor],
) -> None:
    """Writes a torch_dist folder in this process alone.

    Args:
        places: of all parameters, by name (stored.stored_places).
        values: what is stored beside them, by key.
        dtype: that all parameters are stored in.
        read: gives a parameter by its name, in this dtype; called by several threads.
    Raises:
        StorageFault: not all could be written.
        Exception: what `read` raises.
    """
    planner, writer = ReadAsWritten(places, values, dtype, read), FileSystemWriter(shards, thread_count=FILES)
    try:
        table = write({}, storage_writer=writer, planner=planner, no_dist=True)
    except CHECKPOINT_ERRORS as error:
        raise StorageFault(f"{shards}: could not be written ({reason(error)}): is its disk full?") from error
    if planner.failures:
        raise planner.failures[0]
    if len(table.storage_data) != len(planner.plan.items):
        raise StorageFault(f"{shards}: could not be written whole: is its disk full?")
    torch.save({}, shards / "common.pt")
    write_json(shards / "metadata.json", asdict(CheckpointingConfig("torch_dist")))
