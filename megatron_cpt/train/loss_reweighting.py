"""Sequences of a step weighted by their losses: LinUpper (arXiv:2502.06733), by a forward pass before the step.

What a model already says well counts less. The losses are those of the global batch, so the weights do not depend on
how it is divided over ranks and micro batches.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megatron_cpt.data.loader import Batch
from megatron_cpt.model.forward import SequenceLosses, run_micro_batches, without_dropout
from megatron_cpt.parallel.groups import largest_over_replicas, sum_over_context, sum_over_replicas


def reweighted(
    model: Sequence[torch.nn.Module],
    batches: Sequence[Batch],
    micro_batch_size: int,
    sequence_length: int,
    temperature: float,
) -> list[Batch]:
    """This rank's micro batches of a global batch, with a factor on the loss of each sequence.

    The model runs forward on them. A weight of the source (`data.sources.NAME.loss_weight`) is multiplied by it.
    """
    with torch.no_grad(), without_dropout(model):
        losses = run_micro_batches(
            model, iter(batches), len(batches), micro_batch_size, sequence_length, backward=False
        )
    if losses is None:  # another stage computes the loss
        return list(batches)
    factors = loss_factors(losses, temperature).split([len(batch.sources) for batch in batches])
    return [
        replace(batch, loss_weights=own if batch.loss_weights is None else batch.loss_weights * own)
        for batch, own in zip(batches, factors, strict=True)
    ]


def loss_factors(losses: SequenceLosses, temperature: float) -> Tensor:
    """Factors on the losses of this rank's sequences, float32 [n]; 1 on the average token of the global batch.

    The objective of the step stays a mean over its tokens, weighted: the sum over sequences of weight times nats, by
    the sum of weight times tokens. With as many tokens in each sequence it is the paper's sum of softmax(f / r) times
    mean loss.
    """
    nats, tokens = sum_over_context(torch.stack([losses.nats, losses.tokens.to(torch.float64)]))
    means = nats / tokens.clamp(min=1)
    counted = tokens > 0
    ends = torch.stack([torch.where(counted, sign * means, -torch.inf).max() for sign in (1, -1)])
    highest, lowest = largest_over_replicas(ends) * torch.tensor([1, -1], device=ends.device)
    weights = linupper(means, lowest, highest, temperature)
    total, weighted = sum_over_replicas(torch.stack([tokens.sum(), (weights * tokens).sum()]))
    return (weights * total / weighted).to(torch.float32)


def linupper(losses: Tensor, lowest: Tensor, highest: Tensor, temperature: float) -> Tensor:
    """exp((f - 1) / r), where f rises linearly from 0 at the lowest loss to 1 halfway to the highest, and is 1 above.

    These are the paper's exp(f / r) by a factor of all, which no small r makes infinite.

    Args:
        losses: of sequences, nats per token, float [n].
        lowest: of the global batch, float [].
        highest: of the global batch, float []. Where it is the lowest, all weights are the same.
        temperature: r.
    """
    spread = highest - lowest
    place = torch.where(spread > 0, (losses - lowest) / spread, 1.0)
    return torch.exp(((2 * place).clamp(max=1) - 1) / temperature)
