"""Whole conversions: a folder to a checkpoint, a checkpoint to a folder, and whether two models agree.

`reference` models are transformers' own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
import psutil
import torch
import torch.distributed as dist
from huggingface_hub.errors import StrictDataclassError
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging

from megatron_cpt.checkpoint.dcp import (
    Stored,
    StoredTensors,
    build_standalone,
    find_shards,
    in_hybrid_layers,
    is_hybrid,
    match_places,
    stored_places,
    write_streamed,
)
from megatron_cpt.checkpoint.hf_dtypes import STORED, Conversion, chosen_dtypes, parent_dtypes, roundings, word_of
from megatron_cpt.checkpoint.hf_export import SHARD_BYTES, Weight, export_weights
from megatron_cpt.checkpoint.hf_folder import (
    HFTensors,
    copy_files,
    copy_history,
    open_hf_tensors,
    read_history,
    refuse_altered,
    tokenizer_files,
)
from megatron_cpt.checkpoint.hf_others import OtherTensors, find_others
from megatron_cpt.checkpoint.hf_weights import check_tensors, fill, hf_sizes, load_hf_weights, trained_dtypes
from megatron_cpt.checkpoint.load import (
    has_per_layer_keys,
    leave_hashes,
    load_weights,
    read_table,
    seal,
    verify_and_vet,
)
from megatron_cpt.checkpoint.model_card import averaged_card, model_card, training_of
from megatron_cpt.checkpoint.save import make_folder
from megatron_cpt.checkpoint.tensor_forms import view_in_stack
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import Precision, RopeSettings
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.multimodal import multimodal_of, text_fields, with_text_fields
from megatron_cpt.families.rope import LengthScaling
from megatron_cpt.families.shape import name_table, places_in_stacks, read_config, read_shape
from megatron_cpt.families.size import parameter_count
from megatron_cpt.parallel import groups
from megatron_cpt.runs.checkpoint_state import complete_checkpoints, is_complete, read_state
from megatron_cpt.runs.folder import refuse_existing, refuse_without_room, whole_folder, write_json


@dataclass(frozen=True)
class LogitDifference:
    """How far two models are apart on the same tokens."""

    largest: float
    """Largest absolute difference of a logit."""
    mean: float
    """Mean absolute difference of all logits."""
    positions: int
    """Positions compared."""
    same_choice: float
    """Share of positions at which both give the same token the highest logit."""
    divergence: float
    """Kullback-Leibler divergence of the second's distributions from the first's, mean over positions, in nats."""


_AVERAGE = "average.json"
"""In `hf/` of a checkpoint that is an average: what it was made of."""


def checkpoint_from_hf(hf_folder: Path, output: Path) -> str:
    """Writes a checkpoint of weights alone, which loads into any layout. One process calls it.

    A few parameters stand in memory at once, never the model.

    Returns:
        How many tensors were rounded, and from what to what; empty where none was.
    Raises:
        BadInput: there is something at `output` already, or the folder cannot be read.
        IntegrityFault: a torn or altered file.
    """
    refuse_existing(output)
    refuse_altered(hf_folder)
    shape = read_shape(hf_folder)
    table = name_table(shape)
    places, values = stored_places(shape)
    with open_hf_tensors(hf_folder) as tensors:
        check_tensors(tensors, shape)
        stored = {name: STORED[tensors.dtype(name)] for name in hf_sizes(shape)}
        dtype = exact_precision(shape, stored)
        dtypes = dtypes_of(shape, dtype)

        def read(name: str) -> Tensor:
            parameter = torch.empty(places[name].size, dtype=dtypes[name])
            fill(parameter, *table[name], shape, tensors, rank=0, ranks=1)
            return parameter

        write_checkpoint(output, hf_folder, places, values, dtypes, read)
        own, stacks = trained_dtypes(shape, dtype), places_in_stacks(shape, tensors.stacks.values())
        conversions = {name: Conversion(word, word_of(own[name])) for name, word in stored.items()}
        dequantized = tensors.dequantized and f"{tensors.dequantized} to bfloat16"
        return ", ".join(filter(None, (dequantized, roundings(conversions, stacks))))


def exact_precision(shape: ModelShape, stored: Mapping[str, str]) -> torch.dtype:
    """The precision that holds all parameters exactly; fp16 does not fit into bf16.

    Args:
        stored: the dtype of each tensor in its folder, by name.
    """
    parameters = [name for name, own in trained_dtypes(shape, torch.bfloat16).items() if own is torch.bfloat16]
    return torch.bfloat16 if all(stored[name] == "bfloat16" for name in parameters) else torch.float32


def dtypes_of(shape: ModelShape, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each parameter of a model in this precision, by name; buffers are in fp32."""
    return {name: torch.float32 if rule.buffer else dtype for name, (rule, _) in name_table(shape).items()}


def write_checkpoint(
    output: Path,
    hf_folder: Path,
    places: Mapping[str, Stored],
    values: Mapping[str, Any],
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[str], Tensor],
    averaged: dict[str, Any] | None = None,
) -> None:
    """Writes a checkpoint of weights alone, absent or whole. One process calls it.

    Args:
        hf_folder: where config.json, tokenizer and the tensors' dtypes are taken from.
        places, values, dtypes, read: as write_streamed has them.
        averaged: what models it was made of, for its model card; None: no average.
    Raises:
        BadInput: there is something at `output` already.
        StorageFault: there is no room for it, or it could not be written.
    """
    refuse_without_room(output, sum(prod(place.size) * dtypes[name].itemsize for name, place in places.items()))
    with whole_folder(output) as folder:
        make_folder(folder, hf_folder, parent_dtypes(hf_folder))
        if averaged is None:
            copy_history(hf_folder, folder / "hf")
        else:  # a mean of models has no history of one
            write_json(folder / "hf" / _AVERAGE, averaged)
        write_streamed(folder / "shards", places, values, dtypes, read)
        leave_hashes(folder, rank=0)
        seal(folder)


def hf_from_checkpoint(
    checkpoint: Path,
    output: Path,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    others: Path | None = None,
) -> str:
    """Writes the model of a checkpoint as a Hugging Face folder. One process calls it.

    One file's tensors stand in memory at once, never the model.

    Args:
        checkpoint: one, or a run folder: its newest.
        dtype: of the weights; None: each tensor's in the folder that the checkpoint's model came from.
        shard_bytes: bytes of tensors in one file, about.
        others: the folder with the tensors that the checkpoint does not hold; None: that which the model came from.
    Returns:
        How many tensors were rounded, and from what to what; empty where none was.
    Raises:
        BadInput: it is no complete checkpoint, or there is something at `output` already.
        IntegrityFault: its bytes are not those that were written.
    """
    checkpoint = newest_of_run(checkpoint)
    if not is_complete(checkpoint):
        rule = "is not a complete checkpoint." if checkpoint.is_dir() else "there is no such folder."
        remedy = (
            "Name one, such as RUN/checkpoints/step-00000400; of another program's (Megatron-LM, Megatron-Bridge), "
            "give its model's config.json as well: --hf-config DIR."
        )
        raise BadInput(Fault(str(checkpoint), rule, remedy))
    verify_and_vet(checkpoint)
    shape = read_shape(checkpoint / "hf")
    stored = StoredTensors(checkpoint / "shards")
    places, _ = stored_places(shape, has_per_layer_keys(read_table(checkpoint / "shards")))
    weights, dtypes = _stored_weights(stored, places, shape), chosen_dtypes(dtype, checkpoint / "hf")
    history = read_history(checkpoint / "hf") or None
    card = _card_of(checkpoint, output.name, history)
    known = find_others(checkpoint / "hf")
    if others is not None:
        known = OtherTensors(str(others.absolute()), known.sha256 if known is not None else "")
    return export_weights(weights, shape, checkpoint / "hf", output, dtypes, history, card, shard_bytes, known)


def hf_from_megatron(
    folder: Path, hf_config: Path, output: Path, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> str:
    """Writes the model of a torch_dist checkpoint of Megatron-LM or Megatron-Bridge as a Hugging Face folder.

    As hf_from_checkpoint, with the folder that says what model it is; its config and tokenizer are copied.

    Raises:
        BadInput: there is no such checkpoint, its tensors are not those of the config, or there is something at
            `output` already.
        IntegrityFault: it cannot be read, or not safely, holds a NaN, or bytes that were not written (their CRC-32).
    """
    shape, shards = read_shape(hf_config), find_shards(folder)
    stored = StoredTensors(shards, has_hashes=False)
    found = match_megatron(stored, shape, shards)
    weights, dtypes = _stored_weights(stored, found, shape), chosen_dtypes(dtype, hf_config)
    card = model_card(folder.name, output.name, None, None)
    return export_weights(weights, shape, hf_config, output, dtypes, card=card, shard_bytes=shard_bytes)


def match_megatron(stored: StoredTensors, shape: ModelShape, shards: Path) -> dict[str, Stored]:
    """Where the parameters and buffers of a model stand in a checkpoint of Megatron-LM, by name.

    Raises BadInput for tensors that are missing, surplus or of another size.
    """
    hybrid = is_hybrid(stored.sizes)
    places, _ = stored_places(shape, hybrid or has_per_layer_keys(read_table(shards)))
    if hybrid:
        places = in_hybrid_layers(places, shape, shards)
    return match_places(places, stored.sizes, shape, shards)


def is_own_with_others(checkpoint: Path) -> bool:
    """Whether a checkpoint is one of ours, or a run, of a model with tensors that it does not hold."""
    checkpoint = newest_of_run(checkpoint)
    return is_complete(checkpoint) and (
        multimodal_of(read_config(checkpoint / "hf")) is not None or find_others(checkpoint / "hf") is not None
    )


def _stored_weights(stored: StoredTensors, places: Mapping[str, Stored], shape: ModelShape) -> list[Weight]:
    """The parameters of a checkpoint that are exported, each to be read when it is needed."""
    table = name_table(shape)
    return [
        Weight(*table[name], partial(stored.read, place), stored.dtype(place))
        for name, place in places.items()
        if table[name][0].exported
    ]


def newest_of_run(source: Path) -> Path:
    """The newest whole checkpoint of a run folder; any other folder itself. Raises BadInput where a run has none."""
    if not (source / "checkpoints").is_dir():
        return source
    complete = complete_checkpoints(source / "checkpoints")
    if not complete:
        raise BadInput(Fault(str(source), "the run has no complete checkpoint.", "Name another run, or a folder."))
    return complete[-1]


def _card_of(checkpoint: Path, name: str, history: dict[str, Any] | None) -> str:
    """The model card of a checkpoint, by the learning rates and the parent of its lineage.json."""
    if (checkpoint / "hf" / _AVERAGE).is_file():
        return averaged_card(name, orjson.loads((checkpoint / "hf" / _AVERAGE).read_bytes()))
    parent = Path(history["parent"]).name if history is not None else "not known"
    if not (checkpoint / "position.json").is_file():
        return model_card(parent, name, None, None)
    position = read_state(checkpoint)
    training = training_of(position.step, position.tokens, position.order, position.source_sequences)
    return model_card(parent, name, training, history)


def load_model(source: Path, shape: ModelShape, precision: Precision) -> list[LanguageModule]:
    """The model of a checkpoint or of a Hugging Face folder, without the wrappers of training."""
    model = build_standalone(shape, precision)
    load_into(model, shape, source)
    return model


def load_into(model: Sequence[LanguageModule], shape: ModelShape, source: Path) -> None:
    """Fills a model with the weights of a checkpoint or of a Hugging Face folder. Every rank calls it."""
    if is_complete(source):
        load_weights(source, model)
    else:
        load_hf_weights(model, shape, source)


SHORTEST, LONGEST = 128, 8256
"""Tokens of a sequence that `verify` takes unless it is told otherwise; transformers keeps all scores of a layer."""


def length_beyond_edges(shape: ModelShape) -> int:
    """Tokens of a sequence that is longer than every edge: the windows, and the length from which angles differ."""
    edges = [min(SHORTEST - 64, shape.max_positions - 1)]
    if shape.local_reach is not None:
        edges.append(shape.local_reach)
    if isinstance(shape.rope_scaling, LengthScaling):
        edges.append(shape.rope_scaling.original_positions)
    if shape.temperature_beta:
        edges.append(shape.temperature_positions)
    return min(max(edge for edge in edges if edge < shape.max_positions) + 64, shape.max_positions)


def verify(
    source: Path, hf_folder: Path, precision: Precision = "fp32", sequences: int = 1, length: int | None = None
) -> tuple[LogitDifference, LogitDifference | None] | None:
    """Compares Megatron-Core's logits with transformers' in fp32 on the same random tokens.

    Every rank calls it. fp32 arithmetic, whatever the weights' dtype, leaves nothing but rounding between two models
    that are the same. In bf16 rounding is large, and how large is seen in transformers' own bf16.

    Args:
        source: a checkpoint of ours, a run folder (its newest checkpoint) or a Hugging Face folder, for Megatron-Core.
        hf_folder: the folder for transformers.
        precision: Megatron-Core's arithmetic.
        length: tokens of each sequence; None: more than every window of the model has (length_beyond_edges), or
            SHORTEST where that is more than LONGEST.
    Returns:
        The difference of Megatron-Core from transformers in fp32 and, in bf16, that of transformers' own bf16; on the
        ranks of the last pipeline stage, None on the others.
    Raises:
        BadInput: there is no model at `source`, its config.json describes another model than that of `hf_folder`, it
            was not made for sequences of this length, or there are none.
    """
    source, shape = newest_of_run(source), read_shape(hf_folder)
    refuse_altered(hf_folder)
    _refuse_another_shape(source, hf_folder, shape)
    if length is None:
        beyond = length_beyond_edges(shape)
        length = beyond if beyond <= LONGEST else min(SHORTEST, shape.max_positions)
    if not 1 <= length <= shape.max_positions:
        rule = f"must be 1 to {shape.max_positions} tokens, for which the model was made (max_position_embeddings)."
        raise BadInput(Fault(f"--length {length}", rule, "Give another length."))
    if sequences < 1:
        raise BadInput(Fault(f"--sequences {sequences}", "must be at least 1.", "Give another number."))
    generator = torch.Generator().manual_seed(1234)
    tokens = torch.randint(shape.vocabulary, (sequences, length), generator=generator)
    reference = transformers_logits(hf_folder, tokens)
    logits = megatron_logits(load_model(source, shape, precision), shape, tokens)
    if logits is None:
        return None
    own = compare(reference, transformers_logits(hf_folder, tokens, torch.bfloat16)) if precision == "bf16" else None
    return compare(reference, logits), own


def _refuse_another_shape(source: Path, hf_folder: Path, shape: ModelShape) -> None:
    """Raises BadInput where the source's own config.json describes another model: logits would be those of one alone.

    A checkpoint of ours has it in hf/; one that Megatron-LM wrote has none.
    """
    folder = source if (source / "config.json").is_file() else source / "hf"
    if not (folder / "config.json").is_file():
        return
    if other := differing_fields(read_shape(folder), shape):
        rule = f"describes another model than {hf_folder / 'config.json'}: {other}."
        raise BadInput(Fault(str(folder / "config.json"), rule, "Compare a folder with the model it was made from."))


def differing_fields(one: ModelShape, other: ModelShape) -> str:
    """The fields in which two shapes differ, with both values; empty where they are the same."""
    return "; ".join(
        f"{field.name} is {getattr(one, field.name)!r} and {getattr(other, field.name)!r}"
        for field in fields(ModelShape)
        if getattr(one, field.name) != getattr(other, field.name)
    )


@torch.no_grad()
def megatron_logits(chunks: list[LanguageModule], shape: ModelShape, tokens: Tensor) -> Tensor | None:
    """Megatron-Core's logits under any layout: tokens int64 [b, s] to float32 [b, s, vocabulary] on the CPU.

    Every rank calls it with the same tokens; the last pipeline stage has the logits, the others None.
    """
    (model,) = chunks
    tokens = tokens.to(groups.device())
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    stage, pipeline = groups.pipeline_rank(), groups.pipeline_group()
    if not groups.is_first_stage():
        size = (tokens.shape[1], tokens.shape[0], shape.hidden)
        received = torch.empty(size, dtype=model.config.params_dtype, device=tokens.device)
        dist.recv(received, group=pipeline, group_src=stage - 1)
        model.set_input_tensor(received)
    output = model.eval()(tokens, positions, None)
    if not groups.is_last_stage():
        dist.send(output.contiguous(), group=pipeline, group_dst=stage + 1)
        return None
    parts = [torch.empty_like(output) for _ in range(groups.tensor_size())]
    dist.all_gather(parts, output.contiguous(), group=groups.tensor_group())
    return torch.cat(parts, dim=-1)[..., : shape.vocabulary].float().cpu()


def compare(reference: Tensor, logits: Tensor) -> LogitDifference:
    """The difference of two models' logits, [b, s, vocabulary] each; a few positions at a time stand in fp64."""
    largest, total, same, divergence = 0.0, 0.0, 0, 0.0
    parts = zip(reference.flatten(0, 1).split(64), logits.flatten(0, 1).split(64), strict=True)
    for theirs, ours in parts:
        difference = (theirs - ours).abs()
        largest = float(np.maximum(largest, difference.max().item()))  # a NaN stays one
        total += difference.sum(dtype=torch.float64).item()
        same += int((theirs.argmax(dim=-1) == ours.argmax(dim=-1)).sum())
        log_ours, log_theirs = ours.double().log_softmax(dim=-1), theirs.double().log_softmax(dim=-1)
        divergence += (log_theirs.exp() * (log_theirs - log_ours)).sum().item()
    positions = reference.shape[0] * reference.shape[1]
    return LogitDifference(
        largest=largest,
        mean=total / reference.numel(),
        positions=positions,
        same_choice=same / positions,
        divergence=divergence / positions,
    )


_DTYPE_FIELDS = ("dtype", "torch_dtype")
# Beside the weights: activations and logits of a sequence, what the loader holds for a moment, the allocator's own.
HEADROOM = 1.25


@contextmanager
def reference_model(
    hf_folder: Path, dtype: torch.dtype, device: torch.device, rope: RopeSettings | None = None
) -> Iterator[Any]:
    """transformers' model, whole, on one device, given up at the end. No code of the folder is executed.

    The folder is checked before transformers sees it: transformers opens whatever file an index names, wherever it
    lies, and draws what is missing at random.

    Args:
        rope: other rotary positions than the folder states; None: its own.
    Raises:
        BadInput, IntegrityFault: as load_hf_weights does.
    """
    shape = read_shape(hf_folder, rope)
    weights: dict[str, Any] = {"pretrained_model_name_or_path": hf_folder}
    with open_hf_tensors(hf_folder) as tensors:
        check_tensors(tensors, shape)
        if tensors.dequantized:  # transformers cannot where blocks at the ends are smaller
            weights = {"pretrained_model_name_or_path": None, "state_dict": _whole_state(tensors, shape)}
    logging.disable_progress_bar()
    multimodal = multimodal_of(read_config(hf_folder)) is not None
    loader: Any = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    config = _transformers_config(hf_folder, rope)
    if "state_dict" in weights:  # which the model's own class takes alone
        with torch.device("meta"):
            loader = type(loader.from_config(config))
    model = loader.from_pretrained(
        **weights,
        config=config,
        dtype=dtype,
        attn_implementation="eager",  # the one that knows every family's mathematics: others leave out soft caps
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    if shape.experts:
        model.set_experts_implementation("eager")  # the default one refuses widths of experts that it cannot align
    try:
        yield model.eval().to(device)
    finally:
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _whole_state(tensors: HFTensors, shape: ModelShape) -> dict[str, Tensor]:
    """All tensors of a folder by the names in its files, those of all experts in one, as they are read."""
    state: dict[str, Tensor] = {}
    stacks = places_in_stacks(shape, tensors.stacks.values())
    for name in sorted(tensors.names & hf_sizes(shape).keys()):
        part, stored = tensors.read(name, 0, 0, tensors.size(name)[0]), tensors.stored_name(name)
        if name not in stacks:
            state[stored] = part
            continue
        if stored not in state:
            state[stored] = torch.empty(stacks[name].whole_size(tuple(part.shape), shape.experts), dtype=part.dtype)
        view_in_stack(state[stored], stacks[name]).copy_(part)
    return state


def _transformers_config(hf_folder: Path, rope: RopeSettings | None) -> Any:
    """What transformers makes of a folder's config.json, with other rotary positions if there are any."""
    with TemporaryDirectory() as scratch:
        _write_readable_config(hf_folder, Path(scratch), rope)
        try:
            return AutoConfig.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
        except StrictDataclassError as error:
            rule = f"transformers does not take it: {' '.join(str(error).split())}."
            remedy = "Write the value as it expects it; a float has a point: 0.0 in the place of 0."
            raise BadInput(Fault(f"{hf_folder / 'config.json'}", rule, remedy)) from error


def transformers_tokenizer(hf_folder: Path) -> Any:
    """transformers' tokenizer of a folder, which is made by rules of its own. No code of the folder is executed."""
    with TemporaryDirectory() as scratch:
        _write_readable_config(hf_folder, Path(scratch))
        copy_files(hf_folder, Path(scratch), tokenizer_files(hf_folder))
        tokenizer = AutoTokenizer.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)
    tokenizer.name_or_path = str(hf_folder)
    return tokenizer


def _write_readable_config(hf_folder: Path, output: Path, rope: RopeSettings | None = None) -> None:
    """Writes config.json without dtypes: transformers fails over words such as "auto" and "torch.bfloat16"."""
    config = read_config(hf_folder, rope)
    unread = (*_DTYPE_FIELDS, "quantization_config")
    text = {name: value for name, value in text_fields(config).items() if name not in unread}
    fields = with_text_fields(config, text)
    for name in unread:
        fields.pop(name, None)
    (output / "config.json").write_bytes(orjson.dumps(fields))


@torch.no_grad()
def transformers_logits(hf_folder: Path, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """transformers' logits on the CPU: tokens int64 [b, s] to float32 [b, s, vocabulary]."""
    with reference_model(hf_folder, dtype, torch.device("cpu")) as model:
        logits: Tensor = model(tokens).logits
        return logits.float()


@torch.no_grad()
def transformers_losses(
    hf_folder: Path, windows: Tensor, dtype: torch.dtype, device: torch.device, rope: RopeSettings | None = None
) -> list[float]:
    """transformers' mean loss of each sequence, in nats per token: windows int64 [b, s + 1]."""
    with reference_model(hf_folder, dtype, device, rope) as model:
        return [
            # The last token is read too: angles can depend on how long a sequence is (LongRoPE), and Megatron reads it.
            float(cross_entropy(model(window[None]).logits[0, :-1].float(), window[1:]))
            for window in windows.to(device)
        ]


def room_for_reference(shape: ModelShape, dtype: torch.dtype, device: torch.device) -> torch.device | None:
    """Where the whole model fits now: on the device, else in this machine's memory, else nowhere (None)."""
    needed = HEADROOM * parameter_count(shape) * dtype.itemsize
    if device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0]:
        return device
    return torch.device("cpu") if needed <= psutil.virtual_memory().available else None
