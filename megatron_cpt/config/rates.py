"""The section `schedule`: the learning rate as a function of tokens trained."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from megatron_cpt.config.strict import STRICT
from megatron_cpt.config.units import NotNegative, Positive, Span

DecayShape = Literal["linear", "cosine", "exponential", "1-sqrt"]


@dataclass(frozen=True, kw_only=True)
class StairSettings:
    """A step of the learning rate."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    from_tokens: Span
    """Tokens, or steps, trained before it."""
    rate: NotNegative
    """The learning rate from there on."""


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate as a function of tokens trained (docs/schedules.md shows each kind)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    kind: Literal["constant", "linear", "cosine", "wsd", "infinite", "stairs"] = "cosine"
    """Shape after warm-up. wsd: stable, decay. infinite: cool down to `plateau`, stay, decay. stairs: as listed."""
    peak: Positive
    """Peak learning rate."""
    final: NotNegative = 0.0
    """Learning rate at the end of the run (not used by `constant` and `stairs`)."""
    initial: NotNegative = 0.0
    """Where the warm-up begins, such as the base run's final rate."""
    warmup: Span | None = None
    """Length of the linear warm-up, in tokens or steps. None: none."""
    decay: Span | None = None
    """wsd and infinite: length of the final decay, in tokens or steps. None: a tenth of the run."""
    decay_shape: DecayShape | None = None
    """wsd and infinite: shape of the final decay. None: linear for wsd, exponential for infinite."""
    cooldown: Span | None = None
    """infinite: length of the way from `peak` to `plateau`, in tokens or steps."""
    plateau: Positive | None = None
    """infinite: the rate that stays until the final decay."""
    stairs: list[StairSettings] = field(default_factory=list)
    """stairs: drops (or rises) of the rate, in the order of training."""
