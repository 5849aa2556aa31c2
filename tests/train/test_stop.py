"""A run that is told to stop saves after the step at hand, says 75, and goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megatron_cpt.parallel import groups
from megatron_cpt.runs.folder import ExitCode, Status, read_status
from megatron_cpt.train.stop import NOT_ASKED, OUT_OF_TIME, StopRequest, reason
from tests.params import quick_among
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, descendants, records_of, start, train, wait_for_checkpoint
from tests.workshop import Workshop

STEPS, SAVED = 60, 20
LONG = (f"training.tokens={STEPS} steps", f"checkpoint.save_interval={SAVED} steps")


def test_a_request_listens_while_it_is_open_and_gives_the_signals_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with StopRequest() as request:
        assert request.code(after=None) == NOT_ASKED
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.code(after="1h") == signal.SIGUSR1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_limit_of_wall_time_is_a_reason_of_its_own() -> None:
    request = StopRequest()
    assert request.code(after="1h") == NOT_ASKED
    request._began -= 3601
    assert request.code(after="1h") == OUT_OF_TIME
    assert request.code(after=None) == NOT_ASKED
    assert reason(OUT_OF_TIME, "1h") == "stop.after = 1h is over"
    assert reason(signal.SIGTERM, None) == "SIGTERM received"


RANK = """
import os, sys, time
from megatron_cpt.train.stop import StopRequest
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    time.sleep(3)
    sys.exit(1)
print("asked to stop:", StopRequest().code(after="3s"), StopRequest().code(after="1h"))
"""


@pytest.mark.ci
def test_the_limit_of_wall_time_counts_from_the_start_of_torchrun(tmp_path: Path) -> None:
    """A rank that torchrun starts again is in the job that the first one was in."""
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1", tmp_path / "rank.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"asked to stop: {OUT_OF_TIME} {NOT_ASKED}" in done.stdout


def status_of(run: Path) -> Status:
    status = read_status(run / "status.json")
    assert status is not None
    return status


@pytest.mark.ci
@pytest.mark.parametrize("number", quick_among([signal.SIGTERM, signal.SIGUSR1], [signal.SIGUSR1]))
def test_a_signal_to_the_command_or_all_its_processes_saves_and_the_same_command_goes_on(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM as a user sends it; SIGUSR1 as Slurm does, to torchrun and the ranks' own helpers too."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    path = workshop.write_config(stopped)
    process = start(path, 2, *LONG)
    wait_for_checkpoint(stopped, SAVED, process)
    for pid in (process.pid, *(descendants(process.pid) if number == signal.SIGUSR1 else ())):
        os.kill(pid, number)
    assert process.wait(120) == ExitCode.PREEMPTED
    status = status_of(stopped)
    assert (status.state, status.exit_code) == ("preempted", 75)
    assert SAVED <= status.step < STEPS
    assert status.message is not None
    assert status.message.startswith(f"{number.name} received: saved after step {status.step} of {STEPS}")
    assert (stopped / "checkpoints" / f"step-{status.step:08}" / "complete.json").exists()
    assert start(path, 2, *LONG).wait(120) == ExitCode.DONE
    assert two_ranks.call(train, path=workshop.write_config(whole), overrides=LONG) == [0, 0]
    assert records_of(stopped) == records_of(whole)


def command_line(pid: int) -> list[bytes]:
    """The words that started a process; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


@pytest.mark.parametrize("processes", quick_among([1, 2], [2]))
def test_a_signal_before_training_has_begun_is_not_lost(workshop: Workshop, tmp_path: Path, processes: int) -> None:
    """It waits for a process that does not listen yet; torchrun that has no ranks yet is ended."""
    run = tmp_path / "run"
    process = start(workshop.write_config(run), processes, *LONG)
    while not (below := [pid for pid in descendants(process.pid) if b"megatron_cpt.train" in command_line(pid)]):
        assert process.poll() is None
    for pid in (process.pid, *below):
        os.kill(pid, signal.SIGUSR1)
    assert process.wait(120) == ExitCode.PREEMPTED
    status = status_of(run)
    assert (status.state, status.step) == ("preempted", 0)
    heard = f"SIGUSR1 received: saved after step 0 of {STEPS}"
    # On a slow machine torchrun may have ranks by then, and they hear of it.
    assert (status.message or "").startswith((heard, "stopped before training began") if processes == 2 else heard)


def train_and_be_told(path: Path, overrides: tuple[str, ...], run: Path) -> int:
    """Job: trains; rank 1, and no other, is sent SIGUSR1 once there is a checkpoint."""
    if groups.rank() == 1:
        threading.Thread(target=signal_when_saved, args=(run,)).start()
    return train(path, overrides)


def signal_when_saved(run: Path) -> None:
    wait_for_checkpoint(run, SAVED)
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tensor 2", "pipeline 2", "data 2, distributed optimizer"])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str
) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    overrides = (*LONG, "model.dropout=0.1", *LAYOUTS[layout])
    path = workshop.write_config(stopped)
    assert two_ranks.call(train_and_be_told, path=path, overrides=overrides, run=stopped) == [75, 75]
    assert (status_of(stopped).message or "").startswith("SIGUSR1 received")
    assert two_ranks.call(train, path=path, overrides=overrides) == [0, 0]
    two_ranks.call(train, path=workshop.write_config(whole), overrides=overrides)
    assert records_of(stopped) == records_of(whole)


def test_a_limit_of_wall_time_cuts_a_run_into_pieces_that_make_the_whole(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    pieces, whole = tmp_path / "pieces", tmp_path / "whole"
    path = workshop.write_config(pieces)
    steps = [0]
    while one_rank.call(train, path=path, overrides=("stop.after=1s", "training.tokens=5 steps")) == [75]:
        steps.append(status_of(pieces).step)
        assert steps[-1] > steps[-2], "a limit shorter than the start-up must not stop a run from getting on"
    one_rank.call(train, path=workshop.write_config(whole), overrides=("training.tokens=5 steps",))
    assert records_of(pieces) == records_of(whole)
