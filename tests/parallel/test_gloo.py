"""Groups of a process share devices, of which each has a thread that wakes a hundred times a second."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel import groups
from tests.ranks import Ranks


def threads_of_devices() -> int:
    names = (Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task"))
    return sum(name.startswith("gloo_tcp_loop") for name in names)


def divided() -> tuple[int, float]:
    """Job: threads of devices beside all of Megatron-Core's groups, and a sum over one of them."""
    groups.init_model_parallel(ParallelSettings(tensor=2))
    total = torch.tensor(groups.rank() + 1.0)
    dist.all_reduce(total, group=groups.tensor_group())
    return threads_of_devices(), float(total)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs groups are NCCL's")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are looked at through /proc")
def test_all_groups_share_one_device(two_ranks: Ranks) -> None:
    assert two_ranks.call(divided) == [(1, 3.0), (1, 3.0)]


def test_further_options_of_a_group_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.14 passes `enable_reconfigure`, which 2.13 does not have."""
    monkeypatch.setattr(distributed_c10d, "ProcessGroupGloo", dist.ProcessGroupGloo)
    groups.share_devices()
    group = distributed_c10d.ProcessGroupGloo(dist.HashStore(), 0, 1, timeout=timedelta(seconds=9), group_name="few")
    assert group.options.group_name == "few"


def test_devices_of_named_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,lo")
    assert len(groups.open_devices()) == 2
