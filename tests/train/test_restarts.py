"""torchrun starts killed ranks again, and the run ends as one that was never killed; what ended itself stays ended."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
import psutil
import pytest

from megatron_cpt.commands.ranks import launch_environment, launcher
from megatron_cpt.runs.folder import ExitCode, read_status
from megatron_cpt.runs.processes import children
from tests.ranks import Ranks
from tests.train.runs import column, end_all, rank_of, records_of, start, train, wait_for_checkpoint
from tests.workshop import Workshop

LENGTH = "training.tokens=40 steps"
KILLS = ((4, 1), (16, 0))
"""After which checkpoint which rank is killed."""


def kill_rank(agents: Sequence[int], rank: int) -> None:
    """Ends a rank of torchrun's agents without warning."""
    [pid] = [pid for agent in agents for pid in children(agent) if rank_of(pid) == rank]
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_whose_ranks_are_killed_twice_ends_like_one_that_was_not(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    """On one machine, by `megatron-cpt train --max-restarts`."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(workshop.write_config(killed), 2, LENGTH, "--max-restarts", "2")
    for step, rank in KILLS:
        wait_for_checkpoint(killed, step, process)
        kill_rank(children(process.pid), rank)
    assert process.wait(600) == ExitCode.DONE
    two_ranks.call(train, path=workshop.write_config(whole), overrides=(LENGTH,))
    assert records_of(killed, "train", "validation") == records_of(whole, "train", "validation")
    assert column(records_of(killed, "train"), "step") == list(range(1, 41))
    assert "(restart 2 of 2: a rank died)" in (killed / "log.txt").read_text()


def start_agents(path: Path) -> tuple[list[subprocess.Popen[bytes]], int]:
    """Two agents of torchrun, as on two machines that may become one (`--nnodes 1:2`), and the port where they meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=7", "--max-restarts=2"]
    rendezvous += ["--rdzv-conf=last_call_timeout=5", "--local-addr=127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", *rendezvous]
    environment = launch_environment(os.environ | {"OMP_NUM_THREADS": "1"}, 2)
    words = [*command, "-m", "--", "megatron_cpt.train", str(path), LENGTH]
    return [subprocess.Popen(words, env=environment) for _ in range(2)], port


def listens(pid: int, port: int) -> bool:
    """Whether a process keeps the store of a rendezvous."""
    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in psutil.Process(pid).net_connections("tcp")
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_agents_of_a_c10d_rendezvous_do_the_same(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """As on two machines that may become one: `--nnodes 1:2`."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    agents, _ = start_agents(workshop.write_config(killed))
    try:
        for step, rank in KILLS:
            wait_for_checkpoint(killed, step)
            kill_rank([agent.pid for agent in agents], rank)
        assert [agent.wait(600) for agent in agents] == [0, 0]
    finally:
        end_all([agent.pid for agent in agents])
    two_ranks.call(train, path=workshop.write_config(whole), overrides=(LENGTH,))
    assert records_of(killed, "train", "validation") == records_of(whole, "train", "validation")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_machine_that_is_lost_leaves_the_run_to_the_other(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    """An agent and its rank are killed; the other agent, which keeps the store, goes on with one rank."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    agents, port = start_agents(workshop.write_config(killed))
    try:
        wait_for_checkpoint(killed, 4)
        [keeper] = [agent for agent in agents if listens(agent.pid, port)]
        [lost] = [agent for agent in agents if agent is not keeper]
        end_all([lost.pid, *children(lost.pid)])
        assert keeper.wait(600) == 0
    finally:
        end_all([agent.pid for agent in agents])
    two_ranks.call(train, path=workshop.write_config(whole), overrides=(LENGTH,))
    assert column(records_of(killed, "train"), "step") == list(range(1, 41))
    losses = [column(records_of(run, "train"), "loss") for run in (killed, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # one rank adds in another order than two
    assert orjson.loads((killed / "plan.json").read_bytes())["world_size"] == 1
    assert "a rank died" in (killed / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_saved_and_stopped_is_not_started_again(workshop: Workshop, tmp_path: Path) -> None:
    process = start(workshop.write_config(tmp_path / "run"), 2, "stop.after=1s", LENGTH, "--max-restarts", "1")
    assert process.wait(600) == ExitCode.PREEMPTED
    status = read_status(tmp_path / "run/status.json")
    assert status is not None and (status.state, status.exit_code) == ("preempted", ExitCode.PREEMPTED)
    assert status.step < 40
    saved = [int(path.name.removeprefix("step-")) for path in (tmp_path / "run/checkpoints").iterdir()]
    assert max(saved) == status.step
    assert "resumed after" not in (tmp_path / "run/log.txt").read_text()


def test_what_starts_torchrun_gives_each_start_a_store_of_its_own() -> None:
    assert launch_environment({}, 2)["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert (
        launch_environment({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0"}, 2)["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "0"
    )
    assert "--max-restarts=3" in launcher(2, "module", 3, report=5)
