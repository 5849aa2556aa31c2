"""Whole runs for tests, in a pool of ranks or as a user starts them."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.processes import children, end_all
from megatron_cpt.runs.records import Record, read_records, without_timing
from megatron_cpt.train.program import run_to_end
from megatron_cpt.train.stop import StopRequest

GPT_MODEL = "megatron.core.models.gpt.gpt_model"
# The layouts of two processes that must give what one process gives.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "tensor 2": ("parallel.tensor=2",),
    "pipeline 2": ("parallel.pipeline=2",),
    "data 2": (),
    "data 2, distributed optimizer": ("parallel.distributed_optimizer=true",),
}


def train(path: Path, overrides: tuple[str, ...] = ()) -> int:
    """Job: the training program on this rank. Returns its exit code."""
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    with StopRequest() as request:
        return int(run_to_end(config, folder, request))


@contextmanager
def without_gpt_model() -> Iterator[None]:
    """Megatron-Core as a release that has no GPTModel any more."""
    there = importlib.import_module(GPT_MODEL)
    sys.modules[GPT_MODEL] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules[GPT_MODEL] = there


def train_without_gpt_model(path: Path, overrides: tuple[str, ...] = ()) -> int:
    """Job: the training program on such a release."""
    with without_gpt_model():
        return train(path, overrides)


def refusal(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: what a run that must not go on says."""
    with pytest.raises(BadInput) as error:
        train(path, overrides)
    return str(error.value)


def start(path: Path, processes: int, *overrides: str) -> subprocess.Popen[bytes]:
    """`megatron-cpt train`, in a process group of its own."""
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "train", str(path), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--nproc", str(processes)], start_new_session=True, env=environment, stderr=subprocess.PIPE
    )


def descendants(pid: int) -> list[int]:
    """All processes that a process started, and those that they started."""
    return [below for child in children(pid) for below in (child, *descendants(child))]


def rank_of(pid: int) -> int:
    """The rank of a process that torchrun started."""
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    [rank] = [entry.removeprefix(b"RANK=") for entry in environment if entry.startswith(b"RANK=")]
    return int(rank)


def ranks_of(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """The process of each rank of `start`, where there are several."""
    [torchrun] = children(process.pid)
    return {rank_of(pid): pid for pid in children(torchrun)}


def wait_for_checkpoint(run: Path, step: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Returns once a step's checkpoint is whole; fails after two minutes, or when the process that trains has ended."""
    deadline = time.monotonic() + 120
    wanted = run / "checkpoints" / f"step-{step:08}" / "complete.json"
    while not wanted.exists():
        assert process is None or process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.01)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and all its processes without warning; returns when they are gone, and with them their locks."""
    everyone = [process.pid, *descendants(process.pid)]
    end_all(everyone)
    wait_until_gone(everyone)


def wait_until_gone(pids: list[int]) -> None:
    """Fails if one of the processes still runs after a minute."""
    deadline = time.monotonic() + 60
    while alive := [pid for pid in pids if runs(pid)]:
        assert time.monotonic() < deadline, f"still alive: {alive}"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether a thread of a process is there and not only waits for somebody to hear that it ended."""
    for stat in glob(f"/proc/{pid}/task/*/stat"):
        with suppress(OSError):  # it has just gone
            if Path(stat).read_text().rpartition(")")[2].split()[0] != "Z":
                return True
    return False


def records_of(run: Path, *kinds: str) -> list[Record]:
    """A run's records without timings, those of some kinds or all but what a start changed."""
    records = [without_timing(record) for record in read_records(run / "records.jsonl")]
    if kinds:
        return [record for record in records if record["kind"] in kinds]
    return [record for record in records if record.get("event") != "setting_changed"]


def column(records: list[Record], name: str) -> list[Any]:
    """One field of records."""
    return [record[name] for record in records]
