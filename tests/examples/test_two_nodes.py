"""The batch scripts under Slurm's own programs, on a cluster of two nodes on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_cpt.runs.folder import read_status
from tests.examples.slurm_cluster import missing, two_nodes
from tests.train.runs import column, records_of
from tests.workshop import Workshop

SLURM = Path(__file__).parents[2] / "examples/slurm"
ON_CPUS = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=20"]
STEPS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def wait_for(what: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, told()
        time.sleep(0.5)


def steps_of(run: Path) -> list[int]:
    return column(records_of(run, "train"), "step") if (run / "records.jsonl").exists() else []


def state_of(run: Path) -> str | None:
    status = read_status(run / "status.json")
    return None if status is None else status.state


@pytest.mark.parametrize("script", ["train.sbatch", "elastic.sbatch"])
def test_a_run_on_two_nodes_goes_on_until_it_is_done(workshop: Workshop, tmp_path: Path, script: str) -> None:
    """train.sbatch hears Slurm's USR1, saves and is queued again; elastic.sbatch outlives a killed rank."""
    run, cluster = tmp_path / "run", tmp_path / "slurm"
    path = workshop.write_config(run, training={"tokens": f"{STEPS} steps"}, checkpoint={"save_interval": "10 steps"})
    cluster.mkdir()
    with two_nodes(cluster) as environment:
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment["PYTHONPATH"] = str(SLURM.parents[1])
        command = ["sbatch", "--parsable", f"--output={tmp_path}/job.log", *ON_CPUS, str(SLURM / script), str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        job = done.stdout.strip()

        def told() -> str:
            queue = subprocess.run(["scontrol", "show", "job", job], env=environment, capture_output=True, text=True)
            return queue.stdout + (tmp_path / "job.log").read_text(errors="replace")[-4000:]

        wait_for(lambda: max(steps_of(run), default=0) > 12, 300, told)
        if script == "train.sbatch":
            subprocess.run(["scancel", "--signal=USR1", job], env=environment, check=True)
            wait_for(lambda: state_of(run) == "preempted", 120, told)
        else:
            os.kill(rank_of(path), signal.SIGKILL)
        wait_for(lambda: state_of(run) == "done", 600, told)
        queue = ["squeue", "--noheader"]
        wait_for(lambda: not subprocess.run(queue, env=environment, capture_output=True, check=True).stdout, 60, told)
    assert sorted(set(steps_of(run))) == list(range(1, STEPS + 1))
    assert '"world_size": 2' in (run / "plan.json").read_text()


def rank_of(path: Path) -> int:
    """A process that trains by this config."""
    for process in psutil.process_iter(["cmdline", "name"]):
        words = process.info["cmdline"] or []
        if str(path) in words and "megatron_cpt.train" in words and "torch.distributed.run" not in words:
            return process.pid
    raise AssertionError("no rank runs")
