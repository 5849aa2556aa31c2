"""Scoring a micro batch: how likely its labels are, and whether they are the likeliest tokens.

Shapes: b sequences, s tokens, v vocabulary rows of this tensor-parallel rank.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_cpt.data.batches import Batch
from megatron_cpt.model.build import inner_model
from megatron_cpt.parallel import groups


def choice_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """A forward pass up to the logits, in the form that the schedules call."""
    batch = next(batches)
    return model(batch.tokens, batch.positions, None), partial(score, batch, model)


def score(batch: Batch, model: torch.nn.Module, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the last stage keeps: float64 [2, b], each sequence's nats, and its scored labels that are not likeliest.

    logits: [b, s, v].
    """
    # Megatron-Core's own cross entropy, the same as in training.
    nats = inner_model(model).compute_language_model_loss(batch.labels, logits.transpose(0, 1).contiguous()).float()
    unlikely = (likeliest(logits) != batch.labels) * batch.loss_mask
    kept = torch.stack([(nats * batch.loss_mask).sum(1, dtype=torch.float64), unlikely.sum(1, dtype=torch.float64)])
    return kept[0].sum(), batch.loss_mask.sum().to(torch.int), kept


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token at each place over all tensor-parallel ranks, int64 [b, s]; of equal ones the first."""
    values, places = logits.float().max(dim=-1)
    if groups.tensor_size() == 1:
        return places
    places = places + groups.tensor_rank() * logits.shape[-1]
    largest = values.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.tensor_group())
    places = torch.where(values == largest, places, torch.iinfo(torch.int64).max)
    dist.all_reduce(places, op=dist.ReduceOp.MIN, group=groups.tensor_group())
    return places
