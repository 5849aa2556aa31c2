"""Weights of a Hugging Face folder into this rank's part of a model, and back into a folder.

Both directions walk over the parameters of the rank, look each up in the family's name table (families/weights.py) and
move its pieces. Loading reads only the slices that the rank owns, one at a time. Numbers are copied, never computed, so
there and back is bit-identical.

An export is written by all ranks together:
1. Every rank sizes its files and tells all, so that all know the final names (`model-00002-of-00005.safetensors`)
   before a byte is written. Of the ranks that share a parameter the first one writes it, on the first replica.
2. Each gathers one parameter at a time over the tensor-parallel ranks and writes a file as soon as it is full.
3. Of a model that reads more than text, rank 0 copies all other tensors into files of their own (hf_others.py).
4. Rank 0 writes index, config and lineage, copies tokenizer and model files, and renames the folder.
The folder must be on a file system that all ranks share.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any, Protocol

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
from megatron_cpt.checkpoint.hf_folder import (
    INDEX,
    READABLE,
    SINGLE,
    HFTensors,
    altered_fault,
    altered_files,
    copy_tokenizer_files,
    open_hf_tensors,
    write_hashes,
    write_shard,
)
from megatron_cpt.checkpoint.hf_misfits import UNQUANTIZED, misfit, some
from megatron_cpt.checkpoint.hf_others import OpenOthers, OtherTensors, opened_others
from megatron_cpt.checkpoint.load import whole_folder_of_ranks
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, NumericsFault, RankFailed, refuse
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import family_of, name_table
from megatron_cpt.families.weights import Place, Rule, VocabularyParallel, local_size, pieces, tensor_size
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import all_agree, barrier, first_on_rank_zero
from megatron_cpt.runs.folder import write_durably, write_json

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

    def dtypes(self, dtypes: TensorDtypes) -> dict[str, torch.dtype]:
        """The dtypes that its tensors are to have, by name."""
        names = [self.place.name(tensor.name) for tensor in self.rule.tensors]
        return {name: dtypes.of(name, self.dtype) for name in names}

    def bytes(self, dtypes: TensorDtypes, shape: ModelShape) -> int:
        """Bytes of its tensors."""
        sizes = [prod(tensor_size(tensor, shape)) for tensor in self.rule.tensors]
        kinds = self.dtypes(dtypes).values()
        return sum(size * dtype.itemsize for size, dtype in zip(sizes, kinds, strict=True))


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

    Args:
        weights: this rank's, those that are exported.
        hf_folder: where config.json, tokenizer and model files are taken from.
        dtypes: of the tensors.
        lineage: content of lineage.json; None writes none.
        card: README.md (model_card.py); None writes none.
        shard_bytes: bytes of tensors in one file, about; a single parameter is never divided.
        others: of a model that reads more than text, its other tensors; None: those that hf_folder has or tells of.
    Returns:
        How many tensors were rounded, and from what to what; empty where none was.
    Raises:
        BadInput: there is something at `output` already, or the model's other tensors are not to be had.
        IntegrityFault: the other tensors are not those that the model came with.
        NumericsFault: a weight is too large for float16.
    """
    on_rank_zero = groups.rank() == 0
    with opened_others(hf_folder, others) as kept:
        needed = sum(weight.bytes(dtypes, shape) for weight in weights) + kept.bytes
        with whole_folder_of_ranks(output, needed) as folder:
            files = _write_weights(weights, shape, folder, dtypes, shard_bytes, kept)
            written = {name: conversion for tensors in files.values() for name, conversion in tensors.items()}
            barrier()
            if on_rank_zero:
                assert set(written) == set(hf_sizes(shape)), f"left out: {sorted(set(hf_sizes(shape)) ^ set(written))}"
                if set(files) != {SINGLE}:
                    _write_index(folder, files, shape, kept, shard_bytes)
                targets = {each.target for each in written.values()}
                write_json(folder / "config.json", config_for(hf_folder, targets, kept.dtypes))
                copy_tokenizer_files(hf_folder, folder)
                if lineage is not None:
                    write_json(folder / "lineage.json", lineage)
                if card is not None:
                    write_durably(folder / "README.md", card)
                write_hashes(folder)
    return roundings(written.values())


def _write_weights(
    weights: Sequence[Weight],
    shape: ModelShape,
    folder: Path,
    dtypes: TensorDtypes,
    shard_bytes: int,
    others: OpenOthers,
) -> dict[str, dict[str, Conversion]]:
    """Writes all safetensors; every rank calls it.

    Returns the language model's tensors of every file, and what became of each. Files of other tensors come after them.
    """
    # Experts have replicas of their own, and files of their own: other ranks share them.
    shards: list[list[Weight]] = []
    if groups.token_rank() == 0:
        shards += _fill_shards([weight for weight in weights if not weight.rule.of_expert], shape, dtypes, shard_bytes)
    if groups.expert_data_rank() == 0:
        shards += _fill_shards([weight for weight in weights if weight.rule.of_expert], shape, dtypes, shard_bytes)
    written = [shard for shard in shards if _sharing_ranks(shard[0].rule)[0] == 0]
    conversions = [
        {
            name: Conversion(word_of(weight.dtype), word_of(target))
            for weight in shard
            for name, target in weight.dtypes(dtypes).items()
        }
        for shard in written
    ]
    of_ranks: list[list[dict[str, Conversion]]] = [[]] * groups.world_size()
    dist.all_gather_object(of_ranks, conversions)
    contents = [shard for of_rank in of_ranks for shard in of_rank]
    number = sum(len(of_rank) for of_rank in of_ranks[: groups.rank()])
    files_of_others = others.divided(shard_bytes)
    count = len(contents) + len(files_of_others)
    with first_on_rank_zero():
        if groups.rank() == 0:  # before anything else: they may not be those that are expected
            for after, tensors in enumerate(others.read(files_of_others), len(contents)):
                write_shard(folder / _file_name(after, count), tensors)
    for shard in shards:
        gathered: dict[str, Tensor] = {}
        for weight in shard:
            gathered |= gather_hf_tensors(weight.read(), weight.rule, weight.place, shape, dtypes)
        if gathered:
            stored = {others.stored_name(name): tensor for name, tensor in gathered.items()}
            write_shard(folder / _file_name(number, count), stored)
            number += 1
    return {_file_name(number, count): content for number, content in enumerate(contents)}


def _fill_shards(
    weights: list[Weight], shape: ModelShape, dtypes: TensorDtypes, shard_bytes: int
) -> list[list[Weight]]:
    """Divides weights, in order, into files of at most shard_bytes, or of one parameter where that is larger."""
    shards: list[list[Weight]] = []
    filled = 0
    for weight in weights:
        size = weight.bytes(dtypes, shape)
        if not shards or filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(weight)
        filled += size
    return shards


def _file_name(number: int, files: int) -> str:
    """transformers' name of a file, counted from 0."""
    return SINGLE if files == 1 else f"model-{number + 1:05}-of-{files:05}.safetensors"


def _write_index(
    folder: Path, files: dict[str, dict[str, Conversion]], shape: ModelShape, others: OpenOthers, shard_bytes: int
) -> None:
    """Writes which file holds which tensor, and their bytes together."""
    sizes, files_of_others = hf_sizes(shape), others.divided(shard_bytes)
    weight_map = {others.stored_name(name): file for file, names in files.items() for name in names}
    count = len(files) + len(files_of_others)
    weight_map |= {
        name: _file_name(after, count) for after, names in enumerate(files_of_others, len(files)) for name in names
    }
    total = sum(
        prod(sizes[name]) * DTYPES[conversion.target].itemsize
        for names in files.values()
        for name, conversion in names.items()
    )
    write_json(folder / INDEX, {"metadata": {"total_size": total + others.bytes}, "weight_map": weight_map})


def load_hf_weights(
    model: Sequence[LanguageModule], shape: ModelShape, folder: Path, by_one_replica: bool = False
) -> None:
    """Fills this rank's part of a model from the safetensors of a folder, in the model's dtype, in place.

    Every rank calls it.

    Args:
        model: the chunks that this rank owns, not yet wrapped for training.
        shape: the folder's shape, with which the model was built.
        by_one_replica: whether only the first replica of each parameter is filled: what wraps the model for training
            sends it to the others, faster than storage gives it to a thousand ranks.
    Raises:
        BadInput: pickles; tensors missing, surplus, of another size or dtype, not finite.
        IntegrityFault: a torn or altered file.
    """
    of_ranks = groups.gathered(altered_files(folder, groups.rank(), groups.world_size()))
    if altered := [name for of_rank in of_ranks for name in of_rank]:
        raise altered_fault(folder, altered)
    with open_hf_tensors(folder) as tensors, torch.no_grad():
        check_tensors(tensors, shape)
        fault: BadInput | IntegrityFault | None = None
        try:
            for parameter, rule, place in weights_of(model, shape):
                rank, ranks = _sharing_ranks(rule)
                expected = local_size(rule, shape, rank, ranks)
                assert tuple(parameter.shape) == expected, f"{rule.names[0]}: {tuple(parameter.shape)}, not {expected}"
                replica = groups.expert_data_rank() if rule.of_expert else groups.token_rank()
                if not by_one_replica or replica == 0:
                    fill(parameter, rule, place, shape, tensors, rank, ranks)
        except (BadInput, IntegrityFault) as error:
            fault = error
        if not all_agree(fault is None):
            raise fault or RankFailed(f"{folder}: refused by another rank, which says why")


def _sharing_ranks(rule: Rule) -> tuple[int, int]:
    """This rank among the ranks that divide such a parameter, and their number."""
    if rule.of_expert:
        return groups.expert_tensor_rank(), groups.expert_tensor_size()
    return groups.tensor_rank(), groups.tensor_size()


def _sharing_group(rule: Rule) -> dist.ProcessGroup:
    """The ranks that divide such a parameter."""
    return groups.expert_tensor_group() if rule.of_expert else groups.tensor_group()


def check_tensors(tensors: HFTensors, shape: ModelShape) -> None:
    """Refuses a folder whose tensors are not exactly those of the shape. Raises BadInput with every fault."""
    expected = hf_sizes(shape)
    missing = sorted(set(expected) - tensors.names)
    surplus = sorted(tensors.names - set(expected) - _redundant_tensors(tensors, shape))
    faults = _tied_faults(tensors, shape)
    reason = misfit(tensors.folder, missing, surplus, vocabulary_tensors(shape)[1])
    if reason is not None:
        refuse([*faults, reason])
    if missing:
        faults.append(
            Fault(
                f"{tensors.folder}: {some(missing)}",
                f"tensors are missing that config.json calls for ({len(missing)}).",
                "Fetch the folder again, or mend config.json.",
            )
        )
    if surplus:
        faults.append(
            Fault(
                f"{tensors.folder}: {some(surplus)}",
                f"tensors are there that a {shape.family} of this config.json does not have ({len(surplus)}).",
                "Check config.json against the weights.",
            )
        )
    present = sorted(set(expected) & tensors.names)
    if narrow := [name for name in present if tensors.dtype(name) not in READABLE]:
        value = f"{tensors.folder}: {some([f'{name} is {tensors.dtype(name)}' for name in narrow])}"
        faults.append(Fault(value, "quantized weights cannot be trained.", UNQUANTIZED))
    elif odd := [name for name in present if tensors.size(name) != expected[name]]:
        sizes = some([f"{name} is {tensors.size(name)} and not {expected[name]}" for name in odd])
        rule = f"config.json calls for tensors of other sizes ({len(odd)})."
        faults.append(Fault(f"{tensors.folder}: {sizes}", rule, "Check config.json against the weights."))
    refuse(faults)


def _redundant_tensors(tensors: HFTensors, shape: ModelShape) -> set[str]:
    """Tensors of a folder that its config.json implies: a tied output layer, and what the family computes."""
    ignored = family_of(shape).ignored_tensors
    computed = {name for name in tensors.names if any(fnmatch(name, rule) for rule in ignored)}
    return computed | ({vocabulary_tensors(shape)[1]} & tensors.names if shape.tied_embeddings else set())


def vocabulary_tensors(shape: ModelShape) -> tuple[str, str]:
    """The names of the embedding and of the output layer, which a tied model need not store."""
    rules = family_of(shape).weights(replace(shape, tied_embeddings=False))
    embedding, output = (rule.tensors[0].name for rule in rules if isinstance(rule, VocabularyParallel))
    return embedding, output


def _tied_faults(tensors: HFTensors, shape: ModelShape) -> list[Fault]:
    """An output layer that is stored beside the embedding of a tied model, and is not the same."""
    embedding, output = vocabulary_tensors(shape)
    if not shape.tied_embeddings or not {embedding, output} <= tensors.names:
        return []
    if tensors.are_equal(embedding, output):
        return []
    value = f"{tensors.folder}: {embedding} and {output}"
    rule = "they differ, although config.json ties them (tie_word_embeddings, where it is absent the family's default)."
    remedy = (
        f"Set `tie_word_embeddings` to false in config.json if both were trained; remove {output} if it was not. "
        "The loss of both ways tells which."
    )
    return [Fault(value, rule, remedy)]


def hf_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Names and dimensions of all tensors that a folder of this shape holds."""
    return {
        place.name(tensor.name): tensor_size(tensor, shape)
        for rule, place in name_table(shape).values()
        for tensor in rule.tensors
    }


def weights_of(model: Sequence[LanguageModule], shape: ModelShape) -> Iterator[tuple[Tensor, Rule, Place]]:
    """The parameters of this rank, each with its rule and its place in the whole model, in their order."""
    table = name_table(shape)
    for chunk in model:
        for name, parameter in chunk.named_parameters():
            whole_name = _global_name(chunk, name)
            assert whole_name in table, f"the name table of {shape.family} has no {whole_name}"
            yield parameter.data, *table[whole_name]


def _global_name(model: LanguageModule, name: str) -> str:
    """A parameter's name with the numbers that its layer and its expert have in the whole model."""
    found = re.match(r"decoder\.layers\.(\d+)\.", name)
    if found is None:
        return name
    # A rank counts its own layers and experts from 0; layer_number counts all layers from 1.
    layer = model.decoder.layers[int(found[1])]
    rest = name[found.end() :]
    if rest.startswith("mlp.experts."):
        owned: list[int] = layer.mlp.local_expert_indices
        rest = re.sub(
            r"(?<=local_experts\.)\d+|(?<=linear_fc[12]\.weight)\d+", lambda number: str(owned[int(number[0])]), rest
        )
    return f"decoder.layers.{layer.layer_number - 1}.{rest}"


class ReadsTensors(Protocol):
    """Hugging Face tensors that are read by rows or columns, as HFTensors reads them."""

    def read(self, name: str, axis: int, start: int, length: int) -> Tensor: ...


def fill(
    parameter: Tensor, rule: Rule, place: Place, shape: ModelShape, tensors: ReadsTensors, rank: int, ranks: int
) -> None:
    """Copies the rank's pieces into a parameter, one slice in memory at a time."""
    filled = 0
    for piece in pieces(rule, shape, rank, ranks):
        name = place.name(rule.tensors[piece.tensor].name)
        part = tensors.read(name, piece.axis, piece.start, piece.length)
        parameter.narrow(piece.axis, piece.local, piece.length).copy_(part)
        filled = piece.local + piece.length
    if isinstance(rule, VocabularyParallel) and filled < len(parameter):
        name = rule.tensors[0].name
        # The mean of all rows: no token has these rows, and a zero row would draw gradient noise alone.
        rows = tensors.read(name, 0, 0, shape.vocabulary)
        parameter[filled:] = rows.mean(dim=0, dtype=torch.float32)


def gather_hf_tensors(
    parameter: Tensor, rule: Rule, place: Place, shape: ModelShape, dtypes: TensorDtypes
) -> dict[str, Tensor]:
    """The whole Hugging Face tensors of a parameter, on the CPU of the first rank that shares it; {} on the others.

    Every rank that shares it calls this with the same parameter.
    """
    group = _sharing_group(rule)
    ranks = dist.get_world_size(group)
    first = dist.get_rank(group) == 0
    shards = [parameter]
    if ranks > 1:
        # Replicated ones are the same everywhere, and gathered all the same: they are small.
        shards = [torch.empty_like(parameter) for _ in range(ranks)] if first else []
        dist.gather(parameter.contiguous(), shards or None, group=group, group_dst=0)
    return join_shards(shards, rule, place, shape, dtypes) if first else {}


def join_shards(
    shards: list[Tensor], rule: Rule, place: Place, shape: ModelShape, dtypes: TensorDtypes
) -> dict[str, Tensor]:
    """The Hugging Face tensors of a parameter from the parts of all tensor-parallel ranks."""
    names = [place.name(tensor.name) for tensor in rule.tensors]
    whole = [
        torch.empty(tensor_size(tensor, shape), dtype=dtypes.of(name, shards[0].dtype))
        for name, tensor in zip(names, rule.tensors, strict=True)
    ]
    for rank, shard in enumerate(shards):
        for piece in pieces(rule, shape, rank, len(shards)):
            target = whole[piece.tensor].narrow(piece.axis, piece.start, piece.length)
            target.copy_(shard.narrow(piece.axis, piece.local, piece.length))
    tensors = dict(zip(names, whole, strict=True))
    for name, full in tensors.items():
        if full.dtype is torch.float16 and not full.isfinite().all():
            raise NumericsFault(f"{name}: a weight beyond 65,504 is too large for float16")
    return tensors
