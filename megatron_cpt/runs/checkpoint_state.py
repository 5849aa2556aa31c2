"""Where a run was when a checkpoint was written: position.json, all of a checkpoint that is not tensors.

The plan and the training program read it here alike. This file imports no torch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.config.errors import IntegrityFault

MARKER = "complete.json"

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


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint; names sort by step."""
    return f"step-{step:08}"


def is_complete(checkpoint: Path) -> bool:
    """Whether a folder is a whole checkpoint."""
    return (checkpoint / MARKER).is_file()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if is_complete(path))


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
        return CheckpointState(**{**values, "layout": Layout(**values["layout"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityFault(f"{checkpoint / 'position.json'}: not a readable position ({error})") from error


def _present_part(name: str, value: Any) -> tuple[str, Any]:
    """A part of `CheckpointState.parts` by its present names."""
    if name == "optimizer.rates":
        layers = [{_RENAMED.get(key, key): one for key, one in layer.items()} for layer in value["layers"]]
        value = {**value, "layers": layers}
    return _RENAMED.get(name, name), value
