"""The section `data` of a run: sources of training text, their shares, and phases with other shares.

Shares are computed in mixture/shares.py, phases in mixture/phases.py; docs/configuration.md is written from this file.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import ConfigDict

from megatron_cpt.config.strict import STRICT
from megatron_cpt.config.units import (
    Count,
    CountOrZero,
    EpochsOfSource,
    NotNegative,
    Positive,
    Share,
    ShareOfPeak,
    Span,
    SpanOrZero,
)


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """A source divided by a score of its documents, best first: each bucket is a stream with epochs of its own.

    One of `epochs`, `shares` and `temperature` says what the buckets give. They are named SOURCE.1 (the best),
    SOURCE.2, ... in plans and records.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    score: str
    """Name of the score: `PREFIX.SCORE.npy` beside each dataset, one number a document (`megatron-cpt score`)."""
    best: Literal["lowest", "highest"] = "lowest"
    """Which scores are best: `lowest` for perplexities, `highest` for classifiers."""
    buckets: list[Share] = field(default_factory=lambda: [tenth / 10 for tenth in range(11)])
    """Bounds of the buckets as shares of the source's tokens, the best first, from 0 to 1. Default: tenths."""
    epochs: list[NotNegative] | None = None
    """Passes over each bucket, a target as `epochs` of a source is; 0 drops it."""
    shares: list[NotNegative] | None = None
    """Shares of the source's tokens that each bucket gives, relative to one another; 0 drops it."""
    temperature: Positive | None = None
    """A bucket gives tokens by its size times the mean of exp(z / temperature) over its tokens, z the score in standard
    deviations from its mean, better being higher (the weighting of arXiv:2402.09739, in whole buckets)."""


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Which labels count in the loss, of training and of validation sets alike; a set's identity says so.

    A label that does not count is read as input all the same.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    eod: bool = True
    """Whether the token that ends a document counts, which its manifest names."""
    document_starts: bool = True
    """Whether the first token of a document counts, which nothing before it tells. Megatron-LM's --eod-mask-loss
    leaves it out."""
    unscored_tokens: list[CountOrZero] = field(default_factory=list)
    """Token ids that never count."""


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """A part of the source for each epoch of a mixture (strategy III of arXiv:2406.14833)."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tokens: Count
    """Tokens of a draw: chosen at random, in whole sequences, none twice within a draw."""
    resample: Literal["fixed", "each_epoch"] = "each_epoch"
    """`fixed`: the same draw in every epoch, in another order; `each_epoch`: each epoch draws anew from the source."""


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One source of training text: datasets and selections read as one stream."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    paths: list[str]
    """Dataset prefixes, selections (`NAME.selection.json`) or globs of either."""
    role: Literal["domain", "replay"] = "domain"
    """`domain`: what is learnt; `replay`: what the model knew. `data.replay_ratio` divides the run among them."""
    weight: NotNegative = 1.0
    """Share relative to the other sources of its role, or, without a replay ratio, to all sources. It multiplies a
    target in tokens or epochs."""
    tokens: Count | None = None
    """Target: tokens that the source is to give, its weight and its limit at once. Sources that share a role, or
    without a replay ratio all, have targets or none has."""
    epochs: Positive | None = None
    """Target in passes over the source, in place of `tokens`."""
    max_epochs: Positive | None = None
    """Passes over the source that the run may make, rounded down to whole sequences; `data.when_exhausted` says what
    happens beyond."""
    quality: QualitySettings | None = None
    """Buckets by score. None: all documents alike."""
    draw: DrawSettings | None = None
    """Read a draw of the source in each epoch of a mixture. None: the whole source, in true epochs."""
    unscored_lead: str | None = None
    """Name of a column `PREFIX.NAME.npy` beside each dataset, one number a document: so many of its first tokens are
    read and do not count in the loss, such as a prompt. None: all count."""

    @property
    def has_target(self) -> bool:
        """Whether tokens or epochs say what it gives."""
        return bool(self.tokens or self.epochs or (self.quality and self.quality.epochs))


@dataclass(frozen=True, kw_only=True)
class PhaseSettings:
    """A stretch of training with a blend of its own. What it leaves out is that of `data`.

    A phase begins at one of `from_tokens`, `from_lr` and `from_epoch`, rounded to whole steps, and lasts until the
    next; the first begins at 0 tokens. A run goes on with phases appended that begin after what it has trained on:
    every source goes on where it stood.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    from_tokens: SpanOrZero | None = None
    """Where it begins, in tokens or steps."""
    from_lr: ShareOfPeak | None = None
    """It begins once the learning rate, after its highest, has fallen to this: `0.2 of peak` (arXiv:2407.07263). Where
    that is depends on the length of the run: one that is made longer after such a phase has begun goes on only with
    the phase's place written as `from_tokens`, which the refusal names."""
    from_epoch: EpochsOfSource | None = None
    """It begins once a source has been read this often: `2 of law`."""
    ramp: Span | None = None
    """Shares go from those of the phase before to its own over so many tokens or steps. None: at once."""
    ramp_block: Span | None = None
    """A ramp is stairs; length of a stair, in tokens or steps. None: a 32nd of the ramp, at least a step."""
    replay_ratio: Share | None = None
    """Share of its tokens that `replay` sources give. None: `data.replay_ratio`."""
    weights: dict[str, NotNegative] = field(default_factory=dict)
    """Weights by the name of the source. A source that is not named keeps the weight it has in `data.sources`."""

    @property
    def beginning(self) -> str:
        """Where it begins, as it is configured: `from_lr = 0.2 of peak`."""
        ways = {"from_tokens": self.from_tokens, "from_lr": self.from_lr, "from_epoch": self.from_epoch}
        return ", ".join(f"{name} = {value}" for name, value in ways.items() if value is not None)


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
    attention: Literal["across_documents", "within_documents"] = "across_documents"
    """Whether a token sees what stands before it in its sequence, as in Megatron-LM, or in its own document alone.
    Validation sets are read alike, and a set's identity says so."""
    labels: LabelSettings = field(default_factory=LabelSettings)
    """Labels that do not count in the loss."""
    phases: list[PhaseSettings] = field(default_factory=list)
    """Stretches of training with other blends. Empty: one blend for the whole run."""
    when_exhausted: Literal["error", "redistribute", "stop"] = "error"
    """When a source reaches its `max_epochs` or its target: the run is refused, or its share goes to the other sources
    of its role (without a replay ratio, to all others), or the run ends with the last whole step before, and its
    schedule and marks with it."""

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
