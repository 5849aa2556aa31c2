"""Simulated ranks for tests: one process imports the program, and forks once for each rank."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from megatron_cpt.planning.simulated import SimulatedRank


def run_settings(
    folder: Path, parallel: dict[str, Any] | None = None, length: int = 512, **others: Any
) -> dict[str, Any]:
    """Settings of a run of a model folder without weights, on data that are not there."""
    training = {"tokens": "10 steps", "global_batch_size": 16, "precision": "bf16"} | others.pop("training", {})
    return {
        "run": {"folder": "run"},
        "model": {"hf": str(folder), "weights": "random"},
        "data": {"sequence_length": length, "sources": {"text": {"paths": ["none"]}}},
        "training": training,
        "schedule": {"kind": "constant", "peak_lr": 1e-5},
        "parallel": parallel or {},
        **others,
    }


def simulate(cases: Sequence[tuple[dict[str, Any], int, int]]) -> list[SimulatedRank]:
    """Simulated ranks of some runs.

    Args:
        cases: settings of a run, a rank, and the size of its world.
    """
    environment = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.simulation.ranks"]
    ended = subprocess.run(command, input=orjson.dumps(cases), stdout=subprocess.PIPE, env=environment, check=True)
    return TypeAdapter(list[SimulatedRank]).validate_json(ended.stdout)


def _main() -> None:
    from megatron_cpt.config.load import config_from_dict  # noqa: PLC0415  (the parent needs none of it)
    from megatron_cpt.planning.cards import CARDS  # noqa: PLC0415
    from megatron_cpt.simulation.rank import simulate_rank  # noqa: PLC0415

    found = []
    for settings, rank, world_size in orjson.loads(sys.stdin.buffer.read()):
        receiving, sending = os.pipe()
        if os.fork() == 0:
            code = 1
            try:
                os.close(receiving)
                simulated = simulate_rank(config_from_dict(settings), rank, world_size, CARDS["H100-80GB"])
                with os.fdopen(sending, "wb") as pipe:
                    pipe.write(orjson.dumps(simulated))
                code = 0
            finally:
                sys.stderr.flush()
                if code:
                    sys.excepthook(*sys.exc_info())
                os._exit(code)
        os.close(sending)
        with os.fdopen(receiving, "rb") as pipe:
            found.append(pipe.read())
        if os.waitstatus_to_exitcode(os.wait()[1]):
            sys.exit(f"rank {rank} of {world_size} of {settings} failed")
    sys.stdout.buffer.write(b"[" + b",".join(found) + b"]")


if __name__ == "__main__":
    _main()
