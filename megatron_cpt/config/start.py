"""The section `start`: what a run takes from another run's checkpoint."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from megatron_cpt.config.strict import STRICT


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """What a new run takes from another run's checkpoint, each switch by itself.

    Once it has a checkpoint of its own, a run goes on from that.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    checkpoint: str | None = None
    """Where the weights come from: RUN/checkpoints/step-N, or a checkpoint that `convert from-hf` wrote.
    None: `model.weights` says."""
    optimizer: Literal["fresh", "kept"] = "fresh"
    """Adam's moments and, with bf16, the fp32 main weights."""
    schedule: Literal["new", "kept"] = "new"
    """kept: `schedule` goes on at the tokens that the checkpoint was trained on; `new` begins it at 0. A final decay
    of a kept schedule may not be longer than the run (docs/schedules.md has a recipe)."""
    data: Literal["new", "kept"] = "new"
    """kept: steps, tokens and the data order go on counting where the checkpoint stood, with the random states;
    `training.tokens` then counts from the beginning of the run that wrote it, and evaluation marks count from the
    checkpoint. The sources must be the same."""
