"""One pass of Megatron-Core's pipeline schedule over the micro batches of a rank, and its losses.

Losses are sums of nats over counts of tokens, never means of means. The z-loss (arXiv:2204.02311, section 5) keeps the
softmax's normaliser Z near 1, so that logits do not drift.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, tee
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor

from megatron_cpt.data.loader import Batch
from megatron_cpt.model.attention import packed_forward
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.context_parallel import own_part
from megatron_cpt.parallel.groups import from_last_stage, sum_over_replicas
from megatron_cpt.parallel.patches import replace_name


def add_z_loss(model: LanguageModule, coefficient: float) -> None:
    """In training the last stage gives [b, s, 2]: the nats of each label, and coefficient * (log Z)^2 of its logits.

    In evaluation it gives the nats alone. The penalty is computed in fp32 whatever the precision, and takes the
    memory of another copy of the logits: Megatron-Core's cross entropy writes over those that it is given.
    """
    if not model.post_process or not coefficient:
        return
    cross_entropy = model.compute_language_model_loss

    def with_penalty(labels: Tensor, logits: Tensor) -> Tensor:
        if not model.training:
            nats: Tensor = cross_entropy(labels, logits)
            return nats
        penalty = coefficient * _log_normaliser(logits.to(torch.float32, copy=True)).square()
        return torch.stack([cross_entropy(labels, logits), penalty.transpose(0, 1)], dim=-1)

    replace_name(LanguageModule.__module__, "LanguageModule().compute_language_model_loss", with_penalty, owner=model)


def _log_normaliser(logits: Tensor) -> Tensor:
    """log Z, the logarithm of the sum of exp(logit) over the whole vocabulary: float [s, b], on every rank.

    Args:
        logits: float [s, b, this rank's part of the vocabulary]; minus infinity for what is padding.
    """
    own = torch.logsumexp(logits, dim=-1)
    if groups.tensor_size() == 1:
        return own
    highest = own.detach().clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=groups.tensor_group())
    # The sum is made in place, and exp keeps its output for the backward pass.
    total: Tensor = reduce_from_tensor_model_parallel_region(torch.exp(own - highest).clone())
    return highest + total.log()


@dataclass(frozen=True)
class SequenceLosses:
    """Losses of some sequences, on the rank that computed them."""

    nats: Tensor
    """float64 [n]: summed over the scored tokens of each sequence, of its part where ranks share it."""
    tokens: Tensor
    """int64 [n]: scored tokens of each, or of its part."""
    sources: Tensor
    """int64 [n]: which source each is from."""


def _sequence_losses(token_nats: Tensor, batch: Batch) -> SequenceLosses:
    """Losses of the sequences of one micro batch from the nats of each token, [b, s]."""
    nats = (token_nats.detach() * batch.loss_mask).sum(dim=1, dtype=torch.float64)
    return SequenceLosses(nats, batch.loss_mask.sum(dim=1).to(torch.int64), batch.sources)


def join(parts: list[SequenceLosses]) -> SequenceLosses:
    """The losses of several micro batches as one."""
    return SequenceLosses(
        torch.cat([part.nats for part in parts]),
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.sources for part in parts]),
    )


def source_sums(losses: SequenceLosses | None, sources: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nats and scored tokens of each source over all ranks: two float64 [sources], the same on every rank.

    Args:
        losses: those of this rank's sequences; None on ranks that are not the last pipeline stage.
        sources: how many sources there are.
    """
    sums = torch.zeros(2, sources, dtype=torch.float64, device=device)
    if losses is not None:
        sums[0].index_add_(0, losses.sources, losses.nats)
        sums[1].index_add_(0, losses.sources, losses.tokens.to(torch.float64))
        sum_over_replicas(sums)
    from_last_stage(sums)
    return sums[0], sums[1]


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
    """Runs micro batches through Megatron-Core's pipeline schedule.

    Returns what `step` keeps of each, on the last pipeline stage; an empty list on the others.


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
        batches = _filled_up(batches, passes - micro_batches)
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
    """What this rank sees of a micro batch: all of it, or its part of each sequence under context parallelism."""
    return replace(
        batch,
        tokens=own_part(batch.tokens),
        labels=own_part(batch.labels),
        loss_mask=own_part(batch.loss_mask),
        positions=own_part(batch.positions),
    )


def _filled_up(batches: Iterator[Batch], missing: int) -> Iterator[Batch]:
    """The batches, and as many as are missing in which no token counts."""
    first = next(batches)
    yield first
    yield from batches
    yield from [replace(first, loss_mask=torch.zeros_like(first.loss_mask))] * missing


@contextmanager
def without_dropout(model: Sequence[torch.nn.Module]) -> Iterator[None]:
    """The model in evaluation mode, and afterwards as it was."""
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
        return packed_forward(model, batch), partial(_token_loss, batch)
    output = model(batch.tokens, batch.positions, None, labels=batch.labels)
    return output, partial(_token_loss, batch)


def _token_loss(batch: Batch, output: Tensor) -> LossOutput:
    """What the last stage hands to the schedule: summed loss, count of tokens, and the losses that we keep.

    Args:
        output: float [b, s], cross entropy of each label; or [b, s, 2] with a penalty of each, which is trained
            on and not reported (add_z_loss).
    """
    nats, objective = (output, output) if output.dim() == 2 else (output[..., 0], output.sum(dim=-1))
    trained = objective.float() * batch.loss_mask
    if batch.loss_weights is not None:
        trained = trained * batch.loss_weights.unsqueeze(1)
    return trained.sum(), batch.loss_mask.sum().to(torch.int), _sequence_losses(nats.float(), batch)
