"""One pass of Megatron-Core's pipeline schedule over the micro batches of a rank."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, tee
from typing import Any

import torch
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from megatron_cpt.data.batches import Batch
from megatron_cpt.model.loss import SequenceLosses, join, sequence_losses
from megatron_cpt.model.packing import packed_forward
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.context import own_part

LossOutput = tuple[Tensor, Tensor, SequenceLosses]

ForwardStep = Callable[[Iterator[Batch], torch.nn.Module], tuple[Tensor, Callable[[Tensor], Any]]]
"""The forward pass of one micro batch, and what the last stage makes of its output, as the schedules call them."""


def run_micro_batches(
    model: Sequence[torch.nn.Module],
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
    model: Sequence[torch.nn.Module],
    batches: Iterator[Batch],
    micro_batches: int,
    micro_batch_size: int,
    sequence_length: int,
    backward: bool,
) -> list[Any]:
    """What a step keeps of each micro batch, on the last pipeline stage; an empty list on the others.

    Args:
        model: the chunks that this rank holds, in order. With several, an interleaved pipeline, the micro
            batches are filled up to a multiple of its stages by ones in which no token counts.
    """
    first = next(batches)
    if first.document_lengths is not None:
        # Stages pass one row of all documents on.
        sequence_length, micro_batch_size = micro_batch_size * sequence_length, 1
    batches = map(own_tokens, chain([first], batches))
    passes = micro_batches
    if len(model) > 1:
        passes += -micro_batches % groups.pipeline_size()
        batches = filled_up(batches, passes - micro_batches)
    kept: list[Any] = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=list(tee(batches, len(model))),  # each chunk reads all micro batches
        model=list(model),
        num_microbatches=passes,
        seq_length=sequence_length,
        micro_batch_size=micro_batch_size,
        forward_only=not backward,
    )
    return kept[:micro_batches]


def own_tokens(batch: Batch) -> Batch:
    """What this rank sees of a micro batch: all of it, unless ranks share sequences."""
    return replace(
        batch,
        tokens=own_part(batch.tokens),
        labels=own_part(batch.labels),
        loss_mask=own_part(batch.loss_mask),
        positions=own_part(batch.positions),
    )


def filled_up(batches: Iterator[Batch], missing: int) -> Iterator[Batch]:
    """The batches, and as many as are missing in which no token counts."""
    first = next(batches)
    yield first
    yield from batches
    yield from [replace(first, loss_mask=torch.zeros_like(first.loss_mask))] * missing


@contextmanager
def without_dropout(model: Sequence[torch.nn.Module]) -> Iterator[None]:
    """The model as it is evaluated; afterwards as it was."""
    training = model[0].training
    for chunk in model:
        chunk.eval()
    try:
        yield
    finally:
        for chunk in model:
            chunk.train(training)


def loss_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], LossOutput]]:
    """The forward pass of training and validation."""
    batch = next(batches)
    if batch.document_lengths is not None:
        return packed_forward(model, batch), partial(token_loss, batch)
    output = model(batch.tokens, batch.positions, None, labels=batch.labels)
    return output, partial(token_loss, batch)


def token_loss(batch: Batch, output: Tensor) -> LossOutput:
    """What the last stage gives the schedule: the summed loss, its count of tokens, and what we keep.

    Args:
        output: float [b, s], cross entropy of each label; or [b, s, 2] with a penalty of each that is trained on
            and told nowhere (z_loss.py).
    """
    nats, objective = (output, output) if output.dim() == 2 else (output[..., 0], output.sum(dim=-1))
    total = (objective.float() * batch.loss_mask).sum()
    return total, batch.loss_mask.sum().to(torch.int), sequence_losses(nats.float(), batch)
