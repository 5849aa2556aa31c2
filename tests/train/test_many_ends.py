"""Ended again and again at random moments, a run is the run: nothing lost, nothing twice, always a checkpoint."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from megatron_cpt.runs.checkpoint_state import complete_checkpoints, is_intact, read_hashes
from megatron_cpt.runs.folder import ExitCode, read_status
from tests.train.runs import column, kill_all, records_of, start
from tests.workshop import Workshop

# Nothing of these depends on the length of the run, so that it can end when it has been ended often enough.
SETTINGS = (
    "schedule.kind=constant",
    "schedule.final_lr=0",
    "validation.eval_interval.end=false",
    "checkpoint.save_interval=3 steps",
    "model.dropout=0.1",
)
ENDLESS = "training.tokens=100000 steps"


def newest(run: Path) -> int:
    """Step of the newest whole checkpoint, 0 without one."""
    whole = complete_checkpoints(run / "checkpoints")
    return int(whole[-1].name.removeprefix("step-")) if whole else 0


def wait_for_a_newer_one(run: Path, than: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while newest(run) <= than:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def loadable(run: Path) -> None:
    """Fails unless the newest checkpoint is whole to the last byte, and a first one is never lost again."""
    checkpoint = complete_checkpoints(run / "checkpoints")[-1]
    hashes = read_hashes(checkpoint)
    assert all(is_intact(checkpoint / name, digest) for name, digest in hashes.items())


def same_as_undisturbed(workshop: Workshop, run: Path, processes: int, overrides: tuple[str, ...]) -> None:
    """Takes the run a few steps further, to its end, and holds it against one that nobody ended."""
    last = (f"training.tokens={newest(run) + 4} steps",)
    path = run.parent / f"{run.name}.yaml"
    whole = run.parent / "whole"
    assert start(path, processes, *overrides, *last).wait(300) == ExitCode.DONE
    assert start(workshop.write_config(whole), processes, *overrides, *last).wait(600) == ExitCode.DONE
    trained = records_of(run, "train")
    assert column(trained, "sequences") == [8 * step for step in range(1, len(trained) + 1)]
    assert records_of(run) == records_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("asynchronous", "processes"), [("false", 1), ("true", 2)])
def test_kill_9_at_fifteen_random_times(workshop: Workshop, tmp_path: Path, asynchronous: str, processes: int) -> None:
    draw, run = random.Random(f"{asynchronous} {processes}"), tmp_path / "run"
    path = workshop.write_config(run)
    overrides = (*SETTINGS, f"checkpoint.async_save={asynchronous}")
    for _ in range(15):
        process = start(path, processes, *overrides, ENDLESS)
        wait_for_a_newer_one(run, newest(run), process)
        time.sleep(draw.uniform(0, 0.5))
        kill_all(process)
        loadable(run)
    same_as_undisturbed(workshop, run, processes, overrides)


@pytest.mark.slow
def test_sigterm_at_ten_random_times(workshop: Workshop, tmp_path: Path) -> None:
    draw, run = random.Random("sigterm"), tmp_path / "run"
    path = workshop.write_config(run)
    overrides = (*SETTINGS, "checkpoint.async_save=true", "parallel.distributed_optimizer=true")
    for _ in range(10):
        process = start(path, 2, *overrides, ENDLESS)
        wait_for_a_newer_one(run, newest(run), process)
        time.sleep(draw.uniform(0, 0.5))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == ExitCode.PREEMPTED
        status = read_status(run / "status.json")
        assert status is not None
        assert (status.state, status.exit_code, status.step) == ("preempted", 75, newest(run))
        loadable(run)
    same_as_undisturbed(workshop, run, 2, overrides)
