"""Losses as sums of nats over counts of tokens, never means of means."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_cpt.data.batches import Batch
from megatron_cpt.parallel.collectives import from_last_stage, sum_over_replicas


@dataclass(frozen=True)
class SequenceLosses:
    """Losses of some sequences, on the rank that computed them."""

    nats: Tensor
    """float64 [n]: summed over the scored tokens of each sequence, of its part where ranks share it."""
    tokens: Tensor
    """int64 [n]: scored tokens of each, or of its part."""
    sources: Tensor
    """int64 [n]: which source each is from."""


def sequence_losses(token_nats: Tensor, batch: Batch) -> SequenceLosses:
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
