"""Where each parameter of a model stands in a distributed checkpoint, and its numbers, read one parameter at a time.

No model is built for it but an outline without weights: Megatron-Core itself says under which key a parameter is
saved, and at which place of the tensor that has this key, as all layers, and all experts, are slices of one tensor.
"""

import io
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from megatron_cpt.checkpoint.bare import outline
from megatron_cpt.checkpoint.hf_folder import is_finite
from megatron_cpt.checkpoint.sharded import model_state
from megatron_cpt.checkpoint.vetting import inside, read_table
from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.families.family import ModelShape


@dataclass(frozen=True)
class Stored:
    """Where a parameter stands in a distributed checkpoint."""

    key: str
    """The tensor that it is a part of."""
    whole: tuple[int, ...]
    """Dimensions of that tensor."""
    offset: tuple[int, ...]
    """Where the parameter begins in it."""
    own: tuple[int, ...]
    """Dimensions of the parameter in it: its own, behind a 1 for each axis of layers or experts."""
    size: tuple[int, ...]
    """Dimensions of the parameter itself."""


def stored_places(shape: ModelShape, layers_apart: bool = False) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Where the parameters of a model stand, by their names in the whole model, and what is stored beside them.

    Args:
        layers_apart: each layer under keys of its own (sharded.model_state).
    Returns:
        The places, and the values that are no tensors, by key.
    """
    model = outline(shape)
    content = model_state([model], layers_apart)["model"]
    places = {name: place_of(content[name], tuple(value.shape)) for name, value in model.named_parameters()}
    values = {value.unique_key: value.data for value in content.values() if isinstance(value, ShardedObject)}
    return places, values


def place_of(entry: ShardedTensor | ShardedTensorFactory, size: tuple[int, ...]) -> Stored:
    """Where Megatron-Core saves a parameter of this size, which this process has whole."""
    # Gate and up of a gated MLP are two entries, which follow each other.
    parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
    first = parts[0]
    assert all(part.key == first.key for part in parts), f"{first.key}: stored under several keys"
    own = (1,) * first.prepend_axis_num + size
    return Stored(first.key, tuple(first.global_shape), tuple(first.global_offset), own, size)


class StoredTensors:
    """The tensors of a torch_dist folder, by key."""

    def __init__(self, shards: Path) -> None:
        """Reads the table of contents. Raises IntegrityFault."""
        self.shards = shards
        self._table: Metadata = read_table(shards)
        self.sizes = {
            key: tuple(entry.size)
            for key, entry in self._table.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def dtype(self, place: Stored) -> torch.dtype:
        """The dtype that a parameter is stored in."""
        entry = self._table.state_dict_metadata[place.key]
        assert isinstance(entry, TensorStorageMetadata)
        return entry.properties.dtype

    def read(self, place: Stored) -> Tensor:
        """A parameter, in the dtype that it is stored in, on the CPU; its place must lie in a tensor that is there.

        Raises:
            IntegrityFault: parts of it are missing, are not what the table says, or hold a NaN or an infinity.
        """
        entry = self._table.state_dict_metadata[place.key]
        assert isinstance(entry, TensorStorageMetadata)
        found, filled = torch.empty(0), 0
        for chunk in entry.chunks:
            start = [max(own, theirs) for own, theirs in zip(place.offset, chunk.offsets, strict=True)]
            stop = [
                min(own + length, theirs + their_length)
                for own, length, theirs, their_length in zip(
                    place.offset, place.own, chunk.offsets, chunk.sizes, strict=True
                )
            ]
            length = [max(0, end - begin) for begin, end in zip(start, stop, strict=True)]
            if not prod(length):
                continue
            part = self._chunk(place.key, chunk)
            if tuple(chunk.offsets) == place.offset and tuple(chunk.sizes) == place.own:
                return part.view(place.size)
            if not filled:
                found = torch.empty(place.own, dtype=part.dtype)
            target, source = found, part
            for axis, (begin, extent) in enumerate(zip(start, length, strict=True)):
                target = target.narrow(axis, begin - place.offset[axis], extent)
                source = source.narrow(axis, begin - chunk.offsets[axis], extent)
            target.copy_(source)
            filled += prod(length)
        if filled != prod(place.own):
            raise IntegrityFault(f"{self.shards}: parts of {place.key} are missing")
        return found.view(place.size)

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        """One chunk as it was written, in a file of its own or among others."""
        try:
            where = self._table.storage_data[MetadataIndex(key, chunk.offsets)]
            with inside(self.shards, where.relative_path).open("rb") as file:
                file.seek(where.offset)
                content = io.BytesIO(file.read(where.length))
            tensor = torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:
            raise IntegrityFault(f"{self.shards}: {key} cannot be read ({error})") from error
        if not isinstance(tensor, Tensor) or tensor.shape != chunk.sizes or not tensor.is_floating_point():
            raise IntegrityFault(f"{self.shards}: {key} is not what the table of contents says")
        if not is_finite(tensor):
            raise IntegrityFault(f"{self.shards}: {key} holds a NaN or an infinity")
        return tensor
