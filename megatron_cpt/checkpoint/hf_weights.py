"""Weights from a Hugging Face folder into this rank's part of a model, and back into a folder.

Both directions walk over the parameters of the rank, look each up in the family's name table
(families/weights.py) and move its pieces: loading reads only the slices that the rank owns, one at a
time; exporting gathers one parameter at a time over the tensor-parallel ranks and writes a file as
soon as it is full. Numbers are copied, never computed, so there and back is bit-identical.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes
from megatron_cpt.checkpoint.hf_folder import READABLE, HFTensors, open_hf_tensors
from megatron_cpt.checkpoint.hf_misfits import UNQUANTIZED, misfit, some
from megatron_cpt.config.errors import Fault, NumericsFault, refuse
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import family_of, name_table
from megatron_cpt.families.weights import Place, Rule, VocabularyParallel, local_size, pieces, tensor_size
from megatron_cpt.parallel import groups


def load_hf_weights(model: Sequence[GPTModel], shape: ModelShape, folder: Path) -> None:
    """Fills this rank's part of a model from the safetensors of a folder, in the model's dtype, in place.

    Args:
        model: the chunks that this rank owns, not yet wrapped for training.
        shape: the folder's shape, with which the model was built.
    Raises:
        BadInput: pickles; tensors missing, surplus, of another size or dtype, not finite.
        IntegrityFault: a torn or altered file.
    """
    with open_hf_tensors(folder) as tensors, torch.no_grad():
        check_tensors(tensors, shape)
        for parameter, rule, place in weights_of(model, shape):
            rank, ranks = sharing_ranks(rule)
            wanted = local_size(rule, shape, rank, ranks)
            assert tuple(parameter.shape) == wanted, f"{rule.names[0]}: {tuple(parameter.shape)}, not {wanted}"
            fill(parameter, rule, place, shape, tensors, rank, ranks)


def sharing_ranks(rule: Rule) -> tuple[int, int]:
    """This rank among the ranks that divide such a parameter, and their number."""
    if rule.of_expert:
        return groups.expert_tensor_rank(), groups.expert_tensor_size()
    return groups.tensor_rank(), groups.tensor_size()


def sharing_group(rule: Rule) -> dist.ProcessGroup:
    """The ranks that divide such a parameter."""
    return groups.expert_tensor_group() if rule.of_expert else groups.tensor_group()


def check_tensors(tensors: HFTensors, shape: ModelShape) -> None:
    """Refuses a folder whose tensors are not exactly those of the shape. Raises BadInput with every fault."""
    expected = hf_sizes(shape)
    missing = sorted(set(expected) - tensors.names)
    surplus = sorted(tensors.names - set(expected) - redundant_tensors(tensors, shape))
    faults = tied_faults(tensors, shape)
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


def redundant_tensors(tensors: HFTensors, shape: ModelShape) -> set[str]:
    """Tensors of a folder that its config.json implies: a tied output layer, and what the family computes."""
    ignored = family_of(shape).ignored_tensors
    computed = {name for name in tensors.names if any(fnmatch(name, rule) for rule in ignored)}
    return computed | ({vocabulary_tensors(shape)[1]} & tensors.names if shape.tied_embeddings else set())


def vocabulary_tensors(shape: ModelShape) -> tuple[str, str]:
    """The names of the embedding and of the output layer, which a tied model need not store."""
    rules = family_of(shape).weights(replace(shape, tied_embeddings=False))
    embedding, output = (rule.tensors[0].name for rule in rules if isinstance(rule, VocabularyParallel))
    return embedding, output


def tied_faults(tensors: HFTensors, shape: ModelShape) -> list[Fault]:
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


def weights_of(model: Sequence[GPTModel], shape: ModelShape) -> Iterator[tuple[Tensor, Rule, Place]]:
    """The parameters of this rank, each with its rule and its place in the whole model, in their order."""
    table = name_table(shape)
    for chunk in model:
        for name, parameter in chunk.named_parameters():
            whole_name = global_name(chunk, name)
            assert whole_name in table, f"the name table of {shape.family} has no {whole_name}"
            yield parameter.data, *table[whole_name]


def global_name(model: GPTModel, name: str) -> str:
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


def fill(
    parameter: Tensor, rule: Rule, place: Place, shape: ModelShape, tensors: HFTensors, rank: int, ranks: int
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
    group = sharing_group(rule)
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
