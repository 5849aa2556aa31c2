"""Where a run was when a checkpoint was written, in JSON: all of a checkpoint that is not tensors."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.checkpoint.integrity import is_complete
from megatron_cpt.config.errors import Fault, IntegrityFault

# dp_reshardable is cheap and loads into another data-parallel size at most; fully_reshardable gathers a shard's
# optimizer on one rank and loads into any layout. The default of Megatron-Core 0.16.1 cannot be saved at all.
FREQUENT, KEPT = "dp_reshardable", "fully_reshardable"


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
class Position:
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
    left_out: list[list[int]] = field(default_factory=list)
    """Ranges of the order, [first sequence, end), that no update was made of: skipped, or rewound over."""
    left_out_in_a_row: int = 0
    """Steps left out since the last update."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the last updates, by which spikes are judged."""
    parts: dict[str, Any] | None = None
    """What was trained, and in which groups: `model.frozen`, `optimizer.rates` and `optimizer.undecayed`. None: an
    older checkpoint, which does not say."""
    begun_at: int = 0
    """Steps done when the run began: more than 0 where it went on counting another run's."""
    schedule_shift: int = 0
    """Tokens by which the schedule is ahead of the run's own count: more than 0 where it goes on from another run."""
    batches: dict[str, Any] | None = None
    """`training.global_batch_size` and `training.batch_ramp`, by which the steps are counted. None: an older
    checkpoint."""
    measures: dict[str, str] | None = None
    """Identity of every validation set and task, by its name in messages. None: an older checkpoint."""


def layout_faults(checkpoint: Path, position: Position, now: Layout) -> list[Fault]:
    """Why the optimizer state of a checkpoint does not load into a layout: at most one fault."""
    before = position.layout
    shown = f"{checkpoint}: written by {before}; this run has {now}"
    if before.distributed_optimizer != now.distributed_optimizer:
        rule = "the state of one kind of optimizer cannot be turned into that of the other."
        setting = f"parallel.distributed_optimizer={str(before.distributed_optimizer).lower()}"
        return [Fault(shown, rule, f"Go on with {setting}.")]
    model_differs = before.model_sizes != now.model_sizes
    if before.distributed_optimizer and position.sharding == FREQUENT and model_differs:
        rule = f"optimizer state saved as {FREQUENT} loads with the same tensor and pipeline sizes alone."
        remedy = (
            f"Go on from a checkpoint saved as {KEPT} (a run's last, those at multiples of `checkpoint.keep_every`)"
            " by moving the later ones away, or go on with the old sizes until the next of these."
        )
        return [Fault(shown, rule, remedy)]
    return []


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint; names sort by step."""
    return f"step-{step:08}"


def complete_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if is_complete(path))


def read_position(checkpoint: Path) -> Position:
    """The position in a checkpoint. Raises IntegrityFault."""
    try:
        values = orjson.loads((checkpoint / "position.json").read_bytes())
        return Position(**{**values, "layout": Layout(**values["layout"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityFault(f"{checkpoint / 'position.json'}: not a readable position ({error})") from error
