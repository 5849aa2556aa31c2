"""What each source gives to a run, counted exactly before training begins."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from itertools import pairwise
from math import ceil, floor
from typing import Any

import numpy as np
import orjson

from megatron_cpt.config.blend import DataSettings
from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.mixture.order import Phase, SampleOrder, SourceStream
from megatron_cpt.mixture.phases import BlendPhase, allowed_sequences, configured_phases, redistributed_phases
from megatron_cpt.mixture.repetition import effective_unique_tokens
from megatron_cpt.mixture.shares import integer_weights
from megatron_cpt.mixture.weight_tree import Integers


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
    """Its share of the training tokens by weights, replay ratio and phases."""
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
    """Sequences of the run; fewer than asked for where an exhausted source ends it (`when_exhausted: stop`)."""
    identities: tuple[str, ...]
    """What each source reads (TokenStream.identity), in the order of the sources."""
    roles: tuple[str, ...]
    """Role of each source."""
    phases: tuple[BlendPhase, ...]
    """The phases that the run reaches, with the share due to each source."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources; their places here are the source numbers of the order."""
        return tuple(source.name for source in self.order.sources)

    @property
    def counts(self) -> tuple[int, ...]:
        """Sequences that each source gives to the whole run."""
        return tuple(self.order.counts(self.total_sequences).tolist())

    @property
    def due_shares(self) -> tuple[Fraction, ...]:
        """Share of the whole run due to each source: those of the phases by their lengths."""
        starts = [phase.first_sequence for phase in self.phases]
        lengths = [end - start for start, end in pairwise([*starts, self.total_sequences])]
        return tuple(
            sum((length * share for length, share in zip(lengths, shares, strict=True)), Fraction(0))
            / self.total_sequences
            for shares in zip(*(phase.shares for phase in self.phases), strict=True)
        )

    @property
    def epochs(self) -> tuple[float, ...]:
        """Passes over each source in the whole run."""
        return tuple(self.source_epochs(self.total_sequences).values())

    @property
    def rows(self) -> tuple[SourcePlan, ...]:
        """The blend table, one row a source."""
        counted = zip(self.counts, self.due_shares, strict=True)
        return tuple(self._row(number, count, float(due)) for number, (count, due) in enumerate(counted))

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

    def _row(self, number: int, count: int, due_share: float) -> SourcePlan:
        source, length = self.order.sources[number], self.order.sequence_length
        return SourcePlan(
            name=source.name,
            role=self.roles[number],
            source_tokens=source.tokens,
            due_share=due_share,
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
        data: the sources, their weights and limits, and the phases.
        stream_tokens: tokens of one pass over each source, by name.
        seed: seed of the order.
        identities: what each source reads, by name (TokenStream.identity). None: names and tokens alone
            tell sources apart in the fingerprint.
        step_sequences: sequences of an optimizer step: phases begin and runs end at whole steps.

    Raises:
        BadInput: sources without tokens, sources read more often than `max_epochs`, or exhausted with nothing to
            take their share.
        ValueError: weights that make no shares; config/faults.py has the messages for users.
    """
    refuse(_empty_sources(data, stream_tokens))
    if data.when_exhausted == "redistribute":
        phases = redistributed_phases(data, stream_tokens, total_sequences, step_sequences)
    else:
        configured = configured_phases(data, step_sequences)
        phases = [phase for phase in configured if phase.first_sequence < max(1, total_sequences)]
    order = SampleOrder(
        sources=[SourceStream(name, stream_tokens[name]) for name in data.sources],
        phases=[Phase(phase.first_sequence, integer_weights(phase.shares)) for phase in phases],
        sequence_length=data.sequence_length,
        seed=seed,
    )
    allowed = allowed_sequences(data, stream_tokens)
    if data.when_exhausted == "stop":
        total_sequences = _longest(order, allowed, total_sequences) // step_sequences * step_sequences
        refuse(_stopped_at_once(data, order, allowed, total_sequences))
    blend = BlendPlan(
        order=order,
        total_sequences=total_sequences,
        identities=tuple((identities or {}).get(name, "") for name in data.sources),
        roles=tuple(source.role for source in data.sources.values()),
        phases=tuple(phase for phase in phases if phase.first_sequence < max(1, total_sequences)),
    )
    refuse(_repeated_too_often(data, blend, allowed, step_sequences))
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
    blends = [data.in_phase(phase) for phase in data.phases] or [data]
    weights = [{name: source.weight for name, source in blend.sources.items()} for blend in blends]
    return [
        Fault(
            f"data.sources.{name}",
            "its datasets hold no tokens.",
            "Prepare them from documents with text, or take the source out.",
        )
        for name, source in data.sources.items()
        if not stream_tokens[name] and any(weight_in[name] for weight_in in weights)
    ]


def _longest(order: SampleOrder, allowed: Integers, total_sequences: int) -> int:
    """The longest prefix of the order, up to a length, in which no source gives more than it may."""
    lengths = range(total_sequences + 1)
    return bisect_right(lengths, False, key=lambda length: bool(np.any(order.counts(length) > allowed))) - 1


def _stopped_at_once(data: DataSettings, order: SampleOrder, allowed: Integers, sequences: int) -> list[Fault]:
    if sequences:
        return []
    short = [source.name for source, room in zip(order.sources, allowed.tolist(), strict=True) if room < 2**62]
    rule = f"a source with max_epochs ({', '.join(short)}) is exhausted within the first step."
    return [Fault(f"data.when_exhausted = {data.when_exhausted}", rule, "Raise its max_epochs, or add text to it.")]


def _repeated_too_often(data: DataSettings, blend: BlendPlan, allowed: Integers, step_sequences: int) -> list[Fault]:
    faults = []
    for number, (row, source) in enumerate(zip(blend.rows, data.sources.values(), strict=True)):
        room = int(allowed[number])
        if source.max_epochs is not None and row.sequences > room:
            faults.append(_repetition_fault(blend, number, row, source.max_epochs, room, step_sequences))
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
        f"by weight or data.replay_ratio; or set data.when_exhausted; or raise max_epochs to {epochs:g}, or add text "
        "to the source.",
    )
