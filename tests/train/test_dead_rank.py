"""A process that dies takes the run with it, within a minute, and leaves nothing behind."""

import os
import re
import signal
from pathlib import Path

import pytest

from megatron_cpt.runs.folder import ExitCode, read_status
from megatron_cpt.runs.processes import children
from tests.train.runs import descendants, rank_of, start, wait_for_checkpoint, wait_until_gone
from tests.workshop import Workshop

ENDLESS = "training.tokens=100000 steps"


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_second_command_is_refused_and_a_killed_rank_ends_the_job_and_is_named(
    workshop: Workshop, tmp_path: Path, rank: int
) -> None:
    """The second command, on the folder of the first, changes nothing of it."""
    run = tmp_path / "run"
    path = workshop.write_config(run)
    process = start(path, 2, ENDLESS)
    wait_for_checkpoint(run, 4, process)
    second = start(path, 2, ENDLESS)
    _, said = second.communicate(timeout=60)
    assert second.returncode == ExitCode.BAD_INPUT
    assert "is training in this folder" in said.decode()
    assert process.poll() is None
    status = read_status(run / "status.json")
    assert status is not None
    assert status.state == "running"
    [torchrun] = children(process.pid)
    ranks = {rank_of(pid): pid for pid in children(torchrun)}
    everyone = descendants(process.pid)
    os.kill(ranks[rank], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(rf"rank\s*: {rank} ", said.decode()), said.decode()
    wait_until_gone(everyone)
    status = read_status(run / "status.json")
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 1)


def test_nothing_outlives_a_killed_command(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(workshop.write_config(run), 2, ENDLESS)
    wait_for_checkpoint(run, 4, process)
    everyone = descendants(process.pid)
    process.kill()
    process.wait()
    wait_until_gone(everyone)
