"""Weights of a Hugging Face folder into this rank's part of a model, and parts of all ranks to whole tensors again.

Both directions look each parameter up in the family's name table (families/weights.py) and move its pieces. Loading
reads only the slices that the rank owns, one at a time. Numbers are copied, never computed, so there and back is
bit-identical. `hf_export.py` writes folders.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import torch
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor

from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes
from megatron_cpt.checkpoint.hf_folder import READABLE, HFTensors, altered_fault, altered_files, open_hf_tensors
from megatron_cpt.checkpoint.hf_misfits import UNQUANTIZED, misfit, some
from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import family_of, name_table, places_in_stacks
from megatron_cpt.families.weights import Place, Rule, VocabularyParallel, local_size, pieces, tensor_size
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import failing_together


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
        with failing_together():
            for parameter, rule, place in weights_of(model, shape):
                rank, ranks = sharing_ranks(rule)
                expected = local_size(rule, shape, rank, ranks)
                assert tuple(parameter.shape) == expected, f"{rule.names[0]}: {tuple(parameter.shape)}, not {expected}"
                replica = groups.expert_data_rank() if rule.of_expert else groups.token_rank()
                # Wrapping sends parameters alone to the other replicas.
                if rule.buffer or not by_one_replica or replica == 0:
                    fill(parameter, rule, place, shape, tensors, rank, ranks)


def sharing_ranks(rule: Rule) -> tuple[int, int]:
    """This rank among the ranks that divide such a parameter, and their number."""
    if rule.of_expert:
        return groups.expert_tensor_rank(), groups.expert_tensor_size()
    return groups.tensor_rank(), groups.tensor_size()


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
    if single := _experts_by_themselves(tensors, shape):
        rule = f"transformers reads the experts of a {shape.family} in one tensor for a layer alone ({len(single)})."
        faults.append(
            Fault(f"{tensors.folder}: {some(single)}", rule, f"Stack them as {family_of(shape).stacks[0].name}, ...")
        )
    present = sorted(set(expected) & tensors.names)
    if narrow := [name for name in present if tensors.dtype(name) not in READABLE]:
        value = f"{tensors.folder}: {some([f'{name} is {tensors.dtype(name)}' for name in narrow])}"
        faults.append(Fault(value, "quantized weights cannot be trained.", UNQUANTIZED))
    elif odd := [name for name in present if tensors.size(name) != expected[name]]:
        sizes = some([f"{name} is {tensors.size(name)} and not {expected[name]}" for name in odd])
        rule = f"config.json calls for tensors of other sizes ({len(odd)})."
        faults.append(Fault(f"{tensors.folder}: {sizes}", rule, "Check config.json against the weights."))
    elif other := [name for name, constant in constants(shape).items() if not tensors.holds(name, constant)]:
        rule = f"a {shape.family} whose numbers are others is not supported ({len(other)})."
        faults.append(Fault(f"{tensors.folder}: {some(other)}", rule, "Use a model that has transformers' own."))
    refuse(faults)


def _experts_by_themselves(tensors: HFTensors, shape: ModelShape) -> list[str]:
    """Tensors of one expert in the files of a family whose folders hold those of all in one."""
    stacks = [stack for stack in family_of(shape).stacks if stack.is_only_form]
    places = places_in_stacks(shape, stacks)
    return sorted(
        name for name in places.keys() & tensors.names if tensors.stored_name(name).endswith(name.partition(".")[2])
    )


def constants(shape: ModelShape) -> dict[str, float]:
    """What the tensors that hold no parameter hold, by name."""
    return {
        place.name(tensor.name): tensor.constant
        for rule, place in name_table(shape).values()
        for tensor in rule.tensors
        if tensor.constant is not None
    }


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


def trained_dtypes(shape: ModelShape, precision: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype that each tensor of a folder is trained in, by name: a buffer's is fp32, whatever the precision."""
    return {
        place.name(tensor.name): torch.float32 if rule.buffer else precision
        for rule, place in name_table(shape).values()
        for tensor in rule.tensors
    }


def weights_of(model: Sequence[LanguageModule], shape: ModelShape) -> Iterator[tuple[Tensor, Rule, Place]]:
    """The parameters and buffers of this rank, each with its rule and its place in the whole model, in their order."""
    table = name_table(shape)
    for chunk in model:
        for name, parameter in chunk.named_parameters():
            whole_name = _global_name(chunk, name)
            assert whole_name in table, f"the name table of {shape.family} has no {whole_name}"
            yield parameter.data, *table[whole_name]
        for name, buffer in chunk.named_buffers():
            whole_name = _global_name(chunk, name)
            if whole_name in table:  # others are of the moment: angles, counts of a step
                yield buffer, *table[whole_name]


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


def join_shards(
    shards: list[Tensor],
    rule: Rule,
    place: Place,
    shape: ModelShape,
    dtypes: TensorDtypes,
    empty: Callable[[str, tuple[int, ...], torch.dtype], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The tensors of the name table of a parameter from the parts of all tensor-parallel ranks.

    Args:
        empty: gives the memory of a tensor of a name, dimensions and dtype, on the CPU; None: each has its own.
    """
    whole: dict[str, Tensor] = {}
    for tensor in rule.tensors:
        name = place.name(tensor.name)
        size, dtype = tensor_size(tensor, shape), dtypes.of(name, shards[0].dtype)
        whole[name] = torch.empty(size, dtype=dtype) if empty is None else empty(name, size, dtype)
        if tensor.constant is not None:
            whole[name].fill_(tensor.constant)
    targets = list(whole.values())
    for rank, shard in enumerate(shards):
        for piece in pieces(rule, shape, rank, len(shards)):
            target = targets[piece.tensor].narrow(piece.axis, piece.start, piece.length)
            target.copy_(shard.narrow(piece.axis, piece.local, piece.length))
    return whole
