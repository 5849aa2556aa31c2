"""A model to a Hugging Face folder, written by all ranks together.

1. Every rank tells all which parts of which parameters it holds. Each then makes the same plan: the parameters in the
   order of the model, cut into files, and a writer for each file.
2. Files are written in rounds, at most one by each rank. Parameter by parameter, the ranks that hold its parts send
   them to the writer of its file, which joins them (families/weights.py). Then all writers write at once.
3. Rank 0 writes index, config and lineage, copies tokenizer and model files, and renames the folder.

Rank 0 first copies the tensors that are none of what is trained (families/others.py) into files of their own.

Which files there are, and their bytes, depends on the model and on `shard_bytes` alone: on no layout, and not on who
writes them. The folder must be on a file system that all ranks share.
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor

from megatron_cpt.checkpoint.hf_dtypes import (
    DTYPES,
    Conversion,
    TensorDtypes,
    config_for,
    parent_dtypes,
    roundings,
    word_of,
)
from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE, copy_tokenizer_files, write_hashes, write_shard
from megatron_cpt.checkpoint.hf_others import OpenOthers, OtherTensors, opened_others
from megatron_cpt.checkpoint.hf_weights import hf_sizes, join_shards, sharing_ranks, weights_of
from megatron_cpt.checkpoint.load import whole_folder_of_ranks
from megatron_cpt.checkpoint.tensor_forms import view_in_stack
from megatron_cpt.config.errors import NumericsFault, RankFailed
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import name_table, places_in_stacks
from megatron_cpt.families.weights import Place, Rule, StackPlace, local_size, tensor_size
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import first_on_rank_zero
from megatron_cpt.runs.folder import file_sha256, write_durably, write_json

SHARD_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Weight:
    """One parameter that is to be exported."""

    rule: Rule
    """The tensors that it becomes."""
    place: Place
    """Where in the model it is."""
    read: Callable[[], Tensor]
    """Gives this rank's part of it."""
    dtype: torch.dtype
    """dtype of what is read."""


@dataclass(frozen=True)
class _Parameter:
    """One parameter of the whole model, and who holds it."""

    rule: Rule
    place: Place
    dtype: torch.dtype
    """dtype in which ranks hold it."""
    holders: tuple[tuple[int, ...], ...]
    """The ranks that hold each of its parts."""

    def dtypes(self, dtypes: TensorDtypes) -> dict[str, torch.dtype]:
        """The dtypes that its tensors are to have, by name."""
        return {name: dtypes.of(name, self.dtype) for name in _names(self.rule, self.place)}

    def bytes(self, dtypes: TensorDtypes, shape: ModelShape) -> int:
        """Bytes of its tensors."""
        return sum(self.sizes(dtypes, shape))

    def sizes(self, dtypes: TensorDtypes, shape: ModelShape) -> list[int]:
        """Bytes of each of its tensors."""
        numbers = [prod(tensor_size(tensor, shape)) for tensor in self.rule.tensors]
        kinds = self.dtypes(dtypes).values()
        return [number * dtype.itemsize for number, dtype in zip(numbers, kinds, strict=True)]


@dataclass(frozen=True)
class _File:
    """One safetensors file."""

    name: str
    parameters: tuple[_Parameter, ...]
    writer: int
    """The rank that writes it."""

    def memory(self, dtypes: TensorDtypes, shape: ModelShape) -> int:
        """Bytes of a _FileMemory that holds its tensors."""
        return sum(_aligned(size) for parameter in self.parameters for size in parameter.sizes(dtypes, shape))


class _FileMemory:
    """The memory of the tensors of one file, taken again for each file: fresh pages cost more than what fills them."""

    def __init__(self, size: int, stacks: Mapping[str, StackPlace], experts: int) -> None:
        """Takes the bytes of the largest file.

        Args:
            stacks: where the tensors are that folders hold in one with those of other experts.
            experts: of a layer.
        """
        self._content, self._filled = torch.empty(size, dtype=torch.uint8), 0
        self._stacks, self._experts = stacks, experts
        self.tensors: dict[str, Tensor] = {}
        """The tensors of the file, by name, those of all experts in one."""

    def clear(self) -> None:
        """The next file begins: what was taken before is no longer needed."""
        self._filled, self.tensors = 0, {}

    def empty(self, name: str, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of the name table: its place in that of all experts, or one behind those that were taken."""
        place = self._stacks.get(name)
        if place is None:
            self.tensors[name] = self._next(size, dtype)
            return self.tensors[name]
        if place.stack not in self.tensors:
            self.tensors[place.stack] = self._next(place.whole_size(size, self._experts), dtype)
        return view_in_stack(self.tensors[place.stack], place)

    def _next(self, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        begin, length = self._filled, _aligned(prod(size) * dtype.itemsize)
        self._filled += length
        return self._content[begin : begin + length].view(dtype)[: prod(size)].view(size)


def _aligned(size: int) -> int:
    """Bytes that a tensor takes of the memory of a file: the next one begins where any dtype may."""
    return -(-size // 16) * 16


def export_hf(
    model: Sequence[LanguageModule],
    shape: ModelShape,
    hf_folder: Path,
    output: Path,
    dtypes: TensorDtypes | None = None,
    lineage: dict[str, Any] | None = None,
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes the model as a Hugging Face folder that is absent or whole. Every rank calls it.

    Args:
        model: this rank's chunks, without the wrappers of training.
        dtypes: None: those of hf_folder.
        hf_folder, lineage, card, shard_bytes: as export_weights has them.
    Returns:
        How many tensors were rounded, and from what to what; empty where none was.
    Raises:
        BadInput: there is something at `output` already.
        NumericsFault: a weight is too large for float16.
    """
    weights = [
        Weight(rule, place, value.detach, value.dtype)
        for value, rule, place in weights_of(model, shape)
        if rule.exported
    ]
    dtypes = dtypes or parent_dtypes(hf_folder)
    return export_weights(weights, shape, hf_folder, output, dtypes, lineage, card, shard_bytes)


def export_weights(
    weights: Sequence[Weight],
    shape: ModelShape,
    hf_folder: Path,
    output: Path,
    dtypes: TensorDtypes,
    lineage: dict[str, Any] | None = None,
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    others: OtherTensors | None = None,
) -> str:
    """Writes weights as a Hugging Face folder that is absent or whole. Every rank calls it.

    A rank holds the tensors of one file in memory, and the parts of one parameter.

    Args:
        weights: this rank's, those that are exported.
        hf_folder: where config.json, tokenizer and model files are taken from.
        dtypes: of the tensors.
        lineage: content of lineage.json; None writes none.
        card: README.md (model_card.py); None writes none.
        shard_bytes: bytes of tensors in one file, about; a single parameter is never divided.
        others: the tensors that are none of what is trained; None: those that hf_folder has or tells of.
    Returns:
        How many tensors were rounded, and from what to what; empty where none was.
    Raises:
        BadInput: there is something at `output` already, or the model's other tensors are not to be had.
        IntegrityFault: the other tensors are not those that the model came with.
        NumericsFault: a weight is too large for float16.
        RankFailed: another rank could not write; it raises why.
    """
    nodes = groups.gathered(platform.node())
    parameters = _held_by_all(weights, shape)
    targets = {name: each for parameter in parameters for name, each in parameter.dtypes(dtypes).items()}
    assert set(targets) == set(hf_sizes(shape)), f"left out: {sorted(set(hf_sizes(shape)) ^ set(targets))}"
    conversions = {
        name: Conversion(word_of(parameter.dtype), word_of(targets[name]))
        for parameter in parameters
        for name in _names(parameter.rule, parameter.place)
    }
    with opened_others(hf_folder, others) as kept:
        of_others = kept.divided(shard_bytes)
        stacks = places_in_stacks(shape, dtypes.stacks if kept.stacks is None else kept.stacks)
        files = _plan(parameters, nodes, shape, dtypes, shard_bytes, len(of_others), stacks)
        needed = sum(parameter.bytes(dtypes, shape) for parameter in parameters) + kept.bytes
        with whole_folder_of_ranks(output, needed) as folder:
            with first_on_rank_zero():
                if groups.rank() == 0:  # before anything else: they may not be those that are expected
                    for number, tensors in enumerate(kept.read(of_others), len(files)):
                        write_shard(folder / _file_name(number, len(files) + len(of_others)), tensors)
            hashes = _write_files(files, weights, nodes, folder, shape, dtypes, kept, stacks)
            with first_on_rank_zero():
                if groups.rank() == 0:
                    if len(files) + len(of_others) > 1:
                        _write_index(folder, files, kept, of_others, needed, stacks)
                    words = {each.target for each in conversions.values()}
                    write_json(folder / "config.json", config_for(hf_folder, words, kept.dtypes))
                    copy_tokenizer_files(hf_folder, folder)
                    if lineage is not None:
                        write_json(folder / "lineage.json", lineage)
                    if card is not None:
                        write_durably(folder / "README.md", card)
                    write_hashes(folder, hashes)
    return roundings(conversions, stacks)


def _held_by_all(weights: Sequence[Weight], shape: ModelShape) -> list[_Parameter]:
    """The parameters of the whole model in their order, by what every rank tells of those that it holds."""
    order = _in_order(shape)
    number_of = {_names(rule, place)[0]: number for number, (rule, place) in enumerate(order)}
    own = [
        (number_of[_names(each.rule, each.place)[0]], sharing_ranks(each.rule)[0], word_of(each.dtype))
        for each in weights
    ]
    holders: dict[tuple[int, int], list[int]] = {}
    dtype_of: dict[int, str] = {}
    for rank, of_rank in enumerate(groups.gathered(own)):
        for number, part, dtype in of_rank:
            holders.setdefault((number, part), []).append(rank)
            dtype_of[number] = dtype
    parameters = []
    for number, (rule, place) in enumerate(order):
        parts = [(number, part) for part in range(sharing_ranks(rule)[1])]
        assert all(part in holders for part in parts), f"no rank holds all of {_names(rule, place)[0]}"
        ranks = tuple(tuple(holders[part]) for part in parts)
        parameters.append(_Parameter(rule, place, DTYPES[dtype_of[number]], ranks))
    return parameters


def _in_order(shape: ModelShape) -> list[tuple[Rule, Place]]:
    """All that is exported: what comes before the layers, layer by layer, and what comes after them."""
    once = {_names(rule, place)[0]: (rule, place) for rule, place in name_table(shape).values() if rule.exported}
    table = list(once.values())
    first = next(number for number, (_, place) in enumerate(table) if place.layer is not None)
    before, rest = table[:first], table[first:]
    return before + sorted(rest, key=lambda each: shape.layers if each[1].layer is None else each[1].layer)


def _names(rule: Rule, place: Place) -> list[str]:
    """The tensors of the name table of a parameter."""
    return [place.name(tensor.name) for tensor in rule.tensors]


def _name_in_file(name: str, stacks: Mapping[str, StackPlace]) -> str:
    """The tensor that holds one of the name table: that of all experts, or itself."""
    return stacks[name].stack if name in stacks else name


def _plan(
    parameters: Iterable[_Parameter],
    nodes: Sequence[str],
    shape: ModelShape,
    dtypes: TensorDtypes,
    shard_bytes: int,
    further: int,
    stacks: Mapping[str, StackPlace],
) -> list[_File]:
    """Divides parameters, in order, into files of at most shard_bytes, or of one parameter where that is larger.

    Those of one tensor of all experts, which follow each other, are in one file.

    A file is written by a rank that holds part of its first parameter: by one on the node that writes the fewest so
    far, and of these by the one that writes the fewest.

    Args:
        nodes: the node of each rank.
        further: files that come after them.
    """
    shards: list[list[_Parameter]] = []
    filled = 0
    for _, together in groupby(parameters, lambda each: _name_in_file(_names(each.rule, each.place)[0], stacks)):
        of_tensor = list(together)
        size = sum(parameter.bytes(dtypes, shape) for parameter in of_tensor)
        if not shards or filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1] += of_tensor
        filled += size
    of_node: Counter[str] = Counter()
    of_rank: Counter[int] = Counter()
    files = []
    for number, shard in enumerate(shards):
        able = {rank for ranks in shard[0].holders for rank in ranks}
        writer = min(able, key=lambda rank: (of_node[nodes[rank]], of_rank[rank], rank))
        of_node[nodes[writer]] += 1
        of_rank[writer] += 1
        files.append(_File(_file_name(number, len(shards) + further), tuple(shard), writer))
    return files


def _file_name(number: int, files: int) -> str:
    """transformers' name of a file, counted from 0."""
    return SINGLE if files == 1 else f"model-{number + 1:05}-of-{files:05}.safetensors"


def _write_files(
    files: Sequence[_File],
    weights: Sequence[Weight],
    nodes: Sequence[str],
    folder: Path,
    shape: ModelShape,
    dtypes: TensorDtypes,
    others: OpenOthers,
    stacks: Mapping[str, StackPlace],
) -> dict[str, str]:
    """Writes all safetensors; every rank calls it. Returns the SHA-256 of each file by its name.

    Raises what the writing of a file on this rank raised, else RankFailed where that of another one failed.
    """
    own = {_names(weight.rule, weight.place)[0]: weight for weight in weights}
    by_writer: dict[int, list[_File]] = {}
    for file in files:
        by_writer.setdefault(file.writer, []).append(file)
    hashes: dict[str, str] = {}
    largest = max((file.memory(dtypes, shape) for file in by_writer.get(groups.rank(), ())), default=0)
    memory = _FileMemory(largest, stacks, shape.experts)
    for of_writers in zip_longest(*by_writer.values()):
        memory.clear()
        fault: Exception | None = None
        written: dict[str, str] = {}
        # All ranks go over the same files and parameters in the same order: none waits for one that waits for it.
        for file in (file for file in of_writers if file is not None):
            for parameter in file.parameters:
                parts = _bring(parameter, own, file.writer, nodes, shape)
                if parts and fault is None:
                    try:
                        join_shards(parts, parameter.rule, parameter.place, shape, dtypes, memory.empty)
                    except Exception as error:  # told below: the other ranks go on sending
                        fault = error
        mine = [file for file in of_writers if file is not None and file.writer == groups.rank()]
        if mine and fault is None:
            try:
                _refuse_overflow(memory.tensors)
                named = {others.stored_name(name): tensor for name, tensor in memory.tensors.items()}
                write_shard(folder / mine[0].name, named)
                written = {mine[0].name: file_sha256(folder / mine[0].name)}
            except Exception as error:
                fault = error
        answers = groups.gathered((written, None if fault is None else str(fault)))
        if fault is not None:
            raise fault
        if failed := [f"rank {rank}: {said}" for rank, (_, said) in enumerate(answers) if said is not None]:
            raise RankFailed("; ".join(failed))
        for of_rank, _ in answers:
            hashes |= of_rank
    return hashes


def _bring(
    parameter: _Parameter, own: Mapping[str, Weight], writer: int, nodes: Sequence[str], shape: ModelShape
) -> list[Tensor]:
    """The parts of a parameter on the rank that writes it; [] on the others. Every rank calls it.

    A part that the writer does not hold is sent by a rank of its node, or of another where none there holds it.
    """
    here = groups.rank()
    parts: list[Tensor] = []
    messages: list[dist.P2POp] = []
    for part, ranks in enumerate(parameter.holders):
        sender = min(ranks, key=lambda rank: (rank != writer, nodes[rank] != nodes[writer], rank))
        if here == writer:
            if sender == here:
                parts.append(own[_names(parameter.rule, parameter.place)[0]].read())
                continue
            size = local_size(parameter.rule, shape, part, len(parameter.holders))
            parts.append(torch.empty(size, dtype=parameter.dtype, device=groups.device()))
            messages.append(dist.P2POp(dist.irecv, parts[-1], sender))
        elif here == sender:
            content = own[_names(parameter.rule, parameter.place)[0]].read()
            messages.append(dist.P2POp(dist.isend, content.contiguous(), writer))
    if messages:
        # In a batch NCCL uses the communicator that all ranks have, and makes none for each pair.
        for work in dist.batch_isend_irecv(messages):
            work.wait()
    return parts


def _refuse_overflow(tensors: Mapping[str, Tensor]) -> None:
    """Raises NumericsFault where a number of the model has become an infinity."""
    for name, tensor in tensors.items():
        if tensor.dtype is torch.float16 and not tensor.isfinite().all():
            raise NumericsFault(f"{name}: a weight beyond 65,504 is too large for float16")


def _write_index(
    folder: Path,
    files: Sequence[_File],
    others: OpenOthers,
    of_others: Sequence[Sequence[str]],
    total: int,
    stacks: Mapping[str, StackPlace],
) -> None:
    """Writes which file holds which tensor, and their bytes together."""
    weight_map = {
        others.stored_name(_name_in_file(name, stacks)): file.name
        for file in files
        for parameter in file.parameters
        for name in _names(parameter.rule, parameter.place)
    }
    weight_map |= {
        name: _file_name(number, len(files) + len(of_others))
        for number, names in enumerate(of_others, len(files))
        for name in names
    }
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
