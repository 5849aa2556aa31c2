"""What each source gives to a run, counted exactly before training begins."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from math import ceil, floor
from typing import Any

import orjson

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.schema import DataSettings
from megatron_cpt.mixture.order import Phase, SampleOrder, SourceStream
from megatron_cpt.mixture.repetition import effective_unique_tokens
from megatron_cpt.mixture.shares import decimal, due_shares, integer_weights


@dataclass(frozen=True)
class SourcePlan:
    """What one source gives to the run."""

    name: str
    """Name of the source."""
    role: str
    """domain or replay."""
    source_tokens: int
    """Tokens of one pass over the source."""
    due_share: float
    """Its share of the training tokens by weights and replay ratio."""
    sequences: int
    """Sequences it gives: the order's own count."""
    tokens: int
    """Tokens it gives."""
    share: float
    """Its share of the training tokens, as counted."""
    epochs: float
    """Passes over the source."""
    effective_unique_tokens: float
    """Fresh tokens that would do as much (repetition.py)."""


@dataclass(frozen=True)
class BlendPlan:
    """The order of a run and what follows from it."""

    order: SampleOrder
    """Which sequence comes when."""
    total_sequences: int
    """Sequences of the run."""
    identities: tuple[str, ...]
    """What each source reads (TokenStream.identity), in the order of the sources."""
    roles: tuple[str, ...]
    """Role of each source."""
    due_shares: tuple[Fraction, ...]
    """Share due to each source at the end of the run."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources; their places here are the source numbers of the order."""
        return tuple(source.name for source in self.order.sources)

    @property
    def counts(self) -> tuple[int, ...]:
        """Sequences that each source gives to the whole run."""
        return tuple(self.order.counts(self.total_sequences).tolist())

    @property
    def epochs(self) -> tuple[float, ...]:
        """Passes over each source in the whole run."""
        return tuple(self.source_epochs(self.total_sequences).values())

    @property
    def rows(self) -> tuple[SourcePlan, ...]:
        """The blend table, one row a source."""
        return tuple(self._row(number, count) for number, count in enumerate(self.counts))

    def source_sequences(self, sequences: int) -> dict[str, int]:
        """Sequences of each source among the first `sequences` of the run."""
        return dict(zip(self.sources, self.order.counts(sequences).tolist(), strict=True))

    def source_epochs(self, sequences: int) -> dict[str, float]:
        """Passes over each source after the first `sequences` of the run; 0 where it has no tokens."""
        counts = self.order.counts(sequences).tolist()
        return {
            source.name: count * self.order.sequence_length / source.tokens if source.tokens else 0.0
            for source, count in zip(self.order.sources, counts, strict=True)
        }

    def describe(self, sequences: int) -> dict[str, Any]:
        """Everything that determines the first `sequences` of the run, and nothing else.

        A longer run, a phase appended later, a source that has not been read yet and the order in which
        sources are listed change nothing here.
        """
        begun = [phase for phase in self.order.phases if phase.first_sequence < max(1, sequences)]
        read = sorted(
            (source.name, number)
            for number, source in enumerate(self.order.sources)
            if any(phase.weights[number] for phase in begun)
        )
        return {
            "seed": self.order.seed,
            "sequence_length": self.order.sequence_length,
            "sources": {
                name: {"identity": self.identities[number], "tokens": self.order.sources[number].tokens}
                for name, number in read
            },
            "phases": [
                {
                    "first_sequence": phase.first_sequence,
                    "weights": {name: phase.weights[number] for name, number in read},
                }
                for phase in begun
            ],
        }

    def fingerprint(self, sequences: int) -> str:
        """SHA-256 of `describe(sequences)`, as hexadecimal digits."""
        return sha256(orjson.dumps(self.describe(sequences))).hexdigest()

    def _row(self, number: int, count: int) -> SourcePlan:
        source, length = self.order.sources[number], self.order.sequence_length
        return SourcePlan(
            name=source.name,
            role=self.roles[number],
            source_tokens=source.tokens,
            due_share=float(self.due_shares[number]),
            sequences=count,
            tokens=count * length,
            share=count / self.total_sequences,
            epochs=count * length / source.tokens if source.tokens else 0.0,
            effective_unique_tokens=effective_unique_tokens(source.tokens, count * length),
        )


def plan_blend(
    data: DataSettings,
    stream_tokens: Mapping[str, int],
    total_sequences: int,
    seed: int,
    identities: Mapping[str, str] | None = None,
    step_sequences: int = 1,
) -> BlendPlan:
    """The blend of a run of `total_sequences`.

    Args:
        data: the sources, their weights and limits.
        stream_tokens: tokens of one pass over each source, by name.
        seed: seed of the order.
        identities: what each source reads, by name (TokenStream.identity). None: names and tokens alone
            tell sources apart in the fingerprint.
        step_sequences: sequences of an optimizer step, so that a length proposed in a message is whole steps.

    Raises:
        BadInput: sources without tokens, sources read more often than `max_epochs`.
        ValueError: weights that make no shares; config/faults.py has the messages for users.
    """
    refuse(_empty_sources(data, stream_tokens))
    shares = due_shares(data)
    order = SampleOrder(
        sources=[SourceStream(name, stream_tokens[name]) for name in data.sources],
        phases=[Phase(0, integer_weights(shares))],
        sequence_length=data.sequence_length,
        seed=seed,
    )
    blend = BlendPlan(
        order=order,
        total_sequences=total_sequences,
        identities=tuple((identities or {}).get(name, "") for name in data.sources),
        roles=tuple(source.role for source in data.sources.values()),
        due_shares=tuple(shares.values()),
    )
    refuse(_repeated_too_often(data, blend, step_sequences))
    return blend


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between two `describe()` results, a line each: `sources.wiki.tokens: 100 before, 90 now`."""
    lines = []
    for key in dict.fromkeys([*before, *now]):
        name, old, new = f"{where}{key}", before.get(key), now.get(key)
        if isinstance(old, list) and isinstance(new, list):
            old, new = dict(enumerate(old)), dict(enumerate(new))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{name}.")
        elif old != new:
            absent = "not there"
            lines.append(f"{name}: {absent if old is None else old} before, {absent if new is None else new} now")
    return lines


def _empty_sources(data: DataSettings, stream_tokens: Mapping[str, int]) -> list[Fault]:
    return [
        Fault(
            f"data.sources.{name}",
            "its datasets hold no tokens.",
            "Prepare them from documents with text, or take the source out.",
        )
        for name, source in data.sources.items()
        if source.weight and not stream_tokens[name]
    ]


def _repeated_too_often(data: DataSettings, blend: BlendPlan, step_sequences: int) -> list[Fault]:
    faults = []
    for number, (row, source) in enumerate(zip(blend.rows, data.sources.values(), strict=True)):
        if source.max_epochs is None:
            continue
        allowed = ceil(decimal(source.max_epochs) * row.source_tokens / data.sequence_length)
        if row.sequences > allowed:
            faults.append(_repetition_fault(blend, number, row, source.max_epochs, allowed, step_sequences))
    return faults


def _repetition_fault(
    blend: BlendPlan, number: int, row: SourcePlan, max_epochs: float, allowed: int, step_sequences: int
) -> Fault:
    """Names the numbers and the ways out; `allowed` is the number of sequences that begin within the limit."""
    lengths = range(blend.total_sequences + 1)
    longest = bisect_right(lengths, allowed, key=lambda sequences: int(blend.order.counts(sequences)[number])) - 1
    tokens = longest // step_sequences * step_sequences * blend.order.sequence_length
    shorter = f"Train on at most {tokens:,} tokens; or, " if tokens else "Train on fewer tokens; or, "
    share = floor(10_000 * allowed / blend.total_sequences) / 100
    epochs = ceil(100 * row.epochs) / 100
    return Fault(
        f"data.sources.{row.name}.max_epochs = {max_epochs:g}",
        f"this run reads {row.tokens:,} tokens of a source of {row.source_tokens:,}, {row.epochs:.2f} epochs.",
        f"{shorter}in a run as long as this, give it at most {share:.2f} % of the tokens (now {100 * row.share:.2f} %) "
        f"by weight or data.replay_ratio; or raise max_epochs to {epochs:g}, or add text to the source.",
    )
