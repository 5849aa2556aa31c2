"""What every benchmark prints of the machine, and its last line.

Benchmarks import this file first: the CPU platform must come before any megatron import.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import megatron_cpt.parallel  # noqa: F401


def machine() -> str:
    """The processor, its cores that we may use, and torch, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {len(os.sched_getaffinity(0))} cores{gpu}, torch {torch.__version__}"


def print_result(benchmark: str, ratio: float, baseline: str, details: dict[str, Any]) -> None:
    """The last line of standard output: one JSON object."""
    print(json.dumps({"benchmark": benchmark, "ratio": round(ratio, 4), "baseline": baseline, "details": details}))
