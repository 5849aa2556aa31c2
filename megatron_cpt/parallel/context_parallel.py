"""Sequences that ranks share (context parallelism): which part is whose, and keys from all.

A sequence is cut into 2 c parts for c ranks; rank r has parts r and 2 c - 1 - r, laid end to end, so that every
rank has as many keys before its queries, and keys are gathered (arXiv:2407.21783, section 3.3.2; Megatron-Core and
Transformer Engine cut it alike).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_cpt.parallel import groups


def own_part(values: Tensor, axis: int = 1) -> Tensor:
    """This rank's two parts of whole sequences, end to end along their axis."""
    if groups.context_size() == 1:
        return values
    parts = values.chunk(2 * groups.context_size(), dim=axis)
    return torch.cat([parts[number] for number in own_numbers()], dim=axis)


def own_numbers() -> tuple[int, int]:
    """The numbers of this rank's parts, counted from 0."""
    return groups.context_rank(), 2 * groups.context_size() - 1 - groups.context_rank()


def with_keys_before(query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each of this rank's two parts of the queries, with all keys and values from the sequence's begin to its end.

    All are [s, ...], this rank's part of the sequences.
    """
    keys, values = _whole_sequence(key), _whole_sequence(value)
    half = len(query) // 2
    for number, part in zip(own_numbers(), query.split(half), strict=True):
        end = (number + 1) * half
        yield part, keys[:end], values[:end]


def _whole_sequence(part: Tensor) -> Tensor:
    """The whole sequences along axis 0, in order, on every rank that shares them."""
    gathered = _GatherSequence.apply(part)
    first, last = zip(*(piece.chunk(2) for piece in gathered.chunk(groups.context_size())), strict=True)
    return torch.cat([*first, *reversed(last)])


def whole_row(part: Tensor, sequences: int) -> Tensor:
    """The whole sequences end to end in one row along axis 0, on every rank that shares them.

    Args:
        part: [t, ...], this rank's part of each sequence, end to end.
        sequences: how many there are.
    """
    side_by_side = part.unflatten(0, (sequences, -1)).transpose(0, 1)
    return _whole_sequence(side_by_side).transpose(0, 1).flatten(0, 1)


class _GatherSequence(torch.autograd.Function):
    """Parts of all ranks, end to end along axis 0. Backward, each rank gets the sum of all gradients of its own."""

    @staticmethod
    def forward(context: Any, part: Tensor) -> Tensor:
        gathered = part.new_empty(len(part) * groups.context_size(), *part.shape[1:])
        dist.all_gather_into_tensor(gathered, part.contiguous(), group=groups.context_group())
        return gathered

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous()
        dist.all_reduce(summed, group=groups.context_group())
        return summed.chunk(groups.context_size())[groups.context_rank()]
