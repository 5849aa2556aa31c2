"""Log-likelihoods of continuations on the Megatron model itself, under every layout.

Continuations are sorted by length and dealt in rounds to data-parallel ranks and micro batches; all
rounds of one padded length go through the pipeline together. What is missing to a whole round is filled
with sequences in which no token counts. Attention is causal, so padding behind a text changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from megatron_cpt.data.batches import Batch
from megatron_cpt.evaluate.greedy import choice_step
from megatron_cpt.model.forward import run_schedule, without_dropout
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.collectives import from_last_stage, sum_over_replicas
from megatron_cpt.tasks.requests import Continuation

LENGTH_STEP = 32
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
        for length, rounds in by_length(continuations, micro_batch_size * groups.data_size(), longest):
            mine = [part[groups.data_rank() :: groups.data_size()] for part in rounds]
            batches = (make_batch(continuations, part, length) for part in mine)
            kept = run_schedule(choice_step, model, batches, len(mine), micro_batch_size, length, backward=False)
            if kept:
                found[:, torch.tensor(mine, device=found.device).flatten()] = torch.cat(kept, dim=1)
    if groups.is_last_stage():
        sum_over_replicas(found)
    from_last_stage(found)
    nats, unlikely = found[:, :-1].cpu().numpy()
    return Likelihoods(-nats, unlikely == 0)


def by_length(continuations: Sequence[Continuation], per_round: int, longest: int) -> Iterator[tuple[int, list[Round]]]:
    """Rounds of similar length, longest first: (padded length, rounds of that length)."""
    order = sorted(range(len(continuations)), key=lambda number: -len(continuations[number].ids))
    order += [len(continuations)] * (-len(order) % per_round)
    rounds = [order[start : start + per_round] for start in range(0, len(order), per_round)]

    def padded(part: Round) -> int:
        # The last id is a label alone, never an input.
        inputs = len(continuations[part[0]].ids) - 1
        # Ranks that divide sequences share them evenly, also those of the greatest length.
        parts = groups.tensor_size() * 2 * groups.context_size()
        return -(-min(longest, -(-inputs // LENGTH_STEP) * LENGTH_STEP) // parts) * parts

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
