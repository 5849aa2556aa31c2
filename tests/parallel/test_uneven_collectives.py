"""Parts of unequal length go from rank to rank as equal ones do."""

from typing import Any

import torch
from megatron.core.tensor_parallel import mappings

from megatron_cpt.parallel import groups
from tests.ranks import Ranks

LENGTHS = (3, 0)
"""Rows of each rank; one has none."""


def exchange() -> dict[str, Any]:
    """Job: gathers this rank's rows from all, and scatters sums of all rows back, through Megatron-Core's functions."""
    group, rank = torch.distributed.group.WORLD, groups.rank()
    own = torch.full((LENGTHS[rank], 2), float(rank + 1))
    gathered = mappings._gather_along_first_dim(own, group, output_split_sizes=list(LENGTHS))
    everything = torch.arange(2.0 * sum(LENGTHS)).reshape(-1, 2) * (rank + 1)
    summed = mappings._reduce_scatter_along_first_dim(everything, group, input_split_sizes=list(LENGTHS))
    return {"gathered": gathered.tolist(), "summed": summed.tolist()}


def test_rows_are_gathered_and_sums_are_scattered(two_ranks: Ranks) -> None:
    first, second = two_ranks.call(exchange)
    assert first["gathered"] == second["gathered"] == [[1.0, 1.0]] * 3
    assert first["summed"] == [[0.0, 3.0], [6.0, 9.0], [12.0, 15.0]]
    assert second["summed"] == []
