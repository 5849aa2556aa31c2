"""Log-likelihoods of continuations on the Megatron model itself, under every layout.

Continuations are sorted by length and assigned in rounds to data-parallel ranks and micro batches. All rounds of one
padded length go through the pipeline together. Missing places of a round are filled with sequences in which no token
counts. Attention is causal, so padding behind a text changes nothing.

Shapes: b sequences, s tokens, v vocabulary rows of this tensor-parallel rank.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_cpt.data.loader import Batch
from megatron_cpt.model.build import inner_model
from megatron_cpt.model.forward import run_schedule, without_dropout
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import from_last_stage, sum_over_replicas
from megatron_cpt.tasks.task_files import Continuation

_LENGTH_STEP = 32
"""Sequences are padded to a multiple of this, so that few lengths occur."""

Round = list[int]
"""Numbers of continuations that all ranks score at once; those beyond the last are empty sequences."""


@dataclass(frozen=True)
class Likelihoods:
    """What the model says of some continuations."""

    logs: npt.NDArray[np.float64]
    """float64 [continuations]: natural log of the probability of each after what stands before it."""
    greedy: npt.NDArray[np.bool_]
    """bool [continuations]: whether the model, taking the likeliest token each time, would have written it."""


@torch.no_grad()
def log_likelihoods(
    model: Sequence[torch.nn.Module],
    continuations: Sequence[Continuation],
    micro_batch_size: int,
    longest: int,
) -> Likelihoods:
    """Scores continuations. Every rank calls it with the same ones and gets the same.

    Args:
        longest: tokens of the model's input at most.
    """
    # Of each: nats, and scored tokens that are not the likeliest. Empty sequences all go to the last place.
    found = torch.zeros(2, len(continuations) + 1, dtype=torch.float64, device=groups.device())
    with without_dropout(model):
        for length, rounds in _by_length(continuations, micro_batch_size * groups.data_size(), longest):
            mine = [part[groups.data_rank() :: groups.data_size()] for part in rounds]
            batches = (make_batch(continuations, part, length) for part in mine)
            kept = run_schedule(_choice_step, model, batches, len(mine), micro_batch_size, length, backward=False)
            if kept:
                found[:, torch.tensor(mine, device=found.device).flatten()] = torch.cat(kept, dim=1)
    if groups.is_last_stage():
        sum_over_replicas(found)
    from_last_stage(found)
    nats, unlikely = found[:, :-1].cpu().numpy()
    return Likelihoods(-nats, unlikely == 0)


def _by_length(
    continuations: Sequence[Continuation], per_round: int, longest: int
) -> Iterator[tuple[int, list[Round]]]:
    """Rounds of similar length, longest first: (padded length, rounds of that length)."""
    order = sorted(range(len(continuations)), key=lambda number: -len(continuations[number].ids))
    order += [len(continuations)] * (-len(order) % per_round)
    rounds = [order[start : start + per_round] for start in range(0, len(order), per_round)]

    def padded(part: Round) -> int:
        # The last id is a label alone, never an input.
        inputs = len(continuations[part[0]].ids) - 1
        # Ranks that divide sequences share them evenly, also those of the greatest length.
        parts = groups.tensor_size() * 2 * groups.context_size()
        return -(-min(longest, -(-inputs // _LENGTH_STEP) * _LENGTH_STEP) // parts) * parts

    for length, same in groupby(rounds, key=padded):
        yield length, list(same)


def make_batch(continuations: Sequence[Continuation], numbers: Round, length: int) -> Batch:
    """The continuations of some numbers as a micro batch of sequences of one length."""
    windows = np.zeros((len(numbers), length + 1), dtype=np.int64)
    mask = np.zeros((len(numbers), length), dtype=np.float32)
    for place, number in enumerate(numbers):
        if number < len(continuations):
            ids, scored = continuations[number].ids, continuations[number].scored
            windows[place, : len(ids)] = ids
            mask[place, len(ids) - 1 - scored : len(ids) - 1] = 1
    tokens = torch.from_numpy(windows).to(groups.device())
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.from_numpy(mask).to(groups.device()),
        positions=torch.arange(length, device=groups.device()).expand(len(numbers), -1),
        sources=torch.zeros(len(numbers), dtype=torch.int64, device=groups.device()),
    )


def _choice_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """A forward pass up to the logits, in the form that the schedules call."""
    batch = next(batches)
    return model(batch.tokens, batch.positions, None), partial(score, batch, model)


def score(batch: Batch, model: torch.nn.Module, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the last stage keeps: float64 [2, b], each sequence's nats, and its scored labels that are not likeliest.

    logits: [b, s, v].
    """
    # Megatron-Core's own cross entropy, the same as in training.
    nats = inner_model(model).compute_language_model_loss(batch.labels, logits.transpose(0, 1).contiguous()).float()
    unlikely = (_argmax_token(logits) != batch.labels) * batch.loss_mask
    kept = torch.stack([(nats * batch.loss_mask).sum(1, dtype=torch.float64), unlikely.sum(1, dtype=torch.float64)])
    return kept[0].sum(), batch.loss_mask.sum().to(torch.int), kept


def _argmax_token(logits: Tensor) -> Tensor:
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
