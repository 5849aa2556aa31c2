"""Which folders are checkpoints, whether they hold what was written, and where the run was: all that is not tensors.

The plan and the training program read it here alike. This file imports no torch.

The marker of a checkpoint names every file with its hash, and has a hash over these. What describes a checkpoint is
compared with it before it is read. This finds accidents: who can write the files can write the hashes.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.runs.folder import file_sha256, read_json_object, write_checked_json
from megatron_cpt.runs.records import RecordsDigest

MARKER = "complete.json"
_HASHES = "sha256"

# dp_reshardable is cheap and loads into another data-parallel size at most; fully_reshardable gathers a shard's
# optimizer on one rank and loads into any layout. The default of Megatron-Core 0.16.1 cannot be saved at all.
FREQUENT, KEPT = "dp_reshardable", "fully_reshardable"


# Names in a position.json of version 0.1, and the present ones.
_RENAMED = {
    "begun_at": "first_own_step",
    "left_out": "skipped_ranges",
    "left_out_in_a_row": "skipped_in_a_row",
    "optimizer.rates": "optimizer.lr_multipliers",
    "optimizer.undecayed": "optimizer.no_weight_decay",
    "rate": "multiplier",
}


@dataclass(frozen=True)
class Layout:
    """How the ranks that wrote a checkpoint shared the model."""

    world: int
    """Ranks."""
    tensor: int
    """Tensor-parallel size."""
    pipeline: int
    """Pipeline stages."""
    distributed_optimizer: bool
    """Whether optimizer state was sharded over replicas."""
    virtual_pipeline: int = 1
    """Model chunks of a stage."""
    context: int = 1
    """Ranks that shared a sequence."""
    expert: int = 1
    """Ranks that shared the experts of a layer."""

    def __str__(self) -> str:
        optimizer = "a distributed" if self.distributed_optimizer else "a plain"
        further = {"chunks of a stage": self.virtual_pipeline, "context": self.context, "expert": self.expert}
        sizes = "".join(f", {name} {size}" for name, size in further.items() if size > 1)
        return f"{self.world} ranks, tensor {self.tensor}, pipeline {self.pipeline}{sizes}, {optimizer} optimizer"

    @property
    def model_sizes(self) -> tuple[int, ...]:
        """What decides which parameters a rank holds."""
        return self.tensor, self.pipeline, self.virtual_pipeline, self.expert


@dataclass(frozen=True)
class CheckpointState:
    """Where a run was when a checkpoint was written."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens trained."""
    sequences: int
    """Sequences of the order consumed: the whole data state."""
    order: dict[str, Any]
    """What decided those sequences: datasets, phases, sequence length, seed (BlendPlan.describe)."""
    order_fingerprint: str
    """Hash of that."""
    source_sequences: dict[str, int]
    """Sequences of each source among them, as a check."""
    layout: Layout
    """The ranks that wrote it."""
    sharding: str
    """How optimizer state is laid out: dp_reshardable or fully_reshardable."""
    validation: dict[str, float] = field(default_factory=dict)
    """Losses of the validation sets at this very step, nats per token, by name."""
    skipped_ranges: list[list[int]] = field(default_factory=list)
    """Ranges of the order, [first sequence, end), that no update was made of: skipped, or rewound over."""
    skipped_in_a_row: int = 0
    """Steps left out since the last update."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the last updates, by which spikes are judged."""
    parts: dict[str, Any] | None = None
    """What was trained, and in which groups: `model.frozen`, `optimizer.lr_multipliers` and
    `optimizer.no_weight_decay`. None: an older checkpoint, which does not say."""
    first_own_step: int = 0
    """Steps done when the run began: more than 0 where it went on counting another run's."""
    schedule_shift: int = 0
    """Tokens by which the schedule is ahead of the run's own count: more than 0 where it goes on from another run."""
    batches: dict[str, Any] | None = None
    """`training.global_batch_size` and `training.batch_size_rampup`, by which the steps are counted. None: an older
    checkpoint."""
    measures: dict[str, str] | None = None
    """Identity of every validation set and task, by its name in messages. None: an older checkpoint."""
    datasets: dict[str, list[dict[str, Any]]] | None = None
    """What the datasets were known by, by the setting that names them (planning/known_datasets.py). None: an older
    checkpoint."""
    records: RecordsDigest | None = None
    """The records up to this step. None: an older checkpoint."""
    updates: int | None = None
    """Updates that Adam counts, where another program made them: the shards then hold main weights and moments alone,
    and the order of the data is that program's. None: the run's own, which are in the shards."""


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:08}"


def step_of(path: Path) -> int | None:
    """The step in a name that `checkpoint_name` gives; None for any other, such as `step-00000008.bak`."""
    match = re.fullmatch(r"step-([0-9]{8,18})", path.name)
    return int(match[1]) if match is not None and checkpoint_name(int(match[1])) == path.name else None


def step_folders(folder: Path) -> dict[int, Path]:
    """The folders that the program has named by steps, ascending; links and other names are not its own."""
    named = {step: path for path in folder.glob("step-*") if (step := step_of(path)) is not None}
    return {step: path for step, path in sorted(named.items()) if path.is_dir() and not path.is_symlink()}


def is_complete(checkpoint: Path) -> bool:
    """Whether a folder is a whole checkpoint."""
    return (checkpoint / MARKER).is_file()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return [path for path in step_folders(folder).values() if is_complete(path)]


def foreign_names(folder: Path) -> list[str]:
    """What is in a folder of checkpoints and was not made by the program: it is left alone."""
    own = set(step_folders(folder).values())
    return sorted(path.name for path in folder.glob("*") if path not in own and not path.name.startswith("."))


def write_marker(checkpoint: Path, hashes: Mapping[str, str]) -> None:
    """Makes a folder a whole checkpoint."""
    write_checked_json(checkpoint / MARKER, {_HASHES: dict(sorted(hashes.items()))})


def read_hashes(checkpoint: Path) -> dict[str, str]:
    """The hashes in the marker, by file name relative to the checkpoint. Raises IntegrityFault."""
    marker = checkpoint / MARKER
    try:
        content = read_json_object(marker) or {}
        hashes = content.pop(_HASHES)
        names = [Path(name) for name in hashes]
    except (OSError, KeyError, TypeError, IntegrityFault) as error:
        raise IntegrityFault(f"{marker}: not a readable marker ({error}). {_WAYS_OUT}") from error
    outside = [str(name) for name in names if name.is_absolute() or ".." in name.parts]
    if outside or not hashes:
        raise IntegrityFault(f"{marker}: names no files, or files outside the checkpoint: {outside}. {_WAYS_OUT}")
    if content:
        raise IntegrityFault(f"{marker}: changed since it was written: {', '.join(content)}. {_WAYS_OUT}")
    return dict(hashes)


_WAYS_OUT = "Restore what was there, or remove this folder to go on from an earlier checkpoint."


def refuse_altered(checkpoint: Path, altered: Iterable[str]) -> None:
    """Raises IntegrityFault where there are names of files that are not those that were written."""
    if names := ", ".join(altered):
        raise IntegrityFault(f"{checkpoint}: files missing or changed since they were written: {names}. {_WAYS_OUT}")


def verify_description(checkpoint: Path) -> None:
    """Compares the files of a checkpoint with its marker: their names, and the bytes of all but the shards.

    Cheap: for whoever is to read one of them.

    Raises:
        IntegrityFault: one is missing, changed, or was not written with it.
    """
    hashes = read_hashes(checkpoint)
    shards = {name for name in hashes if name.endswith(".distcp")}
    refuse_altered(checkpoint, (name for name in shards if not (checkpoint / name).is_file()))
    small = ((name, digest) for name, digest in hashes.items() if name not in shards)
    refuse_altered(checkpoint, (name for name, digest in small if not is_intact(checkpoint / name, digest)))
    extra = sorted(_names(checkpoint) - {*hashes, MARKER})
    if extra:
        raise IntegrityFault(
            f"{checkpoint}: files that were not written with it: {', '.join(extra)}. Move them out of the folder."
        )


def hf_folder_of(source: Path) -> Path:
    """The folder that says what model is in a checkpoint or in a Hugging Face folder. Raises as verify_description."""
    if not is_complete(source):
        return source
    verify_description(source)
    return source / "hf"


def is_intact(path: Path, digest: str) -> bool:
    """Whether a file is there with the bytes that were written."""
    try:
        return file_sha256(path) == digest
    except OSError:
        return False


def _names(checkpoint: Path) -> set[str]:
    """All files below a folder, those apart that NFS keeps of open files without a name."""
    return {
        os.path.relpath(os.path.join(place, name), checkpoint)
        for place, _, names in os.walk(checkpoint)
        for name in names
        if not name.startswith(".nfs")
    }


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where it has none."""
    return next(reversed(complete_checkpoints(folder)), None)


def find_state(checkpoint: Path) -> CheckpointState | None:
    """The state in a checkpoint; None where it holds weights alone, which no run wrote. Raises IntegrityFault."""
    return read_state(checkpoint) if (checkpoint / "position.json").is_file() else None


def without_optimizer(checkpoint: Path) -> str:
    """What a new run says to go on with everything of a checkpoint but its optimizer state."""
    return f"`init_from: {{checkpoint: {checkpoint}, load_schedule: true, load_data_position: true}}`"


def read_state(checkpoint: Path) -> CheckpointState:
    """The state in a checkpoint, also in one of version 0.1. Raises IntegrityFault."""
    try:
        values = orjson.loads((checkpoint / "position.json").read_bytes())
        values = {_RENAMED.get(name, name): value for name, value in values.items()}
        if values.get("parts") is not None:
            values["parts"] = dict(_present_part(*part) for part in values["parts"].items())
        if values.get("records") is not None:
            values["records"] = RecordsDigest(**values["records"])
        return CheckpointState(**{**values, "layout": Layout(**values["layout"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityFault(f"{checkpoint / 'position.json'}: not a readable position ({error})") from error


def _present_part(name: str, value: Any) -> tuple[str, Any]:
    """A part of `CheckpointState.parts` by its present names."""
    if name == "optimizer.rates":
        layers = [{_RENAMED.get(key, key): one for key, one in layer.items()} for layer in value["layers"]]
        value = {**value, "layers": layers}
    return _RENAMED.get(name, name), value
