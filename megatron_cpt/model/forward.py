"""One pass of Megatron-Core's pipeline schedule over the micro batches of a rank."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from megatron_cpt.data.batches import Batch
from megatron_cpt.model.loss import SequenceLosses, join, sequence_losses

LossOutput = tuple[Tensor, Tensor, SequenceLosses]

ForwardStep = Callable[[Iterator[Batch], torch.nn.Module], tuple[Tensor, Callable[[Tensor], Any]]]
"""The forward pass of one micro batch, and what the last stage makes of its output, as the schedules call them."""


def run_micro_batches(
    model: DistributedDataParallel | GPTModel,
    batches: Iterator[Batch],
    micro_batches: int,
    micro_batch_size: int,
    sequence_length: int,
    backward: bool,
) -> SequenceLosses | None:
    """Runs the micro batches through the pipeline, forward and, if asked, backward.

    Gradients are left in the model's buffers, divided by the tokens of the global batch (Megatron-Core's
    finalize_model_grads does this, with calculate_per_token_loss). Returns the losses of this rank's
    sequences on the last pipeline stage, None on the others.
    """
    outputs: list[SequenceLosses] = run_schedule(
        loss_step, model, batches, micro_batches, micro_batch_size, sequence_length, backward
    )
    return join(outputs) if outputs else None


def run_schedule(
    step: ForwardStep,
    model: DistributedDataParallel | GPTModel,
    batches: Iterator[Batch],
    micro_batches: int,
    micro_batch_size: int,
    sequence_length: int,
    backward: bool,
) -> list[Any]:
    """What a step keeps of each micro batch, on the last pipeline stage; an empty list on the others."""
    kept: list[Any] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=batches,
        model=model,
        num_microbatches=micro_batches,
        seq_length=sequence_length,
        micro_batch_size=micro_batch_size,
        forward_only=not backward,
    )
    return kept


def loss_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], LossOutput]]:
    """The forward pass of training and validation."""
    batch = next(batches)
    output = model(batch.tokens, batch.positions, None, labels=batch.labels)
    return output, partial(token_loss, batch)


def token_loss(batch: Batch, token_nats: Tensor) -> LossOutput:
    """What the last stage gives the schedule: the summed loss, its count of tokens, and what we keep.

    token_nats: float [b, s], cross entropy of each label.
    """
    total = (token_nats.float() * batch.loss_mask).sum()
    return total, batch.loss_mask.sum().to(torch.int), sequence_losses(token_nats.float(), batch)
