"""Distributed checkpoints read and written one parameter at a time: no model is held in memory.

Megatron-Core itself says, of a model on torch's meta device, under which key a parameter is saved and at which place of
the tensor with that key: all layers, and all experts, are slices of one tensor. torch's own writer asks its planner for
each part when it is about to write it; the planner here reads it only then.

Checkpoints of Megatron-LM and Megatron-Bridge are matched by their tensors' names. Only their table of contents and
their tensors are read. common.pt, random states and optimizer are never opened.
"""

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import save as write
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megatron_cpt.checkpoint.hf_folder import is_finite
from megatron_cpt.checkpoint.load import CHECKPOINT_ERRORS, inside, model_state, read_table, reason
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, StorageFault, refuse
from megatron_cpt.config.schema import ParallelSettings, Precision
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import name_table
from megatron_cpt.families.weights import VocabularyParallel
from megatron_cpt.model.build import ModelOptions, build_meta_model, build_model
from megatron_cpt.parallel import groups
from megatron_cpt.runs.folder import write_json


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
    further: tuple["Stored", ...] = ()
    """Where the rows after these stand, of a parameter that is saved under several keys."""

    @property
    def parts(self) -> tuple["Stored", ...]:
        """Each place that has rows of the parameter, in order."""
        if not self.further:
            return (self,)
        return replace(self, size=self.own[-len(self.size) :], further=()), *self.further

    def renamed(self, key_of: Callable[[str], str]) -> "Stored":
        """The same under other keys."""
        return replace(self, key=key_of(self.key), further=tuple(part.renamed(key_of) for part in self.further))


def stored_places(shape: ModelShape, per_layer_keys: bool = False) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Where parameters and buffers of a model stand, by their names in the whole model, and what is stored beside them.

    Args:
        per_layer_keys: each layer under keys of its own (sharded.model_state).
    Returns:
        The places, and the values that are no tensors, by key.
    """
    model = _meta_model(shape)
    content = model_state([model], per_layer_keys)["model"]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    table = name_table(shape)  # which has none of the buffers that are of the moment
    places = {name: _place_of(content[name], tuple(value.shape)) for name, value in tensors if name in table}
    values = {value.unique_key: value.data for value in content.values() if isinstance(value, ShardedObject)}
    return places, values


def _place_of(entry: ShardedTensor | ShardedTensorFactory, size: tuple[int, ...]) -> Stored:
    """Where Megatron-Core saves a parameter of this size, which this process has whole."""
    # Gate and up of a gated MLP are two entries, which follow each other under one key.
    entries = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
    first, *others = {part.key: part for part in reversed(entries)}.values()
    if not others:
        own = (1,) * first.prepend_axis_num + size
        return Stored(first.key, tuple(first.global_shape), tuple(first.global_offset), own, size)
    whole, *further = (_place_of(part, tuple(part.local_shape)) for part in entries)
    return replace(whole, size=size, further=tuple(further))


class StoredTensors:
    """The tensors of a torch_dist folder, by key."""

    def __init__(self, shards: Path, has_hashes: bool = True) -> None:
        """Reads the table of contents.

        Args:
            has_hashes: False of a folder of Megatron-LM, whose tensors are compared with the CRC-32 that torch gave
                them. Ours have hashes, which are compared elsewhere.
        Raises:
            IntegrityFault: it cannot be read.
        """
        self.shards, self._has_hashes = shards, has_hashes
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
            IntegrityFault: parts of it are missing, are not what was written or what the table says, or hold a NaN or
                an infinity.
        """
        return torch.cat(list(map(self._read, place.parts))) if place.further else self._read(place)

    def _read(self, place: Stored) -> Tensor:
        """What stands under one key."""
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
            with inside(self.shards, where.relative_path).open("rb", buffering=0) as file:
                part: Any = _PartOfFile(file, where.offset, where.length)
                damaged = None if self._has_hashes else zipfile.ZipFile(part).testzip()
                part.seek(0)
                tensor = torch.load(part, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise IntegrityFault(f"{self.shards}: {key} cannot be read ({reason})") from error
        if damaged is not None:
            raise IntegrityFault(f"{self.shards}: {key} does not hold the bytes that were written (their CRC-32)")
        if not isinstance(tensor, Tensor) or tensor.shape != chunk.sizes or not tensor.is_floating_point():
            raise IntegrityFault(f"{self.shards}: {key} is not what the table of contents says")
        if not is_finite(tensor):
            raise IntegrityFault(f"{self.shards}: {key} holds a NaN or an infinity")
        return tensor


class _PartOfFile(io.RawIOBase):
    """Some bytes of a file as a file: torch reads a tensor from there to where it stays, without a copy between."""

    def __init__(self, file: io.RawIOBase, begin: int, length: int) -> None:
        super().__init__()
        self._file, self._begin, self._length, self._position = file, begin, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        left = memoryview(buffer)[: max(0, self._length - self._position)]
        self._file.seek(self._begin + self._position)
        count = self._file.readinto(left) or 0
        self._position += count
        return count


TRACKER = "latest_checkpointed_iteration.txt"
# A norm that Transformer Engine fuses with the projection behind it is saved under another key than one that stands
# alone; Megatron-LM has written both from its local layers.
_NORM_KEYS = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    ("self_attention.in_proj.layer_norm_", "input_layernorm."),
    ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
    ("self_attention.linear_q_up_proj.layer_norm_", "self_attention.q_layernorm."),
    ("self_attention.linear_kv_up_proj.layer_norm_", "self_attention.kv_layernorm."),
)


def find_shards(folder: Path) -> Path:
    """The torch_dist folder: this one, or that of the newest iteration in it.

    Raises:
        BadInput: there is none.
    """
    if (folder / ".metadata").is_file():
        return folder
    newest = _newest_iteration(folder)
    if newest is not None and (newest / ".metadata").is_file():
        return newest
    if any(folder.glob("**/mp_rank_*")):
        rule = "holds pickles of Megatron-LM's older format (`--ckpt-format torch`), which can run any program."
        remedy = "Where you trust it: load and save it in Megatron-LM with `--ckpt-convert-format torch_dist`."
        raise BadInput(Fault(str(folder), rule, remedy))
    rule = f"is no torch_dist checkpoint: neither .metadata nor {TRACKER} of a folder with one is here."
    raise BadInput(Fault(str(folder), rule, "Name one of its iteration folders, such as iter_0000100."))


def _newest_iteration(folder: Path) -> Path | None:
    """The folder that Megatron-LM's tracker names; None where there is no tracker that names one."""
    try:
        word = (folder / TRACKER).read_text().strip()
    except (OSError, ValueError):
        return None
    if word == "release":
        return folder / word
    return folder / f"iter_{int(word):07}" if word.isdecimal() else None


_NAMES = (
    "Give the config.json of this model; only names of Megatron-Core's GPTModel are known, and of a HybridModel whose"
    " pattern is that of a GPTModel, `*-` or `*E` for each of its layers."
)


def match_places(
    places: Mapping[str, Stored], sizes: Mapping[str, tuple[int, ...]], shape: ModelShape, shards: Path
) -> dict[str, Stored]:
    """The places of all parameters under the keys that the checkpoint has for them.

    Args:
        places: as Megatron-Core would save them here (stored_places).
        sizes: dimensions of the checkpoint's tensors, by key.
    Raises:
        BadInput: tensors are missing, surplus or of another size; every kind is told.
    """
    table = name_table(shape)
    found: dict[str, Stored] = {}
    chosen: dict[str, str] = {}
    missing: list[str] = []
    faults: list[Fault] = []
    for name, place in places.items():
        padded = isinstance(table[name][0], VocabularyParallel)
        for part in place.parts:
            key = next((key for key in alternatives(part.key) if key in sizes), None)
            if key is None:
                missing.append(part.key)
                continue
            chosen[part.key] = key
            if not fits(sizes[key], part.whole, padded):
                value = f"{shards}: {key} is {sizes[key]}"
                rule = f"config.json calls for {part.whole}."
                faults.append(Fault(value, rule, "Give the config.json of this model."))
        if all(part.key in chosen for part in place.parts):
            found[name] = place.renamed(chosen.__getitem__)
    used = set(chosen.values())
    surplus = [key for key in sizes if key not in used and not key.startswith(("optimizer.", "chained_"))]
    if missing:
        faults.append(
            Fault(
                f"{shards}: {some(missing)}",
                f"tensors are missing that config.json calls for ({len(set(missing))}).",
                _NAMES,
            )
        )
    if surplus:
        faults.append(
            Fault(
                f"{shards}: {some(surplus)}",
                f"tensors are there that a {shape.family} of this config.json does not have ({len(surplus)}).",
                _NAMES,
            )
        )
    refuse(list(dict.fromkeys(faults)))
    return found


_HYBRID_NORM = "decoder.final_norm."


def is_hybrid(sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a checkpoint's tensors are those of Megatron-LM's HybridModel, whose final norm has another name."""
    return any(key.startswith(_HYBRID_NORM) for key in sizes)


def in_hybrid_layers(places: Mapping[str, Stored], shape: ModelShape, shards: Path) -> dict[str, Stored]:
    """The places under the keys of a HybridModel in whose pattern attention and MLP are layers of their own, in turn.

    So Megatron-LM's migration guide writes a GPTModel: layer i becomes the layers 2 i (`*`) and 2 i + 1 (`-` or `E`).
    Another pattern has other keys, which match_places tells of.

    Args:
        places: with keys for each layer.
    Raises:
        BadInput: config.json has attention and MLP in parallel.
    """
    if shape.parallel_residual:
        rule = (
            "config.json has attention and MLP in parallel; in a HybridModel with these layers they follow each other."
        )
        raise BadInput(Fault(f"{shards}: {_HYBRID_NORM}weight", rule, "Give the config.json of this model."))
    return {name: place.renamed(_in_hybrid) for name, place in places.items()}


def _in_hybrid(key: str) -> str:
    """The key of a HybridModel for that of a GPTModel, each layer under a key of its own."""
    if layer := re.match(r"decoder\.layers\.(\d+)\.(pre_mlp_layernorm|mlp)?", key):
        return f"decoder.layers.{2 * int(layer[1]) + (layer[2] is not None)}.{key[layer.end(1) + 1 :]}"
    return key.replace("decoder.final_layernorm.", _HYBRID_NORM)


def alternatives(key: str) -> list[str]:
    """The keys under which a parameter may have been saved, the likeliest first."""
    keys = [key]
    for fused, alone in _NORM_KEYS:
        keys += [key.replace(one, other) for one, other in ((fused, alone), (alone, fused)) if one in key]
    return keys


def fits(size: tuple[int, ...], expected: tuple[int, ...], padded: bool) -> bool:
    """Whether a tensor has the dimensions that are expected; padding of the vocabulary may add rows."""
    return size == expected or (padded and size[1:] == expected[1:] and size[0] > expected[0])


def some(keys: list[str]) -> str:
    """The first of them."""
    first = list(dict.fromkeys(keys))
    return ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")


# Files, each written by a thread of its own.
FILES = 2


class _ReadAsWritten(DefaultSavePlanner):
    """Names what a checkpoint is to hold, and reads each part when its turn to be written comes."""

    def __init__(
        self,
        places: Mapping[str, Stored],
        values: Mapping[str, Any],
        dtypes: Mapping[str, torch.dtype],
        read: Callable[[str], Tensor],
    ) -> None:
        """Takes what write_streamed takes."""
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._rows: dict[tuple[str, tuple[int, ...]], tuple[str, int, Stored]] = {}
        """Of each part: its parameter, and its first row there."""
        for name, place in places.items():
            first = 0
            for part in place.parts:
                self._rows[part.key, part.offset] = name, first, part
                first += part.size[0]
        self._values, self._dtypes, self._read = values, dtypes, read
        self.failures: list[Exception] = []

    def create_local_plan(self) -> SavePlan:
        """All parts of parameters, each as one chunk, and all values."""
        tensors = [
            WriteItem(
                index=MetadataIndex(part.key, part.offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(part.offset), torch.Size(part.own)),
                    properties=TensorProperties(dtype=self._dtypes[name]),
                    size=torch.Size(part.whole),
                ),
            )
            for name, _, part in self._rows.values()
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
        name, first, part = self._rows[write_item.index.fqn, tuple(write_item.index.offset)]
        # A thread of the writer would end at an error without a word: it is kept, and raised when all have ended.
        if not self.failures:
            try:
                return self._read(name)[first : first + part.size[0]].view(part.own)
            except Exception as error:
                self.failures.append(error)
        return torch.empty(part.own, dtype=self._dtypes[name])


def write_streamed(
    shards: Path,
    places: Mapping[str, Stored],
    values: Mapping[str, Any],
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[str], Tensor],
) -> None:
    """Writes a torch_dist folder in this process alone.

    Args:
        places: of all parameters, by name (stored_places).
        values: what is stored beside them, by key.
        dtypes: that each parameter is stored in, by name.
        read: gives a parameter by its name, in this dtype; called by several threads.
    Raises:
        StorageFault: not all could be written.
        Exception: what `read` raises.
    """
    planner, writer = _ReadAsWritten(places, values, dtypes, read), FileSystemWriter(shards, thread_count=FILES)
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


def build_standalone(shape: ModelShape, precision: Precision) -> list[LanguageModule]:
    """The model of a shape, on the layout that this process is in, its weights not yet set."""
    parallel = ParallelSettings(tensor=groups.tensor_size(), pipeline=groups.pipeline_size())
    options = ModelOptions(sequence_length=shape.max_positions, precision=precision, parallel=parallel)
    return build_model(shape, options)


def _meta_model(shape: ModelShape) -> LanguageModule:
    """The whole model of a shape without its weights."""
    assert groups.tensor_size() == groups.pipeline_size() == 1, "the meta model is the whole model"
    return build_meta_model(shape, ModelOptions(sequence_length=shape.max_positions))
