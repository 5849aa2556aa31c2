"""Kill -9 in the middle, the same command again: the same records as a run that was never killed."""

import subprocess
from pathlib import Path

import pytest

from megatron_cpt.runs.folder import read_status
from tests.params import quick_among
from tests.ranks import Ranks
from tests.train.runs import kill_all, records_of, start, train, wait_for_checkpoint
from tests.workshop import Workshop


def kill_when_reached(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Ends the command and all its processes without warning, once a checkpoint is there and training went on."""
    wait_for_checkpoint(run, step, process)
    kill_all(process)


@pytest.mark.ci
@pytest.mark.parametrize("processes", quick_among([1, 2], [2]))
def test_a_killed_run_ends_like_one_that_was_not(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path, processes: int
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    path = workshop.write_config(killed)
    kill_when_reached(killed, 4, start(path, processes))
    status = read_status(killed / "status.json")
    assert status is not None
    assert status.state == "running"
    assert start(path, processes).wait(120) == 0
    {1: one_rank, 2: two_ranks}[processes].call(train, path=workshop.write_config(whole))
    assert records_of(killed) == records_of(whole)
    status = read_status(killed / "status.json")
    assert status is not None
    assert (status.state, status.exit_code, status.step) == ("done", 0, 12)
