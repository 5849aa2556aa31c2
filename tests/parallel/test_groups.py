"""Groups that are given back take their threads with them: each wakes a hundred times a second."""

import gc
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from megatron_cpt.config.errors import RankFailed
from megatron_cpt.parallel import groups
from tests.ranks import Ranks, join
from tests.train.runs import train
from tests.workshop import Workshop


def threads_after(paths: list[Path]) -> list[int]:
    """Job: trains run after run; the threads of this process after each."""
    counts = []
    for path in paths:
        train(path, ("training.tokens=4 steps",))
        groups.destroy()
        gc.collect()
        counts.append(psutil.Process().num_threads())
        join(path.name)
    return counts


@pytest.mark.ci
def test_a_run_leaves_no_threads_behind(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    paths = [workshop.write_config(tmp_path / f"run-{number}", validation={"sets": {}}) for number in range(3)]
    for counts in two_ranks.call(threads_after, paths=paths):
        assert counts[0] == counts[1] == counts[2]


@pytest.mark.ci
def test_without_a_place_to_meet_a_process_is_a_world_of_one() -> None:
    code = (
        "from megatron_cpt.parallel import groups\n"
        "groups.init_process_group()\n"
        "print(groups.rank(), groups.world_size())"
    )
    # As a scheduler may have set them for something else.
    environment = {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}
    environment |= {"RANK": "2", "WORLD_SIZE": "4"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["0", "1"]


def test_a_process_takes_the_gpu_of_its_rank_or_the_one_that_it_is_shown() -> None:
    assert [groups.own_gpu(rank, visible=4) for rank in range(4)] == [0, 1, 2, 3]
    assert [groups.own_gpu(rank, visible=1) for rank in range(4)] == [0, 0, 0, 0]


def test_a_communicator_is_made_when_its_group_is_first_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch splits the world's communicator for every new group at once if the world has a `device_id`."""
    calls: list[tuple[str, object]] = []
    place = {"LOCAL_RANK": "3", "RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("device", device.index)))
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **given: calls.append((backend, given.get("device_id")))
    )
    groups.init_process_group()
    assert calls == [("device", 3), ("nccl", None)]


def wait_for_rank_zero(fails: bool) -> str:
    """Job: rank 0 takes longer than a collective may, or fails; what each rank finds."""
    groups.destroy()
    join("first" + str(fails), timedelta(seconds=0.5))
    # Else it ends with the short wait of the groups.
    dist.distributed_c10d._get_default_store().set_timeout(timedelta(minutes=1))
    try:
        for number in range(2):
            with groups.first_on_rank_zero():
                if groups.rank() == 0 and number == 1:
                    time.sleep(1.5)
                    if fails:
                        raise ValueError("of rank 0")
        return "made"
    except (RankFailed, ValueError) as error:
        return str(error)


def test_the_other_ranks_wait_for_rank_zero_outside_of_a_collective(two_ranks: Ranks) -> None:
    assert two_ranks.call(wait_for_rank_zero, fails=False) == ["made", "made"]
    assert two_ranks.call(wait_for_rank_zero, fails=True) == ["of rank 0", "rank 0 failed; its message says why"]
