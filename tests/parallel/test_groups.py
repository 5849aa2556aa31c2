"""Groups that are given back take their threads with them: each wakes a hundred times a second."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import psutil

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


def test_a_run_leaves_no_threads_behind(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    paths = [workshop.write_config(tmp_path / f"run-{number}", validation={"sets": {}}) for number in range(3)]
    for counts in two_ranks.call(threads_after, paths=paths):
        assert counts[0] == counts[1] == counts[2]


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
