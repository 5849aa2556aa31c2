"""Whole conversions: a folder to a checkpoint, a checkpoint to a folder, and whether two models agree."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_cpt.checkpoint.hf_export import SHARD_BYTES, export_hf
from megatron_cpt.checkpoint.hf_weights import load_hf_weights
from megatron_cpt.checkpoint.integrity import is_complete
from megatron_cpt.checkpoint.model_card import model_card, training_of
from megatron_cpt.checkpoint.position import complete_checkpoints, read_position
from megatron_cpt.checkpoint.reference import transformers_logits
from megatron_cpt.checkpoint.sharded import load_weights
from megatron_cpt.checkpoint.writer import save_weights
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.rates import ScheduleSettings
from megatron_cpt.config.schema import (
    DataSettings,
    ModelSettings,
    ParallelSettings,
    RunConfig,
    RunSettings,
    TrainingSettings,
)
from megatron_cpt.config.units import Duration
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import build_model
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import first_on_rank_zero

Precision = Literal["fp32", "bf16"]


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


def checkpoint_from_hf(hf_folder: Path, output: Path) -> None:
    """Writes a checkpoint of weights alone, which loads into any layout. Every rank calls it.

    Raises:
        BadInput: there is something at `output` already, or the folder cannot be read.
        IntegrityFault: a torn or altered file.
    """
    with first_on_rank_zero():
        if groups.rank() == 0 and output.exists():
            raise BadInput(Fault(str(output), "there is something here already.", "Name another folder."))
    shape = read_shape(hf_folder)
    model = load_model(hf_folder, shape, stored_precision(shape))
    save_weights(output, model, hf_folder)


def hf_from_checkpoint(
    checkpoint: Path, output: Path, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the model of a checkpoint as a Hugging Face folder. Every rank calls it.

    Args:
        dtype: of the weights; None: that of the folder that the checkpoint's model came from.
        shard_bytes: bytes of tensors in one file, about.
    Raises:
        BadInput: it is no complete checkpoint, or there is something at `output` already.
        IntegrityFault: its bytes are not those that were written.
    """
    if not is_complete(checkpoint):
        rule = "is not a complete checkpoint."
        raise BadInput(Fault(str(checkpoint), rule, "Name one, such as RUN/checkpoints/step-00000400."))
    shape = read_shape(checkpoint / "hf")
    # fp32 holds every precision that a run may have trained in, whatever its parent was stored in.
    model = load_model(checkpoint, shape, "fp32")
    card = card_of(checkpoint, output.name)
    export_hf(model, shape, checkpoint / "hf", output, dtype, card=card, shard_bytes=shard_bytes)


def card_of(checkpoint: Path, name: str) -> str:
    """The model card of a checkpoint; what its run folder tells beside it is used where it is still there."""
    try:
        history = orjson.loads((checkpoint.parents[1] / "lineage.json").read_bytes())
        parent = Path(history["parent"]).name
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        history, parent = None, "not known"
    if not (checkpoint / "position.json").is_file():
        return model_card(parent, name, None, None)
    position = read_position(checkpoint)
    training = training_of(position.step, position.tokens, position.order, position.source_sequences)
    return model_card(parent, name, training, history)


def load_model(source: Path, shape: ModelShape, precision: Precision) -> list[GPTModel]:
    """The model of a checkpoint or of a Hugging Face folder, without the wrappers of training."""
    if is_complete(source):
        model = build_bare(shape, source / "hf", precision)
        load_weights(source, model)
        return model
    model = build_bare(shape, source, precision)
    load_hf_weights(model, shape, source)
    return model


def build_bare(shape: ModelShape, hf_folder: Path, precision: Precision) -> list[GPTModel]:
    """The model of a shape, on the layout that this process is in, its weights not yet set."""
    config = RunConfig(
        run=RunSettings(folder=str(hf_folder)),
        model=ModelSettings(hf=str(hf_folder)),
        data=DataSettings(sequence_length=shape.longest_sequence, sources={}),
        training=TrainingSettings(tokens=Duration(1, "steps"), global_batch_size=1, precision=precision),
        schedule=ScheduleSettings(kind="constant", peak=1.0),
        parallel=ParallelSettings(tensor=groups.tensor_size(), pipeline=groups.pipeline_size()),
    )
    return build_model(shape, config)


def stored_precision(shape: ModelShape) -> Precision:
    """The precision that holds a folder's weights exactly; fp16 does not fit into bf16."""
    return "bf16" if shape.dtype == "bfloat16" else "fp32"


def verify(
    source: Path, hf_folder: Path, precision: Precision = "fp32", sequences: int = 2, length: int = 64
) -> tuple[LogitDifference, LogitDifference | None] | None:
    """Compares Megatron-Core's logits with transformers' in fp32 on the same random tokens.

    Every rank calls it. fp32 arithmetic, whatever the weights' dtype, leaves nothing but rounding between two models
    that are the same. In bf16 rounding is large, and how large is seen in transformers' own bf16.

    Args:
        source: a checkpoint of ours, a run folder (its newest checkpoint) or a Hugging Face folder, for Megatron-Core.
        hf_folder: the folder for transformers; its config.json is the shape of both.
        precision: Megatron-Core's arithmetic.
    Returns:
        The difference of Megatron-Core from transformers in fp32 and, in bf16, that of transformers' own bf16; on the
        ranks of the last pipeline stage, None on the others.
    Raises:
        BadInput: there is no model at `source`.
    """
    if (source / "checkpoints").is_dir():
        complete = complete_checkpoints(source / "checkpoints")
        if not complete:
            raise BadInput(Fault(str(source), "the run has no complete checkpoint.", "Name another run, or a folder."))
        source = complete[-1]
    shape = read_shape(hf_folder)
    generator = torch.Generator().manual_seed(1234)
    tokens = torch.randint(shape.vocabulary, (sequences, min(length, shape.longest_sequence)), generator=generator)
    reference = transformers_logits(hf_folder, tokens)
    logits = megatron_logits(load_model(source, shape, precision), shape, tokens)
    if logits is None:
        return None
    own = compare(reference, transformers_logits(hf_folder, tokens, torch.bfloat16)) if precision == "bf16" else None
    return compare(reference, logits), own


@torch.no_grad()
def megatron_logits(chunks: list[GPTModel], shape: ModelShape, tokens: Tensor) -> Tensor | None:
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
    """The difference of two models' logits, [b, s, vocabulary] each."""
    difference = (reference - logits).abs()
    same = reference.argmax(dim=-1) == logits.argmax(dim=-1)
    ours, theirs = logits.double().log_softmax(dim=-1), reference.double().log_softmax(dim=-1)
    return LogitDifference(
        largest=difference.max().item(),
        mean=difference.mean(dtype=torch.float64).item(),
        positions=same.numel(),
        same_choice=same.double().mean().item(),
        divergence=(theirs.exp() * (theirs - ours)).sum(dim=-1).mean().item(),
    )
