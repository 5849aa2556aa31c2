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

import orjson
import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE, copy_companions, write_shard
from megatron_cpt.checkpoint.hf_weights import DTYPES, gather_hf_tensors, hf_bytes, hf_sizes, sharing_ranks, weights_of
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.weights import Place, Rule
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


def export_hf(
    model: Sequence[GPTModel],
    shape: ModelShape,
    hf_folder: Path,
    output: Path,
    dtype: str | None = None,
    lineage: dict[str, Any] | None = None,
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the model as a Hugging Face folder that is absent or whole. Every rank calls it.

    Args:
        model: this rank's chunks, without the wrappers of training.
        dtype: None: that of hf_folder, or of the model where it states none.
        hf_folder, lineage, card, shard_bytes: as export_weights has them.
    Raises:
        BadInput: there is something at `output` already.
        NumericsFault: a weight is too large for float16.
    """
    weights = [Weight(rule, place, value.detach) for value, rule, place in weights_of(model, shape) if rule.exported]
    name = dtype or shape.dtype or str(next(model[0].parameters()).dtype).removeprefix("torch.")
    export_weights(weights, shape, hf_folder, output, name, lineage, card, shard_bytes)


def export_weights(
    weights: Sequence[Weight],
    shape: ModelShape,
    hf_folder: Path,
    output: Path,
    dtype: str,
    lineage: dict[str, Any] | None = None,
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes weights as a Hugging Face folder that is absent or whole. Every rank calls it.

    Args:
        weights: this rank's, those that are exported.
        hf_folder: where config.json, tokenizer and model files are taken from.
        dtype: float32, bfloat16 or float16.
        lineage: content of lineage.json; None writes none.
        card: README.md (model_card.py); None writes none.
        shard_bytes: bytes of tensors in one file, about; a single parameter is never divided.
    Raises:
        BadInput: there is something at `output` already.
        NumericsFault: a weight is too large for float16.
    """
    if dtype not in DTYPES:
        raise BadInput(Fault(f"dtype {dtype}", "cannot be exported.", f"Choose one of: {', '.join(DTYPES)}."))
    partial = output.with_name(f".{output.name}.partial")
    with first_on_rank_zero():
        if groups.rank() == 0:
            make_partial(output, partial)
    files = write_weights(weights, shape, partial, DTYPES[dtype], shard_bytes)
    barrier()
    if groups.rank() == 0:
        written = {tensor for names in files.values() for tensor in names}
        assert written == set(hf_sizes(shape)), f"left out: {sorted(set(hf_sizes(shape)) ^ written)}"
        if set(files) != {SINGLE}:
            write_index(partial, files, shape, DTYPES[dtype])
        write_config(partial, hf_folder, dtype)
        copy_companions(hf_folder, partial)
        if lineage is not None:
            write_json(partial / "lineage.json", lineage)
        if card is not None:
            write_durably(partial / "README.md", card)
        sync_folder(partial)
        partial.rename(output)
        sync_folder(output.parent)
    barrier()


def make_partial(output: Path, partial: Path) -> None:
    """Makes the folder that is renamed in the end, in place of one that was cut short. Raises BadInput."""
    if output.exists():
        rule = "there is something here already; an export never writes over a folder."
        raise BadInput(Fault(str(output), rule, "Name another folder, or move this one away."))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def write_weights(
    weights: Sequence[Weight], shape: ModelShape, folder: Path, dtype: torch.dtype, shard_bytes: int
) -> dict[str, list[str]]:
    """Writes all safetensors; every rank calls it. Returns the tensors of every file."""
    # Experts have replicas of their own, and files of their own: other ranks share them.
    shards: list[list[Weight]] = []
    if groups.token_rank() == 0:
        shards += fill_shards([weight for weight in weights if not weight.rule.of_expert], shape, dtype, shard_bytes)
    if groups.expert_data_rank() == 0:
        shards += fill_shards([weight for weight in weights if weight.rule.of_expert], shape, dtype, shard_bytes)
    written = [shard for shard in shards if sharing_ranks(shard[0].rule)[0] == 0]
    names = [[name for weight in shard for name in tensor_names(weight)] for shard in written]
    of_ranks: list[list[list[str]]] = [[]] * groups.world_size()
    dist.all_gather_object(of_ranks, names)
    contents = [shard for of_rank in of_ranks for shard in of_rank]
    number = sum(len(of_rank) for of_rank in of_ranks[: groups.rank()])
    for shard in shards:
        tensors: dict[str, Tensor] = {}
        for weight in shard:
            tensors |= gather_hf_tensors(weight.read(), weight.rule, weight.place, shape, dtype)
        if tensors:
            write_shard(folder / file_name(number, len(contents)), tensors)
            number += 1
    return {file_name(number, len(contents)): content for number, content in enumerate(contents)}


def fill_shards(weights: list[Weight], shape: ModelShape, dtype: torch.dtype, shard_bytes: int) -> list[list[Weight]]:
    """Divides weights, in order, into files of at most shard_bytes, or of one parameter where that is larger."""
    shards: list[list[Weight]] = []
    filled = 0
    for weight in weights:
        size = hf_bytes(weight.rule, shape, dtype)
        if not shards or filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(weight)
        filled += size
    return shards


def tensor_names(weight: Weight) -> list[str]:
    """The Hugging Face names of one parameter."""
    return [weight.place.name(tensor.name) for tensor in weight.rule.tensors]


def file_name(number: int, files: int) -> str:
    """transformers' name of a file, counted from 0."""
    return SINGLE if files == 1 else f"model-{number + 1:05}-of-{files:05}.safetensors"


def write_index(folder: Path, files: dict[str, list[str]], shape: ModelShape, dtype: torch.dtype) -> None:
    """Writes which file holds which tensor, and their bytes together."""
    weight_map = {name: file for file, names in files.items() for name in names}
    total = sum(prod(size) for size in hf_sizes(shape).values()) * dtype.itemsize
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_config(folder: Path, hf_folder: Path, dtype: str) -> None:
    """Copies config.json, with the dtype of the weights written beside it."""
    config = orjson.loads((hf_folder / "config.json").read_bytes())
    field = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    write_json(folder / "config.json", config | {field: dtype})
