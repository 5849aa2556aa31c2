"""How long training waits for a checkpoint: asynchronous saves against synchronous ones and against plain writing.

Two processes (data parallel) save a Llama of 36 million parameters with a plain and with a distributed optimizer, in
the sharding of frequent saves and in the one that loads into any layout. `plain writing` is the time in which the
same processes write and fsync as many bytes as they wrote, one file each; `gathering` is the part of the waiting in
which the state is laid out and, for any layout, brought together on one rank. Each figure is the median of some saves
after the first of a process, which also starts a helper process. `ratio` is the worst of the frequent
saves: waiting in an asynchronous save over waiting in a synchronous one.

    python benchmarks/checkpoint.py [--saves N] [--layers N] [--hidden N]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import torch
import torch.distributed as dist
from machine import machine, print_result

from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes
from megatron_cpt.checkpoint.load import model_state, optimizer_state
from megatron_cpt.checkpoint.save import CheckpointWriter
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.build import ModelOptions, build_model, unwrap, wrap_for_training
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import barrier, seed_everything
from megatron_cpt.runs.checkpoint_state import FREQUENT, KEPT, CheckpointState, Layout
from megatron_cpt.runs.library_warnings import take_warnings
from megatron_cpt.train.optimizer import build_optimizer

RANKS = 2


def main() -> None:
    """Starts the ranks, prints their table and the result."""
    words = arguments()
    if "RANK" in os.environ:
        measure(words, Path(os.environ["CHECKPOINT_BENCHMARK"]))
        return
    with tempfile.TemporaryDirectory() as name:
        threads = {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        environment = threads | os.environ | {"CHECKPOINT_BENCHMARK": name}
        subprocess.run([*command, *sys.argv], env=environment, stdout=sys.stderr, check=True)
        rows = orjson.loads((Path(name) / "rows.json").read_bytes())
    print(
        f"{'optimizer':<12} {'sharding':<17} {'MB':>6} {'synchronous':>12} {'asynchronous':>13} {'of it gathering':>16}"
        f" {'plain writing':>14}"
    )
    for row in rows:
        print(
            f"{row['optimizer']:<12} {row['sharding']:<17} {row['megabytes']:6.0f} {row['synchronous']:10.2f} s"
            f" {row['asynchronous']:11.2f} s {row['gathering']:14.2f} s {row['plain_writing']:12.2f} s"
        )
    ratio = max(row["asynchronous"] / row["synchronous"] for row in rows if row["sharding"] == FREQUENT)
    details = {"rows": rows, "ranks": RANKS, "machine": machine(), "load": round(os.getloadavg()[0], 1)}
    print_result("checkpoint", ratio, "a synchronous save of the same state", details)


def arguments() -> argparse.Namespace:
    """Sizes, on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--saves", type=int, default=3, help="saves of each kind (default 3)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    return parser.parse_args()


def measure(words: argparse.Namespace, folder: Path) -> None:
    """Job of each rank: all saves; rank 0 writes the rows."""
    take_warnings(lambda line: None)
    groups.init_process_group()
    rows = []
    for distributed in (False, True):
        config = run_config(folder, distributed)
        groups.init_model_parallel(config.parallel)
        seed_everything(1)
        options = ModelOptions.of_run(config)
        model = wrap_for_training(build_model(shape_of(words.layers, words.hidden), options), options)
        optimizer = build_optimizer(model, config.optimizer, config.schedule.peak_lr)
        layout = Layout(RANKS, 1, 1, distributed)
        for sharding in (FREQUENT, KEPT):
            writer = CheckpointWriter(folder / "checkpoints")
            save(writer, model, optimizer, position(sharding, layout), folder, wait=True)  # starts the helper process
            row: dict[str, Any] = {"optimizer": "distributed" if distributed else "plain", "sharding": sharding}
            for name, wait in (("synchronous", True), ("asynchronous", False)):
                times = [
                    save(writer, model, optimizer, position(sharding, layout), folder, wait) for _ in range(words.saves)
                ]
                row[name] = median(times)
            row["gathering"] = median(gather(model, optimizer, sharding) for _ in range(words.saves))
            row["plain_writing"], row["megabytes"] = write_as_much(folder / "checkpoints")
            rows.append(row)
            barrier()
            if groups.rank() == 0:
                shutil.rmtree(folder / "checkpoints")
            barrier()
    if groups.rank() == 0:
        (folder / "rows.json").write_bytes(orjson.dumps(rows))
    groups.destroy()


def save(
    writer: CheckpointWriter, model: Any, optimizer: Any, where: CheckpointState, folder: Path, wait: bool
) -> float:
    """Seconds that training would have waited for one save."""
    barrier()
    started = time.perf_counter()
    writer.begin(unwrap(model), optimizer, where, folder, TensorDtypes(None), {})
    if wait:
        writer.finish(wait=True)
    seconds = time.perf_counter() - started
    writer.finish(wait=True)
    return seconds


def gather(model: Any, optimizer: Any, sharding: str) -> float:
    """Seconds in which the state of model and optimizer is laid out, before anything is planned or written."""
    barrier()
    started = time.perf_counter()
    content = model_state(unwrap(model))
    optimizer_state(optimizer, dict(content), sharding)
    return time.perf_counter() - started


def write_as_much(checkpoints: Path) -> tuple[float, float]:
    """Seconds in which the ranks write and fsync as many bytes as they did, and the megabytes of all."""
    [shards] = checkpoints.glob("*/shards")
    own = sum(path.stat().st_size for path in shards.glob(f"__{groups.rank()}_*"))
    content = os.urandom(own)
    barrier()
    started = time.perf_counter()
    with (shards / f"plain-{groups.rank()}").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    barrier()
    seconds = time.perf_counter() - started
    total = torch.tensor(float(own))
    dist.all_reduce(total)
    return seconds, float(total) / 1e6


def position(sharding: str, layout: Layout) -> CheckpointState:
    """A position; nothing depends on it but the sharding."""
    return CheckpointState(1, 1, 1, {}, "", {}, layout, sharding)


def run_config(folder: Path, distributed: bool) -> Any:
    """A run of two replicas."""
    return config_from_dict(
        {
            "run": {"folder": str(folder / "run")},
            "model": {"hf": str(folder), "weights": "random"},
            "data": {"sequence_length": 128, "sources": {"text": {"paths": ["none"]}}},
            "training": {"tokens": "1 steps", "global_batch_size": RANKS, "precision": "fp32"},
            "schedule": {"kind": "constant", "peak_lr": 1e-4},
            "parallel": {"distributed_optimizer": distributed},
        }
    )


def shape_of(layers: int, hidden: int) -> ModelShape:
    """A Llama."""
    return ModelShape(
        family="llama",
        layers=layers,
        hidden=hidden,
        ffn_hidden=hidden * 11 // 4,
        heads=hidden // 64,
        query_groups=hidden // 64,
        head_dim=64,
        vocabulary=16384,
        max_positions=128,
        norm_epsilon=1e-5,
        rope_base=10000.0,
        tied_embeddings=True,
    )


if __name__ == "__main__":
    main()
