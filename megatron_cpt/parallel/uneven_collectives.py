"""Gathering and scattering of parts of unequal length, which gloo cannot: parts are padded to the longest on the way.

Megatron-Core exchanges such parts where tensor-parallel ranks share experts: each rank has as many tokens for an expert
as its part of the sequences sends there. The CPU platform needs this file while Megatron-Core is being imported, so it
imports nothing of Megatron-Core.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_of_any_parts(gather_equal: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Megatron-Core's gathering along the first dimension, for parts of any length."""

    def gather(
        input_: Tensor, group: Any, output_split_sizes: Sequence[int] | None = None, use_global_buffer: bool = False
    ) -> Tensor:
        if output_split_sizes is None or group.size() == 1:
            return gather_equal(input_, group, None, use_global_buffer)
        sizes = [int(size) for size in output_split_sizes]
        longest = max(*sizes, 1)
        gathered = input_.new_empty(longest * len(sizes), *input_.shape[1:])
        dist.all_gather_into_tensor(gathered, _padded(input_, longest), group=group)
        return torch.cat([part[:size] for part, size in zip(gathered.split(longest), sizes, strict=True)])

    return gather


def scatter_to_any_parts(scatter_equal: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Megatron-Core's summing and scattering along the first dimension, for parts of any length."""

    def scatter(
        input_: Tensor, group: Any, input_split_sizes: Sequence[int] | None = None, use_global_buffer: bool = False
    ) -> Tensor:
        if input_split_sizes is None or group.size() == 1:
            return scatter_equal(input_, group, None, use_global_buffer)
        sizes = [int(size) for size in input_split_sizes]
        longest = max(*sizes, 1)
        parts = torch.cat([_padded(part, longest) for part in input_.split(sizes)])
        own = input_.new_empty(longest, *input_.shape[1:])
        dist.reduce_scatter_tensor(own, parts, group=group)
        return own[: sizes[group.rank()]]

    return scatter


def _padded(part: Tensor, length: int) -> Tensor:
    """A part with zeros behind it, up to a length."""
    return torch.cat([part, part.new_zeros(length - len(part), *part.shape[1:])])
