"""A model written as a Hugging Face folder, by all its ranks together.

1. Every rank sizes the files that it is to write and tells all, so that all know the final names
   (`model-00002-of-00005.safetensors`) before a byte is written. Of the ranks that share a parameter the
   first one writes it, on the first replica: a pipeline stage its layers, a rank of experts its experts.
2. Each writes its files one after the other, so that it holds one file's tensors at most.
3. Rank 0 writes index, config and lineage, copies tokenizer and model files, renames the folder.
The folder must be on a file system that all ranks share.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
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
from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE, copy_companions, write_shard
from megatron_cpt.checkpoint.hf_weights import gather_hf_tensors, hf_sizes, sharing_ranks, weights_of
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.weights import Place, Rule, tensor_size
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import barrier, first_on_rank_zero
from megatron_cpt.runs.durable import sync_folder, write_durably, write_json

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

    def dtypes(self, wanted: TensorDtypes) -> dict[str, torch.dtype]:
        """The dtypes that its tensors are to have, by name."""
        names = [self.place.name(tensor.name) for tensor in self.rule.tensors]
        return {name: wanted.of(name, self.dtype) for name in names}

    def bytes(self, wanted: TensorDtypes, shape: ModelShape) -> int:
        """Bytes of its tensors."""
        sizes = [prod(tensor_size(tensor, shape)) for tensor in self.rule.tensors]
        kinds = self.dtypes(wanted).values()
        return sum(size * dtype.itemsize for size, dtype in zip(sizes, kinds, strict=True))


def export_hf(
    model: Sequence[GPTModel],
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
) -> str:
    """Writes weights as a Hugging Face folder that is absent or whole. Every rank calls it.

    Args:
        weights: this rank's, those that are exported.
        hf_folder: where config.json, tokenizer and model files are taken from.
        dtypes: of the tensors.
        lineage: content of lineage.json; None writes none.
        card: README.md (model_card.py); None writes none.
        shard_bytes: bytes of tensors in one file, about; a single parameter is never divided.
    Returns:
        How many tensors were rounded, and from what to what; empty where none was.
    Raises:
        BadInput: there is something at `output` already.
        NumericsFault: a weight is too large for float16.
    """
    partial = output.with_name(f".{output.name}.partial")
    with first_on_rank_zero():
        if groups.rank() == 0:
            make_partial(output, partial)
    files = write_weights(weights, shape, partial, dtypes, shard_bytes)
    written = {name: conversion for tensors in files.values() for name, conversion in tensors.items()}
    barrier()
    if groups.rank() == 0:
        assert set(written) == set(hf_sizes(shape)), f"left out: {sorted(set(hf_sizes(shape)) ^ set(written))}"
        if set(files) != {SINGLE}:
            write_index(partial, files, shape)
        write_json(partial / "config.json", config_for(hf_folder, {each.target for each in written.values()}))
        copy_companions(hf_folder, partial)
        if lineage is not None:
            write_json(partial / "lineage.json", lineage)
        if card is not None:
            write_durably(partial / "README.md", card)
        sync_folder(partial)
        partial.rename(output)
        sync_folder(output.parent)
    barrier()
    return roundings(written.values())


def make_partial(output: Path, partial: Path) -> None:
    """Makes the folder that is renamed in the end, in place of one that was cut short. Raises BadInput."""
    if output.exists():
        rule = "there is something here already; an export never writes over a folder."
        raise BadInput(Fault(str(output), rule, "Name another folder, or move this one away."))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def write_weights(
    weights: Sequence[Weight], shape: ModelShape, folder: Path, dtypes: TensorDtypes, shard_bytes: int
) -> dict[str, dict[str, Conversion]]:
    """Writes all safetensors; every rank calls it. Returns the tensors of every file, and what became of each."""
    # Experts have replicas of their own, and files of their own: other ranks share them.
    shards: list[list[Weight]] = []
    if groups.token_rank() == 0:
        shards += fill_shards([weight for weight in weights if not weight.rule.of_expert], shape, dtypes, shard_bytes)
    if groups.expert_data_rank() == 0:
        shards += fill_shards([weight for weight in weights if weight.rule.of_expert], shape, dtypes, shard_bytes)
    written = [shard for shard in shards if sharing_ranks(shard[0].rule)[0] == 0]
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
    for shard in shards:
        tensors: dict[str, Tensor] = {}
        for weight in shard:
            tensors |= gather_hf_tensors(weight.read(), weight.rule, weight.place, shape, dtypes)
        if tensors:
            write_shard(folder / file_name(number, len(contents)), tensors)
            number += 1
    return {file_name(number, len(contents)): content for number, content in enumerate(contents)}


def fill_shards(weights: list[Weight], shape: ModelShape, dtypes: TensorDtypes, shard_bytes: int) -> list[list[Weight]]:
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


def file_name(number: int, files: int) -> str:
    """transformers' name of a file, counted from 0."""
    return SINGLE if files == 1 else f"model-{number + 1:05}-of-{files:05}.safetensors"


def write_index(folder: Path, files: dict[str, dict[str, Conversion]], shape: ModelShape) -> None:
    """Writes which file holds which tensor, and their bytes together."""
    sizes = hf_sizes(shape)
    weight_map = {name: file for file, names in files.items() for name in names}
    total = sum(
        prod(sizes[name]) * DTYPES[conversion.target].itemsize
        for names in files.values()
        for name, conversion in names.items()
    )
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
