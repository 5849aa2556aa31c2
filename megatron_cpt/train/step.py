"""One optimizer step: forward and backward over the micro batches, then the update."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_cpt.data.batches import Batch
from megatron_cpt.model.forward import run_micro_batches
from megatron_cpt.model.loss import source_sums
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import all_agree
from megatron_cpt.train.optimizer import clear_gradients, gather_gradients, set_rates, update


@dataclass(frozen=True)
class StepShape:
    """The sizes of a step."""

    micro_batches: int
    """Micro batches of each data-parallel rank."""
    micro_batch_size: int
    """Sequences of a micro batch."""
    sequence_length: int
    """Tokens of a sequence."""
    sources: int
    """Sources of the blend."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step did, the same on every rank."""

    nats: Tensor
    """float64 [sources]: summed loss of each source's tokens."""
    tokens: Tensor
    """float64 [sources]: scored tokens of each source."""
    gradient_norm: float
    """Norm of the whole gradient, before clipping."""
    finite: bool
    """Whether loss and gradients were finite on all ranks."""
    updated: bool
    """False where they were not, or the loss was a spike: no parameter and no moment was changed."""

    @property
    def loss(self) -> float:
        """Nats per token of the global batch; NaN where no label of it counts."""
        return float(self.nats.sum() / self.tokens.sum())


def train_step(
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    batches: Iterator[Batch],
    shape: StepShape,
    learning_rate: float,
    weight_decay: float,
    loss_limit: float = math.inf,
) -> StepOutcome:
    """Trains on one global batch, or finds out, on all ranks alike, that the update must not be made.

    Args:
        loss_limit: nats per token above which it must not.
    """
    clear_gradients(model, optimizer)
    losses = run_micro_batches(
        model, batches, shape.micro_batches, shape.micro_batch_size, shape.sequence_length, backward=True
    )
    nats, tokens = source_sums(losses, shape.sources, groups.device())
    gradient_norm, finite = gather_gradients(optimizer)
    finite = all_agree(finite and bool(torch.isfinite(nats).all()))
    is_spike = float(nats.sum() / tokens.sum()) > loss_limit  # False where no label counts, and the loss is NaN
    updated = finite and (loss_limit == math.inf or all_agree(not is_spike))
    if updated:
        set_rates(optimizer, learning_rate, weight_decay)
        update(optimizer, gradient_norm)
    return StepOutcome(nats, tokens, gradient_norm, finite, updated)
