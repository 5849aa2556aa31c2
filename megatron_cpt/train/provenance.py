"""What a run came from and what it was made with: lineage.json and versions.json."""

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
import torch

from megatron_cpt.checkpoint.position import complete_checkpoints
from megatron_cpt.config.load import dump_config
from megatron_cpt.config.schedule import Areas, learning_rate
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.planning.resume_changes import ResumeChanges
from megatron_cpt.runs.durable import write_durably
from megatron_cpt.train.assemble import Run
from megatron_cpt.train.kernels import Kernels

PACKAGES = ("megatron-cpt", "torch", "megatron-core", "numpy", "transformers", "tokenizers", "transformer-engine")
HISTORY = ("forward_area", "annealing_area", "peak_learning_rate", "final_learning_rate", "tokens")


def versions(kernels: Kernels) -> dict[str, Any]:
    """Versions of what computes, the machine and the kernels."""
    return {
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "machine": platform.platform(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels": asdict(kernels),
    }


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def keep_config(run: Run, changes: ResumeChanges) -> None:
    """Writes the configuration of this start, beside those with which the steps before were made.

    Starts that changed nothing share a file; those whose steps are done again lose theirs, as records do.
    """
    folder, first, text = run.folder, run.first_step, dump_config(run.config)
    kept = folder.configs()
    if not kept and first > run.beginning.begun_at and folder.config.is_file():
        # An older version kept the last alone.
        write_durably(folder.config_from(run.beginning.begun_at), folder.config.read_bytes())
        kept = folder.configs()
    for step in [step for step in kept if step >= first]:
        kept.pop(step).unlink()
    if not kept or changes.changes or changes.unknown:
        write_durably(folder.config_from(first), text)
    write_durably(folder.config, text)


def run_lineage(run: Run, step: int) -> dict[str, Any]:
    """The parent of a run and the learning-rate history of both, which the laws of CPT loss need.

    forward_area is S1 and annealing_area S2 of arXiv:2408.11029 (Eq. 1 of arXiv:2505.07796) over all updates
    of the run; the parent's figures come from the lineage.json that our exports and checkpoints carry, and are null
    elsewhere. The run's sums go on from where they were asked for last.

    Args:
        step: the last step told of: with none of the run's own, its figures are 0 and its rates null.
    """
    config, begun_at, shift = run.config, run.beginning.begun_at, run.beginning.schedule_shift
    size, consumed = config.tokens_per_step, config.token_batches.total
    folder = parent_folder(config)
    parent = read_history(folder) if folder is not None else {}
    areas = run.areas if run.areas.updates <= step - begun_at else Areas()
    if not areas.updates:
        areas.before = parent.get("final_learning_rate")
    for one in range(begun_at + areas.updates + 1, step + 1):
        areas.add(learning_rate(config.schedule, consumed(one) + shift, config.total_tokens + shift, size))
    own = {
        "forward_area": areas.forward,
        "annealing_area": areas.annealing,
        "peak_learning_rate": areas.peak,
        "final_learning_rate": areas.final,
        "tokens": consumed(step) - consumed(begun_at),
    }
    shown = config.start.checkpoint or config.model.hf
    return {"parent": shown} | {f"parent_{name}": parent.get(name) for name in HISTORY} | own


def changed_rate(run: Run) -> str | None:
    """A sentence, where the last step before a resume was trained at another rate than the schedule now says."""
    checkpoints = complete_checkpoints(run.folder.checkpoints)
    if not checkpoints:
        return None
    before = read_history(checkpoints[-1] / "hf").get("final_learning_rate")
    now = run_lineage(run, run.first_step)["final_learning_rate"]
    if before is None or before == now:
        return None
    return (
        f"the schedule has changed: step {run.first_step} was trained at rate {before:.6g}, and would now be at"
        f" {now:.6g}; the rate jumps there, and lineage.json tells of the schedule as it is now"
    )


def parent_folder(config: RunConfig) -> Path | None:
    """The Hugging Face folder of the weights that a run starts from; None where they are drawn at random."""
    if config.start.checkpoint is not None:
        return Path(config.start.checkpoint) / "hf"
    return Path(config.model.hf) if config.model.weights == "hf" else None


def read_history(folder: Path) -> dict[str, Any]:
    """The learning-rate history that an export carries, empty for a model made elsewhere."""
    path = folder / "lineage.json"
    return orjson.loads(path.read_bytes()) if path.is_file() else {}
