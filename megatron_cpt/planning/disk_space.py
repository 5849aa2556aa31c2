"""Whether the folder of a run can be written to, and how much room checkpoints and exports take in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.planning.text_tables import size
from megatron_cpt.runs.folder import RunFolder

_STATE_BYTES = {"fp32": 12, "bf16": 14}
"""Of a checkpoint, a parameter: weights, two fp32 moments and, with bf16, the fp32 main parameter."""
_EXPORT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class DiskEstimate:
    """Room that a run takes on the disk, at most and about."""

    checkpoints: int
    """Checkpoints that lie there at once, the one that is being written among them."""
    checkpoint_bytes: int
    """Bytes of one."""
    exports: int
    """Hugging Face folders."""
    export_bytes: int
    """Bytes of one."""

    @property
    def total(self) -> int:
        """Bytes of all of them."""
        return self.checkpoints * self.checkpoint_bytes + self.exports * self.export_bytes

    @property
    def words(self) -> str:
        """`5 checkpoints of 1.20 GiB and 1 export of 400.00 MiB`."""
        exports = f" and {_count(self.exports, 'export')} of {size(self.export_bytes)}" if self.exports else ""
        return f"{_count(self.checkpoints, 'checkpoint')} of {size(self.checkpoint_bytes)}{exports}"


def disk_estimate(config: RunConfig, parameters: int, first_step: int = 0) -> DiskEstimate:
    """What a run from the step after `first_step` on leaves and keeps, of a model of so many parameters.

    Frozen parts have no moments, so that theirs are less.
    """
    settings, steps, tokens = config.checkpoint, config.total_steps - first_step, config.tokens_per_step
    saves = 1 if settings.save_interval is None else -(-steps // settings.save_interval.steps(tokens))
    kept = settings.keep_last + 1
    if keep_every := settings.keep_every_steps(tokens):
        kept += steps // keep_every
    kept += settings.keep_best is not None
    export = settings.export_hf
    exports = 0 if export is None else export.end + (steps // export.every.steps(tokens) if export.every else 0)
    weight = _EXPORT_BYTES.get(export.dtype or "", 0) if export is not None else 0
    return DiskEstimate(
        checkpoints=min(saves, kept),
        checkpoint_bytes=_STATE_BYTES[config.training.precision] * parameters,
        exports=exports,
        export_bytes=weight * parameters or _weight_files(Path(config.model.hf)) or 2 * parameters,
    )


def disk_warnings(config: RunConfig, estimate: DiskEstimate) -> Iterator[str]:
    """A disk that will be full before the run ends. What an earlier start of the run has left is counted."""
    folder = RunFolder(config.run.folder)
    free = shutil.disk_usage(_existing(folder.path)).free
    there = sum(map(_tree_bytes, (folder.checkpoints, folder.hf, folder.hf.with_name("hf_steps"))))
    if estimate.total - there > free:
        held = f" beside the {size(there)} that it holds" if there else ""
        yield (
            f"run.folder = {folder.path}: {estimate.words} need about {size(estimate.total)}, and {size(free)} are "
            f"free{held}. The run will end when the disk is full: free room, keep fewer (checkpoint.keep_last, "
            "keep_every), or name another folder."
        )


def folder_faults(config: RunConfig) -> Iterator[Fault]:
    """A run folder that cannot be made or written to."""
    shown, place = f"run.folder = {config.run.folder}", _existing(Path(config.run.folder))
    if not place.is_dir():
        yield Fault(shown, f"{place} is a file.", "Name a folder.")
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Fault(shown, f"{place} cannot be written to from here.", "Name another folder, or ask for the right to.")


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _tree_bytes(folder: Path) -> int:
    found = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a run that goes on removes checkpoints
                found += os.stat(os.path.join(path, name)).st_size
    return found


def _weight_files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
