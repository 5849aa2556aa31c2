"""Weights from a Hugging Face folder into this rank's part of a model, and back into a folder.

Both directions walk over the parameters of the rank, look each up in the family's name table
(families/weights.py) and move its pieces: loading reads only the slices that the rank owns, one at a
time; exporting gathers one parameter at a time over the tensor-parallel ranks and writes a file as
soon as it is full. Numbers are copied, never computed, so there and back is bit-identical.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_cpt.checkpoint.hf_folder import READABLE, HFTensors, open_hf_tensors
from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import family_of, name_table
from megatron_cpt.families.weights import Rule, VocabularyParallel, local_size, pieces, tensor_size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_hf_weights(
    model: GPTModel, shape: ModelShape, folder: Path, tensor_rank: int = 0, tensor_size: int = 1
) -> None:
    """Fills this rank's part of a model from the safetensors of a folder, in the model's dtype, in place.

    Args:
        model: one pipeline stage of one tensor-parallel rank, not yet wrapped for training.
        shape: the folder's shape, with which the model was built.
        tensor_rank, tensor_size: this rank among those that share each layer.
    Raises:
        BadInput: pickles; tensors missing, surplus, of another size or dtype, not finite.
        IntegrityFault: a torn or altered file.
    """
    with open_hf_tensors(folder) as tensors, torch.no_grad():
        check_tensors(tensors, shape)
        for parameter, rule, layer in weights_of(model, shape):
            wanted = local_size(rule, shape, tensor_rank, tensor_size)
            assert tuple(parameter.shape) == wanted, f"{rule.names[0]}: {tuple(parameter.shape)}, not {wanted}"
            fill(parameter, rule, layer, shape, tensors, tensor_rank, tensor_size)


def check_tensors(tensors: HFTensors, shape: ModelShape) -> None:
    """Refuses a folder whose tensors are not exactly those of the shape. Raises BadInput with every fault."""
    expected = hf_sizes(shape)
    ignored = family_of(shape).ignored_tensors
    missing = sorted(set(expected) - tensors.names)
    surplus = sorted(name for name in tensors.names - set(expected) if not any(fnmatch(name, rule) for rule in ignored))
    faults = []
    if missing:
        faults.append(
            Fault(
                f"{tensors.folder}: {_some(missing)}",
                f"tensors are missing that config.json calls for ({len(missing)}).",
                "Fetch the folder again, or mend config.json.",
            )
        )
    if surplus:
        faults.append(
            Fault(
                f"{tensors.folder}: {_some(surplus)}",
                f"tensors are there that a {shape.family} of this config.json does not have ({len(surplus)}).",
                "Check config.json against the weights; adapters must be merged first.",
            )
        )
    for name in sorted(set(expected) & tensors.names):
        if tensors.size(name) != expected[name]:
            rule = f"config.json calls for {expected[name]}."
            value = f"{tensors.folder}: {name} is {tensors.size(name)}"
            faults.append(Fault(value, rule, "Check config.json against the weights."))
        elif tensors.dtype(name) not in READABLE:
            value = f"{tensors.folder}: {name} is {tensors.dtype(name)}"
            faults.append(Fault(value, "quantized weights cannot be trained.", "Use the unquantized model."))
    refuse(faults)


def hf_sizes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Names and dimensions of all tensors that a folder of this shape holds."""
    return {
        tensor.name.format(layer=layer): tensor_size(tensor, shape)
        for rule, layer in name_table(shape).values()
        for tensor in rule.tensors
    }


def weights_of(model: GPTModel, shape: ModelShape) -> Iterator[tuple[Tensor, Rule, int | None]]:
    """The parameters of this rank, each with its rule and the global number of its layer, in their order."""
    table = name_table(shape)
    for name, parameter in model.named_parameters():
        global_name = re.sub(r"^decoder\.layers\.(\d+)\.", lambda found: _global_layer(model, found), name)
        assert global_name in table, f"the name table of {shape.family} has no {global_name}"
        yield parameter.data, *table[global_name]


def _global_layer(model: GPTModel, found: re.Match[str]) -> str:
    # A pipeline stage counts its own layers from 0; layer_number counts all from 1.
    return f"decoder.layers.{model.decoder.layers[int(found[1])].layer_number - 1}."


def fill(
    parameter: Tensor, rule: Rule, layer: int | None, shape: ModelShape, tensors: HFTensors, rank: int, ranks: int
) -> None:
    """Copies the rank's pieces into a parameter, one slice in memory at a time."""
    filled = 0
    for piece in pieces(rule, shape, rank, ranks):
        name = rule.tensors[piece.tensor].name.format(layer=layer)
        part = tensors.read(name, piece.axis, piece.start, piece.length)
        parameter.narrow(piece.axis, piece.local, piece.length).copy_(part)
        filled = piece.local + piece.length
    if isinstance(rule, VocabularyParallel) and filled < len(parameter):
        name = rule.tensors[0].name
        # The mean of all rows: no token has these rows, and a zero row would draw gradient noise alone.
        rows = tensors.read(name, 0, 0, shape.vocabulary)
        parameter[filled:] = rows.mean(dim=0, dtype=torch.float32)


def gather_hf_tensors(
    parameter: Tensor, rule: Rule, layer: int | None, shape: ModelShape, dtype: torch.dtype, group: dist.ProcessGroup
) -> dict[str, Tensor]:
    """The whole Hugging Face tensors of a parameter, on the first tensor-parallel rank's CPU; {} on the others.

    Every rank of the group calls it with the same parameter.
    """
    ranks = dist.get_world_size(group)
    first = dist.get_rank(group) == 0
    shards = [parameter]
    if ranks > 1:
        # Replicated ones are the same everywhere, and gathered all the same: they are small.
        shards = [torch.empty_like(parameter) for _ in range(ranks)] if first else []
        dist.gather(parameter.contiguous(), shards or None, group=group, group_dst=0)
    return join_shards(shards, rule, layer, shape, dtype) if first else {}


def join_shards(
    shards: list[Tensor], rule: Rule, layer: int | None, shape: ModelShape, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The Hugging Face tensors of a parameter from the parts of all tensor-parallel ranks."""
    whole = [torch.empty(tensor_size(tensor, shape), dtype=dtype) for tensor in rule.tensors]
    for rank, shard in enumerate(shards):
        for piece in pieces(rule, shape, rank, len(shards)):
            target = whole[piece.tensor].narrow(piece.axis, piece.start, piece.length)
            target.copy_(shard.narrow(piece.axis, piece.local, piece.length))
    return {tensor.name.format(layer=layer): full for tensor, full in zip(rule.tensors, whole, strict=True)}


def hf_bytes(rule: Rule, shape: ModelShape, dtype: torch.dtype) -> int:
    """Bytes of the Hugging Face tensors of one parameter."""
    return sum(prod(tensor_size(tensor, shape)) for tensor in rule.tensors) * dtype.itemsize


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
