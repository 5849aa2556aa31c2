"""Kill -9 in the middle, the same command again: the same records as a run that was never killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_cpt.runs.status import read_status
from tests.train.runs import records_of
from tests.workshop import Workshop


def start(path: Path, processes: int) -> subprocess.Popen[bytes]:
    """`megatron-cpt train`, in a process group of its own."""
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "train", str(path), "--nproc", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, start_new_session=True, env=environment, stderr=subprocess.PIPE)


def kill_when_reached(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Ends the command and all its processes without warning, once a checkpoint is there and training went on."""
    deadline = time.monotonic() + 120
    wanted = run / "checkpoints" / f"step-{step:08}" / "complete.json"
    while not wanted.exists():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_ends_like_one_that_was_not(workshop: Workshop, tmp_path: Path, processes: int) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    path = workshop.write_config(killed)
    kill_when_reached(killed, 4, start(path, processes))
    status = read_status(killed / "status.json")
    assert status is not None
    assert status.state == "running"
    assert start(path, processes).wait(120) == 0
    assert start(workshop.write_config(whole), processes).wait(120) == 0
    assert records_of(killed) == records_of(whole)
    status = read_status(killed / "status.json")
    assert status is not None
    assert (status.state, status.exit_code, status.step) == ("done", 0, 12)
