"""A run that hangs ends within twice its limit, and names who was silent or behind, and where."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.flight_recorder.components.loader import read_dump

from megatron_cpt.config.schema import TimeoutSettings
from megatron_cpt.runs.folder import RunFolder, Status, only_job, read_status, write_status
from megatron_cpt.runs.processes import children
from megatron_cpt.train.stop import StopRequest
from megatron_cpt.train.watchdog import Watchdog
from tests.train.runs import descendants, ranks_of, start, wait_for_checkpoint, wait_until_gone
from tests.train.test_dead_rank import ENDLESS
from tests.workshop import Workshop

LIMIT = 4
# Nothing but steps, each of which is recorded at once: a rank is stopped in one of them.
OVERRIDES = (ENDLESS, f"timeout.step={LIMIT}s", "validation.sets={}", "checkpoint.save_interval=20000 steps")

# The last rank's fourth step waits for its data for ever; the others wait for it.
PROGRAM = """
import os, sys, time
from megatron_cpt.data.loader import TrainingData
from megatron_cpt.train import loop, program
from megatron_cpt.train.stop import StopRequest

whole, steps = TrainingData.global_batch, []

def global_batch(self, first_index, device):
    steps.append(first_index)
    if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1) and len(steps) == 4:
        time.sleep(600)
    yield from whole(self, first_index, device)

if __name__ == "__main__":
    TrainingData.global_batch = global_batch
    with StopRequest() as request:
        sys.exit(program.main(sys.argv[1:], request))
"""


def status_of(run: Path) -> Status:
    status = read_status(run / "status.json")
    assert status is not None
    return status


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Returns once a step is recorded; fails after two minutes, or when the process that trains has ended."""
    deadline = time.monotonic() + 120
    while not (run / "records.jsonl").exists() or f'"step":{step},' not in (run / "records.jsonl").read_text():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "no such step within two minutes"
        time.sleep(0.01)


@pytest.mark.ci
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stopped_rank_ends_the_run_and_is_named_with_its_place(workshop: Workshop, tmp_path: Path, rank: int) -> None:
    run = tmp_path / "run"
    process = start(workshop.write_config(run), 2, *OVERRIDES, "run.log_interval=1 steps")
    wait_for_step(run, 8, process)
    stopped, everyone = ranks_of(process)[rank], descendants(process.pid)
    began = time.monotonic()
    os.kill(stopped, signal.SIGSTOP)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert time.monotonic() - began < 2 * LIMIT + 10  # of which the launcher takes some seconds
    status = status_of(run)
    assert (status.state, status.exit_code) == ("failed", 1)
    # Rank 0 holds the store in which places are told, under this launcher.
    place = r", last seen at step \d+" if rank else r"\), which holds the store"
    found = rf"No answer from rank {rank} \(process {stopped} on \S+?{place}"
    assert re.search(found, status.message or ""), status.message
    assert "The same command begins again" in (status.message or "")
    log = (run / "log.txt").read_text()
    assert "stack of MainThread" in log
    assert "train_step" in log
    assert status.message in said.decode()
    wait_until_gone(everyone)


@pytest.mark.ci
def test_a_rank_that_waits_for_its_data_is_named_and_all_stacks_are_in_the_log(
    workshop: Workshop, tmp_path: Path
) -> None:
    script, run = tmp_path / "program.py", tmp_path / "run"
    script.write_text(PROGRAM)
    path = workshop.write_config(run)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, str(path), *OVERRIDES], env=environment, capture_output=True, timeout=100)
    assert ended.returncode == 1
    message = status_of(run).message or ""
    assert "Rank 1 is at step 4, reading a micro batch; the others wait at step 4." in message, message
    log = (run / "log.txt").read_text()
    assert "[rank1] at step 4, reading a micro batch" in log
    assert "time.sleep(600)" in log
    assert "train_step" in log
    for rank in range(2):
        record = run / "flight_recorder" / f"rank_{rank}"
        entries = read_dump("rank_", str(record))["entries"]
        assert any("gloo:" in entry["profiling_name"] for entry in entries), entries


@pytest.mark.slow  # a run and its limit; two ranks are tried above
def test_a_process_alone_that_hangs_is_ended(workshop: Workshop, tmp_path: Path) -> None:
    script, run = tmp_path / "program.py", tmp_path / "run"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(workshop.write_config(run)), *OVERRIDES]
    ended = subprocess.run(command, capture_output=True, timeout=100)
    assert ended.returncode == 1
    message = status_of(run).message or ""
    assert message.startswith(f"step 4, reading a micro batch was not over after {LIMIT} s (`timeout.step`: {LIMIT} s)")


@pytest.mark.slow  # it waits for what a step may take after a signal, 10 s
def test_a_signal_ends_a_run_that_hangs_before_its_limit(workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = (ENDLESS, "timeout.step=100s", "validation.sets={}", "checkpoint.save_interval=20000 steps")
    process = start(workshop.write_config(run), 2, *overrides, "run.log_interval=1 steps")
    wait_for_step(run, 8, process)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 1
    message = status_of(run).message or ""
    assert message.startswith("SIGTERM received, and "), message
    assert "No answer from rank 1" in message


@pytest.mark.slow  # a run that stands still for 2 s
def test_a_process_that_was_stopped_itself_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    """As one does that was sent to the background with Ctrl-Z: the time is not counted."""
    run = tmp_path / "run"
    process = start(workshop.write_config(run), 1, "training.tokens=60 steps", "timeout.step=1s")
    wait_for_checkpoint(run, 4, process)
    [program] = children(process.pid)
    os.kill(program, signal.SIGSTOP)
    time.sleep(2)
    os.kill(program, signal.SIGCONT)
    assert process.wait(100) == 0
    assert status_of(run).state == "done"


def test_a_run_that_ends_does_not_wait_for_the_next_look(tmp_path: Path) -> None:
    """The thread looks every 5 s with the limits that are the default."""
    with StopRequest() as request:
        for listened in (request, StopRequest()):  # one that hears signals, and one that is not open
            with Watchdog(TimeoutSettings(), RunFolder(tmp_path), listened):
                began = time.monotonic()
            assert time.monotonic() - began < 2


# The second evaluation, after step 5, stands still.
IN_AN_EVALUATION = """
import sys, time
from megatron_cpt.train import loop, program
from megatron_cpt.train.stop import StopRequest

whole = loop.evaluate_due

def evaluate_due(run, logger, step):
    if step == 5:
        time.sleep(600)
    return whole(run, logger, step)

if __name__ == "__main__":
    loop.evaluate_due = evaluate_due
    with StopRequest() as request:
        sys.exit(program.main(sys.argv[1:], request))
"""


@pytest.mark.slow  # it waits for what an evaluation may take after a signal, 60 s
def test_a_signal_ends_an_evaluation_that_hangs(workshop: Workshop, tmp_path: Path) -> None:
    script, run = tmp_path / "program.py", tmp_path / "run"
    script.write_text(IN_AN_EVALUATION)
    config = workshop.write_config(run, validation={"eval_interval": {"at": ["2 steps", "5 steps"]}})
    overrides = ("training.tokens=9 steps", "run.log_interval=1 steps")
    process = subprocess.Popen([sys.executable, str(script), str(config), *overrides], stderr=subprocess.PIPE)
    wait_for_step(run, 5, process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert process.returncode == 1
    assert (status_of(run).message or "").startswith("SIGTERM received, and the evaluation after step 5 was not over")


def test_a_limit_that_is_longer_than_gloo_can_count_is_as_none(tmp_path: Path) -> None:
    with StopRequest() as request:
        longest = Watchdog(TimeoutSettings(step="99999999d"), RunFolder(tmp_path), request).group_timeout
        assert longest == Watchdog(TimeoutSettings(step=None), RunFolder(tmp_path), request).group_timeout


def alone(workshop: Workshop, run: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """One rank of two: the other, which has the ranks' store, is never started."""
    words = [sys.executable, "-m", "megatron_cpt.train", str(workshop.write_config(run)), *overrides]
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return subprocess.Popen(words, env=os.environ | place, stderr=subprocess.PIPE)


@pytest.mark.ci
def test_ranks_that_never_meet_end_and_say_where_they_waited(workshop: Workshop, tmp_path: Path) -> None:
    """In the status of the run, but where the folder is another job's, which has refused their rank 0."""
    running = Status("running")
    RunFolder(tmp_path / "taken").create()
    write_status(tmp_path / "taken" / "status.json", running)
    with only_job(tmp_path / "taken"):
        refused = alone(workshop, tmp_path / "taken", "timeout.start=3s")
        process = alone(workshop, tmp_path / "run", "timeout.start=3s")
        for one in (refused, process):
            _, said = one.communicate(timeout=60)
            assert one.returncode == 1
            assert "The ranks have not met" in said.decode()
    assert status_of(tmp_path / "taken") == running
    message = status_of(tmp_path / "run").message or ""
    assert message.startswith("the start was not over after 3 s (`timeout.start`: 3 s). The ranks have not met"), (
        message
    )
    assert "127.0.0.1:1" in message


@pytest.mark.slow  # a start may take 60 s after a signal
def test_a_signal_ends_ranks_that_never_meet(workshop: Workshop, tmp_path: Path) -> None:
    process = alone(workshop, tmp_path / "run")
    time.sleep(20)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode == 75
    status = status_of(tmp_path / "run")
    assert (status.state, status.exit_code) == ("preempted", 75)
    assert status.message == "SIGTERM received before training began. The same command begins again."
