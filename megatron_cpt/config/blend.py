"""The section `data` of a run: sources of training text, their shares, and phases with other shares.

Shares are computed in mixture/shares.py, phases in mixture/phases.py; docs/configuration.md is written from this file.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import ConfigDict

from megatron_cpt.config.strict import STRICT
from megatron_cpt.config.units import Count, NotNegative, Positive, Share, SpanOrZero


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One source of training text: datasets and selections read as one stream."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    paths: list[str]
    """Dataset prefixes, selections (`NAME.selection.json`) or globs of either."""
    role: Literal["domain", "replay"] = "domain"
    """`domain`: what is learnt; `replay`: what the model knew. `data.replay_ratio` divides the run among them."""
    weight: NotNegative = 1.0
    """Share relative to the other sources of its role, or, without a replay ratio, to all sources."""
    max_epochs: Positive | None = None
    """Passes over the source that the run may make; `data.when_exhausted` says what happens beyond."""


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """A stretch of training with a blend of its own. What it leaves out is that of `data`.

    A run goes on with phases appended that begin after what it has trained on: every source goes on where it stood.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    from_tokens: SpanOrZero
    """Where it begins, in tokens or steps, rounded to whole steps; it lasts until the next. The first begins at 0."""
    replay_ratio: Share | None = None
    """Share of its tokens that `replay` sources give. None: `data.replay_ratio`."""
    weights: dict[str, NotNegative] = field(default_factory=dict)
    """Weights by the name of the source. A source that is not named keeps the weight it has in `data.sources`."""

    def first_step(self, tokens_per_step: int) -> int:
        """Steps before the phase begins."""
        return self.from_tokens.steps(tokens_per_step) if self.from_tokens.amount else 0


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The blend of training sources."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    sequence_length: Count
    """Tokens of a training sequence."""
    sources: dict[str, SourceSettings]
    """The sources by name. The name is part of the order: a renamed source is another source."""
    replay_ratio: Share | None = None
    """Share of all training tokens that `replay` sources give. None: weights alone decide."""
    phases: list[PhaseSettings] = field(default_factory=list)
    """Stretches of training with other blends. Empty: one blend for the whole run."""
    when_exhausted: Literal["error", "redistribute", "stop"] = "error"
    """When a source reaches its `max_epochs`: the run is refused, or its share goes to the other sources of its role
    (without a replay ratio, to all others), or the run ends with the last whole step before."""

    def in_phase(self, phase: PhaseSettings) -> "DataSettings":
        """The settings that hold during a phase: a single blend. Names of the phase that are no sources are ignored."""
        return replace(
            self,
            replay_ratio=self.replay_ratio if phase.replay_ratio is None else phase.replay_ratio,
            sources={
                name: replace(source, weight=phase.weights.get(name, source.weight))
                for name, source in self.sources.items()
            },
            phases=[],
        )
