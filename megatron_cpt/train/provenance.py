"""What a run came from and what it was made with: lineage.json and versions.json."""

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
import torch

from megatron_cpt.config.schedule import annealing_area, forward_area, learning_rate
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.model.specs import choose_kernels

PACKAGES = ("megatron-cpt", "torch", "megatron-core", "numpy", "transformers", "tokenizers", "transformer-engine")
HISTORY = ("forward_area", "annealing_area", "peak_learning_rate", "final_learning_rate", "tokens")


def versions() -> dict[str, Any]:
    """Versions of what computes, the machine and the kernels."""
    return {
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "machine": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": asdict(choose_kernels()),
    }


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def lineage(config: RunConfig, steps: int) -> dict[str, Any]:
    """The parent of a run and the learning-rate history of both, which the laws of CPT loss need.

    forward_area is S1 and annealing_area S2 of arXiv:2408.11029 (Eq. 1 of arXiv:2505.07796) over all updates
    of the run; the parent's figures come from the lineage.json that our exports carry, and are null elsewhere.

    Args:
        steps: updates that the plan gives the run; fewer than configured where an exhausted source ends it.
    """
    per_step = config.tokens_per_step
    rates = [
        learning_rate(config.schedule, step * per_step, config.total_tokens, per_step) for step in range(1, steps + 1)
    ]
    parent = read_history(Path(config.model.hf)) if config.model.weights == "hf" else {}
    own = {
        "forward_area": forward_area(rates),
        "annealing_area": annealing_area(rates, previous_rate=parent.get("final_learning_rate")),
        "peak_learning_rate": max(rates),
        "final_learning_rate": rates[-1],
        "tokens": steps * per_step,
    }
    return {"parent": config.model.hf} | {f"parent_{name}": parent.get(name) for name in HISTORY} | own


def read_history(folder: Path) -> dict[str, Any]:
    """The learning-rate history that an export carries, empty for a model made elsewhere."""
    path = folder / "lineage.json"
    return orjson.loads(path.read_bytes()) if path.is_file() else {}
