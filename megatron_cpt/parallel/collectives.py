"""The few exchanges between ranks that are not Megatron-Core's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from megatron_cpt.config.errors import RankFailed
from megatron_cpt.parallel import groups


def sum_over_replicas(values: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks that see other tokens (data and context parallel), in place. Shape and dtype as given."""
    dist.all_reduce(values, group=groups.token_group())
    return values


def sum_over_world(values: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place. Shape and dtype as given."""
    dist.all_reduce(values)
    return values


def from_last_stage(values: torch.Tensor) -> torch.Tensor:
    """What the last pipeline stage holds, on every stage, in place. All stages pass the same shape and dtype."""
    if groups.pipeline_size() > 1:
        dist.broadcast(values, src=groups.last_stage_rank(), group=groups.pipeline_group())
    return values


def all_agree(condition: bool) -> bool:
    """Whether the condition holds on every rank."""
    flag = torch.tensor(int(condition), device=groups.device())
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def largest(value: int) -> int:
    """The largest of the ranks' values."""
    shared = torch.tensor(value, device=groups.device())
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


def any_rank(condition: bool) -> bool:
    """Whether the condition holds on some rank."""
    return not all_agree(not condition)


def barrier() -> None:
    """Waits for every rank."""
    dist.barrier()


@contextmanager
def first_on_rank_zero() -> Iterator[None]:
    """Runs the block on rank 0 before the others: for what one rank may have to make and all read.

    An error on rank 0 ends the other ranks with an error, not with a wait for the timeout.
    """
    if groups.rank() != 0:
        if any_rank(False):
            raise RankFailed("rank 0 failed; its message says why")
        yield
        return
    try:
        yield
    except BaseException:
        any_rank(True)
        raise
    any_rank(False)
