"""A process that dies takes the run with it, within a minute, and leaves nothing behind."""

import os
import signal
from pathlib import Path

import pytest

from megatron_cpt.runs.folder import ExitCode, read_status
from tests.train.runs import descendants, ranks_of, start, wait_for_checkpoint, wait_until_gone
from tests.workshop import Workshop

ENDLESS = "training.tokens=100000 steps"


@pytest.mark.ci
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
    ranks = ranks_of(process)
    everyone = descendants(process.pid)
    os.kill(ranks[rank], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    wait_until_gone(everyone)
    status = read_status(run / "status.json")
    assert status is not None
    assert (status.state, status.exit_code) == ("failed", 1)
    told = f"rank {rank} (process {ranks[rank]}) was ended by SIGKILL, usually by the kernel for lack of memory"
    assert (status.message or "").startswith(told), status.message
    assert f"The same command goes on from {run / 'checkpoints'}" in (status.message or "")
    assert f"The log is {run / 'log.txt'}." in (status.message or "")
    assert said.decode().rstrip().endswith(f"{run}: failed: {status.message}"), said.decode()
    assert "ChildFailedError" not in said.decode()


@pytest.mark.ci
def test_nothing_outlives_a_killed_command(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(workshop.write_config(run), 2, ENDLESS)
    wait_for_checkpoint(run, 4, process)
    everyone = descendants(process.pid)
    process.kill()
    process.wait()
    wait_until_gone(everyone)
