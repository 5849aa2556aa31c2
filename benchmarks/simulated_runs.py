"""Large runs, simulated without a GPU: peak, waits of the host, collectives, and estimates of speed (docs/gpu.md).

    python benchmarks/simulated_runs.py [NAME ...]

Each row is `megatron-cpt plan RUN.yaml --simulate --nproc N` on a config.json alone. The ratio is the closed estimate
of memory in `plan` over the simulated peak, of the run where they differ most.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from machine import machine, print_result

from megatron_cpt.config.load import load_config
from megatron_cpt.families.memory import memory_per_rank
from megatron_cpt.families.shape import read_shape
from megatron_cpt.planning.text_tables import columns

GIB = 2**30


@dataclass(frozen=True)
class Run:
    """A run to simulate."""

    ranks: int
    model: dict[str, Any]
    length: int
    batch: int
    parallel: dict[str, Any]


_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_SHARDED = {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
RUNS = {
    "llama-8b": Run(
        8,
        _LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        8192,
        128,
        _SHARDED | {"tensor": 2, "sequence": True},
    ),
    "llama-70b": Run(
        1024,
        _LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
        8192,
        1024,
        _SHARDED | {"tensor": 8, "sequence": True, "pipeline": 4, "virtual_pipeline": 5},
    ),
    "mixtral-8x7b": Run(
        64,
        {
            "model_type": "mixtral",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 32768,
            "rope_theta": 1e6,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        4096,
        256,
        _SHARDED | {"expert": 8, "pipeline": 4},
    ),
    "qwen3-30b-a3b": Run(
        32,
        {
            "model_type": "qwen3_moe",
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "max_position_embeddings": 40960,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
        },
        4096,
        256,
        _SHARDED | {"expert": 8},
    ),
}


def simulate(run: Run, folder: Path, gpu: str) -> dict[str, Any]:
    """What `plan --simulate --json` says, with the closed estimate and the time that it took beside it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(run.model))
    path = folder / "run.yaml"
    settings = {
        "run": {"folder": "run"},
        "model": {"hf": str(folder)},
        "data": {"sequence_length": run.length, "sources": {"text": {"paths": ["none"]}}},
        "training": {"tokens": "1000 steps", "global_batch_size": run.batch},
        "schedule": {"kind": "constant", "peak_lr": 1e-5},
        "parallel": run.parallel,
    }
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "plan", str(path), "--simulate", "--json"]
    started = time.perf_counter()
    ended = subprocess.run([*command, "--nproc", str(run.ranks), "--gpu", gpu], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(ended.stdout)
    closed = memory_per_rank(read_shape(folder), load_config(path), run.ranks).total
    return found | {"closed_bytes": closed, "simulated_in_seconds": time.perf_counter() - started}


def row(name: str, run: Run, found: dict[str, Any]) -> list[str]:
    """A line of the table: counts of the fullest rank, time of the slowest."""
    rank = max(found["ranks"], key=lambda one: sum(one["memory"].values()))
    layout = ", ".join(f"{key} {value}" for key, value in run.parallel.items() if value is not True)
    return [
        name,
        str(run.ranks),
        layout or "data",
        f"{found['peak_bytes'] / GIB:.1f}",
        f"{found['closed_bytes'] / found['peak_bytes'] - 1:+.1%}",
        f"{sum(line['count'] for line in rank['step']['syncs']):,}",
        f"{sum(one['calls'] for one in rank['step']['transfers']):,}",
        f"{sum(one['bytes'] for one in rank['step']['transfers']) / GIB:,.0f}",
        f"{found['estimate']['bubble'] / found['step_seconds']:.1%}",
        f"{found['step_seconds']:.1f}",
        f"{found['mfu']:.0%}",
        f"{found['simulated_in_seconds']:.0f}",
    ]


def main() -> None:
    """Simulates the runs one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)} (default: all)")
    parser.add_argument("--gpu", default="H100-80GB")
    options = parser.parse_args()
    if unknown := set(options.names) - set(RUNS):
        parser.error(f"no run is named {', '.join(sorted(unknown))}: there are {', '.join(RUNS)}")
    print(machine())
    heading = ["run", "ranks", "layout", "peak GiB", "closed", "waits", "collectives", "their GiB", "bubble", "step s"]
    found, rows = {}, [[*heading, "MFU", "simulated in s"]]
    with tempfile.TemporaryDirectory() as root:
        for name in options.names or RUNS:
            found[name] = simulate(RUNS[name], Path(root) / name, options.gpu)
            rows.append(row(name, RUNS[name], found[name]))
            print(*rows[-1], sep=", ", file=sys.stderr, flush=True)
    print("\n".join(columns(rows, "lrl" + "r" * 9)))
    ratios = {name: one["closed_bytes"] / one["peak_bytes"] for name, one in found.items()}
    worst = max(ratios.values(), key=lambda ratio: abs(ratio - 1))
    print_result("simulated_runs", worst, "simulated peak", {"ratios": ratios})


if __name__ == "__main__":
    main()
