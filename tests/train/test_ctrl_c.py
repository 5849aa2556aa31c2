"""Ctrl-C: the first saves and ends with 75, the second ends at once; and of two starts at once one trains."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from megatron_cpt.runs.folder import ExitCode, Status, read_status
from megatron_cpt.runs.processes import ENDED_AT_ONCE, INTERRUPTED
from tests.train.runs import descendants, ranks_of, start, wait_for_checkpoint, wait_until_gone
from tests.train.test_dead_rank import ENDLESS
from tests.workshop import Workshop


def status_of(run: Path) -> Status:
    status = read_status(run / "status.json")
    assert status is not None
    return status


def test_of_two_starts_at_once_one_trains_and_ctrl_c_saves_it(workshop: Workshop, tmp_path: Path) -> None:
    """Neither start sees the other's ranks yet. A terminal sends SIGINT to all processes of the command but ranks that
    torchrun has started."""
    run = tmp_path / "run"
    path = workshop.write_config(run)
    both = [start(path, 1, ENDLESS) for _ in range(2)]
    while not (ended := [one for one in both if one.poll() is not None]):
        time.sleep(0.05)
    [loser], [winner] = ended, [one for one in both if one not in ended]
    _, said = loser.communicate()
    assert loser.returncode == ExitCode.BAD_INPUT, said.decode()
    assert f"process {winner.pid} on " in said.decode()
    wait_for_checkpoint(run, 4, winner)
    assert (status_of(run).state, status_of(run).exit_code) == ("running", None)
    everyone = descendants(winner.pid)
    os.killpg(winner.pid, signal.SIGINT)
    _, said = winner.communicate(timeout=60)
    assert winner.returncode == ExitCode.PREEMPTED, said.decode()
    assert said.decode().count(INTERRUPTED) == 1
    status = status_of(run)
    assert (status.state, status.exit_code) == ("preempted", 75)
    assert (status.message or "").startswith(f"SIGINT received: saved after step {status.step} of ")
    assert (run / "checkpoints" / f"step-{status.step:08}" / "complete.json").exists()
    wait_until_gone(everyone)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "before"), [(1, []), (2, []), (1, ["nohup"])], ids=["1", "2", "nohup"])
def test_a_terminal_that_is_closed_saves_the_run(
    workshop: Workshop, tmp_path: Path, processes: int, before: list[str]
) -> None:
    """As by an ssh connection that breaks. Under nohup the run goes on to its end."""
    run = tmp_path / "run"
    length = ENDLESS if not before else "training.tokens=40 steps"
    words = [*before, sys.executable, "-m", "megatron_cpt.commands.dispatch", "train", str(workshop.write_config(run))]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)  # nohup writes here
        os.execvp(words[0], [*words, length, "--nproc", str(processes)])
    reader = threading.Thread(target=read_all, args=(terminal,), daemon=True)
    reader.start()
    wait_for_checkpoint(run, 4)
    everyone = descendants(pid)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (ExitCode.PREEMPTED if not before else ExitCode.DONE)
    if not before:
        assert (status_of(run).message or "").startswith("SIGHUP received: saved after step ")
    wait_until_gone(everyone)


def read_all(terminal: int) -> None:
    """What a terminal shows, to the end of it."""
    with suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


QUICKSTART = """
import sys
from megatron_cpt.commands import quickstart
try:
    quickstart.call(*sys.argv[1:])
except quickstart._StageFailed as failed:
    sys.exit(failed.args[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [os.kill, os.killpg], ids=["kill", "Ctrl-C"])
def test_quickstart_waits_for_the_run_that_it_started(
    workshop: Workshop, tmp_path: Path, end: Callable[[int, int], None]
) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-c", QUICKSTART, "train", str(workshop.write_config(run)), ENDLESS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        wait_for_checkpoint(run, 4, process)
        everyone = descendants(process.pid)
        end(process.pid, signal.SIGTERM if end is os.kill else signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.PREEMPTED, said.decode()
    assert (status_of(run).state, status_of(run).exit_code) == ("preempted", 75)
    wait_until_gone(everyone)


@pytest.mark.ci
def test_a_second_ctrl_c_ends_at_once(workshop: Workshop, tmp_path: Path) -> None:
    """Of a run of two ranks, one of which stands still and so cannot save."""
    run = tmp_path / "run"
    process = start(workshop.write_config(run), 2, ENDLESS)
    wait_for_checkpoint(run, 4, process)
    everyone = descendants(process.pid)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    _, said = process.communicate(timeout=10)
    assert process.returncode == ExitCode.OTHER, said.decode()
    status = status_of(run)
    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.step >= 4
    told = f"{ENDED_AT_ONCE} The same command goes on from {run / 'checkpoints'}"
    assert (status.message or "").startswith(told), status.message
    assert ENDED_AT_ONCE in said.decode()
    assert "Traceback" not in said.decode()
    wait_until_gone(everyone)


# The first evaluation stands still: in Python, or in native code, where no handler of Python's runs.
STANDS_STILL = """
import ctypes, sys, time
from megatron_cpt.train import loop, program
from megatron_cpt.train.stop import StopRequest

def evaluate_due(run, logger, step):
    print("standing still", flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2 if {native} else 0):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
    time.sleep(600)

if __name__ == "__main__":
    loop.evaluate_due = evaluate_due
    with StopRequest() as request:
        sys.exit(program.main(sys.argv[1:], request))
"""


@pytest.mark.ci
@pytest.mark.parametrize("native", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rank_that_no_command_started_counts_itself(workshop: Workshop, tmp_path: Path, native: bool) -> None:
    script, run = tmp_path / "program.py", tmp_path / "run"
    script.write_text(STANDS_STILL.format(native=native))
    words = [sys.executable, str(script), str(workshop.write_config(run))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while b"standing still" not in process.stdout.readline():
            assert process.poll() is None
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        _, said = process.communicate(timeout=20)
    assert process.returncode == ExitCode.OTHER, said.decode()
    assert said.decode().count(INTERRUPTED) == 1 or native
    assert said.decode().count(ENDED_AT_ONCE) == 1
    status = status_of(run)
    assert (status.state, status.exit_code) == ("failed", 1)
    assert (status.message or "").startswith(ENDED_AT_ONCE)
