"""What each source gives to a run, counted exactly before training begins, and what a blend may not do.

Effective unique tokens follow Muennighoff et al. (arXiv:2305.16264).
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from hashlib import sha256
from itertools import pairwise
from math import ceil, exp, floor
from typing import Any

import numpy as np
import orjson

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.schema import DataSettings
from megatron_cpt.config.units import Batches, Ramp
from megatron_cpt.mixture.order import Phase, SampleOrder
from megatron_cpt.mixture.phases import UNLIMITED, BlendPhase, BlendStream, blend_phases, integer_weights, source_of

REPETITION_DECAY = 15.39
"""R*: repetitions after which a further one is worth 1/e of a fresh pass (as fitted in arXiv:2305.16264)."""

CHEAP_EPOCHS = 4
"""Up to here repeated tokens are worth almost as much as new ones (arXiv:2305.16264, abstract)."""


def expected_unique(source_tokens: int, draw_tokens: int, tokens_read: int) -> float:
    """Tokens of a source that draws, each made anew from all of it, are expected to have read at least once.

    A token is missed by a draw with probability 1 - draw_tokens / source_tokens.
    """
    draws, rest = divmod(tokens_read, draw_tokens)
    missed = (1 - draw_tokens / source_tokens) ** draws * (1 - rest / source_tokens)
    return source_tokens * (1 - missed)


def effective_unique_tokens(source_tokens: int, tokens_read: int) -> float:
    """D' = U + U R* (1 - exp(-R / R*)): fresh tokens that would do as much as the tokens read.

    U = min(source_tokens, tokens_read) tokens are unique and R = tokens_read / U - 1 times repeated.
    """
    unique = min(source_tokens, tokens_read)
    if unique == 0:
        return 0.0
    repetitions = tokens_read / unique - 1
    return unique * (1 + REPETITION_DECAY * (1 - exp(-repetitions / REPETITION_DECAY)))


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
    """Passes over the source, with those of what is told of alone."""
    effective_unique_tokens: float
    """Fresh tokens that would do as much (blend.py)."""


@dataclass(frozen=True)
class BlendPlan:
    """The order of a run and what follows from it."""

    order: SampleOrder
    """Which sequence comes when."""
    total_sequences: int
    """Sequences of the run; fewer than asked for where an exhausted source ends it (`when_exhausted: stop`)."""
    streams: tuple[BlendStream, ...]
    """The sources, a source with quality buckets as one stream a bucket; their places are the order's numbers."""
    phases: tuple[BlendPhase, ...]
    """The phases that the run reaches, with the share due to each stream."""
    packing: str | None
    """How documents are packed into sequences (`data.packing`); None: they are not."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the streams."""
        return tuple(stream.name for stream in self.streams)

    @property
    def roles(self) -> tuple[str, ...]:
        """Role of each stream."""
        return tuple(stream.role for stream in self.streams)

    @property
    def counts(self) -> tuple[int, ...]:
        """Sequences that each source gives to the whole run."""
        return tuple(self.order.counts(self.total_sequences).tolist())

    @property
    def due_shares(self) -> tuple[Fraction, ...]:
        """Share of the whole run due to each source: those of the phases by their lengths."""
        return self._due_shares(0)

    @property
    def epochs(self) -> tuple[float, ...]:
        """Passes over each source in the whole run."""
        return tuple(self.source_epochs(self.total_sequences).values())

    @property
    def rows(self) -> tuple[SourcePlan, ...]:
        """The blend table, one row a source."""
        return self.rows_from(0)

    def rows_from(self, first_sequence: int) -> tuple[SourcePlan, ...]:
        """The blend table of what comes from a sequence on, one row a source."""
        read = self.order.counts(first_sequence).tolist()
        counted = zip(read, self.counts, self._due_shares(first_sequence), strict=True)
        left = self.total_sequences - first_sequence
        return tuple(
            self._row(number, before, count, float(due), left) for number, (before, count, due) in enumerate(counted)
        )

    def source_sequences(self, sequences: int) -> dict[str, int]:
        """Sequences of each source among the first `sequences` of the run."""
        return dict(zip(self.sources, self.order.counts(sequences).tolist(), strict=True))

    def source_epochs(self, sequences: int) -> dict[str, float]:
        """Passes over each source after the first `sequences` of the run; 0 where it has no tokens."""
        counts = self.order.counts(sequences).tolist()
        return {
            stream.name: count * self.order.sequence_length / stream.unique_tokens if stream.unique_tokens else 0.0
            for stream, count in zip(self.streams, counts, strict=True)
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
        packing = {} if self.packing is None else {"packing": self.packing}
        return packing | {
            "seed": self.order.seed,
            "sequence_length": self.order.sequence_length,
            "sources": {name: _described(self.streams[number]) for name, number in read},
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

    def _due_shares(self, first_sequence: int) -> tuple[Fraction, ...]:
        """Share due to each source of what comes from a sequence on."""
        starts = [max(first_sequence, phase.first_sequence) for phase in self.phases]
        lengths = [max(0, end - start) for start, end in pairwise([*starts, self.total_sequences])]
        return tuple(
            sum((length * share for length, share in zip(lengths, shares, strict=True)), Fraction(0))
            / (self.total_sequences - first_sequence)
            for shares in zip(*(phase.shares for phase in self.phases), strict=True)
        )

    def _row(self, number: int, before: int, count: int, due_share: float, left: int) -> SourcePlan:
        """A source between two counts of its sequences, in a stretch of `left` sequences of all."""
        stream, tokens = self.streams[number], (count - before) * self.order.sequence_length
        return SourcePlan(
            name=stream.name,
            role=stream.role,
            source_tokens=stream.tokens,
            due_share=due_share,
            sequences=count - before,
            tokens=tokens,
            share=(count - before) / left,
            epochs=tokens / stream.unique_tokens if stream.unique_tokens else 0.0,
            effective_unique_tokens=self._effective(stream, count) - self._effective(stream, before),
        )

    def _effective(self, stream: BlendStream, count: int) -> float:
        """Fresh tokens that would do as much as the first sequences of a source."""
        unique, tokens = stream.unique_tokens, count * self.order.sequence_length
        if stream.draw is not None and stream.draw.resample:
            unique = ceil(expected_unique(stream.tokens, stream.draw.sequences * self.order.sequence_length, tokens))
        return effective_unique_tokens(unique, tokens)


def plan_blend(
    data: DataSettings,
    streams: Sequence[BlendStream],
    total_sequences: int,
    seed: int,
    step_sequences: int = 1,
    starts: Sequence[int | None] | None = None,
    ramp: Ramp = (),
) -> BlendPlan:
    """The blend of a run of `total_sequences`.

    Args:
        data: the sources, their weights and limits, and the phases.
        streams: what the sources read (`blend_streams`).
        seed: seed of the order.
        step_sequences: sequences of an optimizer step: phases begin and runs end at whole steps.
        starts: steps before each configured phase, None for one that begins with an epoch (config/schedule.py).
            Without it, phases begin at tokens or epochs alone.
        ramp: the smaller steps, in sequences, at the beginning of the run.

    Raises:
        BadInput: streams without tokens or shorter than a draw, streams read more often than they may be, or
            exhausted with nothing to take their share.
        ValueError: weights that make no shares; config/checks.py has the messages for users.
    """
    refuse(_empty_faults(data, streams))
    batches = Batches(step_sequences, ramp)
    tokens = batches.times(data.sequence_length)
    if starts is None:
        starts = [
            None if phase.from_tokens is None else phase.from_tokens.whole_steps(tokens.size, tokens.ramp)
            for phase in data.phases
        ]
    phases = blend_phases(data, streams, total_sequences, batches, starts)
    order = SampleOrder(
        sources=[stream.for_order for stream in streams],
        phases=[Phase(phase.first_sequence, integer_weights(phase.shares)) for phase in phases],
        sequence_length=data.sequence_length,
        seed=seed,
    )
    if data.when_exhausted == "stop":
        total_sequences = batches.last_end(longest(order, streams, total_sequences))
        refuse(_stopped_at_once(streams, total_sequences))
    reached = tuple(phase for phase in phases if phase.first_sequence < max(1, total_sequences))
    refuse(_repetition_faults(order, streams, total_sequences, batches))
    return BlendPlan(order, total_sequences, tuple(streams), reached, data.packing)


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


def _described(stream: BlendStream) -> dict[str, Any]:
    """What of a stream determines its sequences."""
    known: dict[str, Any] = {"identity": stream.identity, "tokens": stream.tokens}
    if stream.draw is not None:
        known["draw"] = {"sequences": stream.draw.sequences, "anew": stream.draw.resample}
    return known


def _empty_faults(data: DataSettings, streams: Sequence[BlendStream]) -> list[Fault]:
    """Streams that are to be read and hold nothing, or less than a draw."""
    blends = [data.in_phase(phase).sources for phase in data.phases] or [data.sources]
    faults = []
    for stream in streams:
        source = source_of(stream.name)
        if not stream.scale or not any(blend[source].weight for blend in blends):
            continue
        if not stream.tokens and stream.name == source:
            remedy = "Prepare them from documents with text, or take the source out."
            faults.append(Fault(f"data.sources.{source}", "its datasets hold no tokens.", remedy))
        elif not stream.tokens:
            remedy = "Give it 0, or draw the bounds of the buckets wider."
            rule = f"bucket {stream.name.removeprefix(f'{source}.')} is to give tokens and holds no document."
            faults.append(Fault(f"data.sources.{source}.quality", rule, remedy))
        elif stream.draw and stream.draw.sequences > stream.tokens // data.sequence_length:
            shown = f"data.sources.{source}.sample_per_epoch.tokens = {stream.draw.sequences * data.sequence_length}"
            remedy = "Draw less, or take `sample_per_epoch` out."
            faults.append(Fault(shown, f"the source has {stream.tokens:,} tokens.", remedy))
    return faults


def longest(order: SampleOrder, streams: Sequence[BlendStream], total_sequences: int) -> int:
    """The longest prefix of the order, up to a length, in which no stream gives more than it may."""
    most = np.array([stream.max_sequences for stream in streams], np.int64)
    lengths = range(total_sequences + 1)
    return bisect_right(lengths, False, key=lambda length: bool(np.any(order.counts(length) > most))) - 1


def _stopped_at_once(streams: Sequence[BlendStream], sequences: int) -> list[Fault]:
    """A run that would end before its first step."""
    if sequences:
        return []
    limited = ", ".join(f"{stream.name}: {stream.limit}" for stream in streams if stream.max_sequences < UNLIMITED)
    rule = f"a source ({limited}) is exhausted within the first step."
    return [Fault("data.when_exhausted = stop", rule, "Raise its limit, or add text to it.")]


def _repetition_faults(
    order: SampleOrder, streams: Sequence[BlendStream], total_sequences: int, batches: Batches
) -> list[Fault]:
    """Every stream that is read more often than it may be, with the numbers and the ways out."""
    return [
        _repetition_fault(order, streams[number], number, count, total_sequences, batches)
        for number, count in enumerate(order.counts(total_sequences).tolist())
        if count > streams[number].max_sequences
    ]


def _repetition_fault(
    order: SampleOrder, stream: BlendStream, number: int, count: int, total_sequences: int, batches: Batches
) -> Fault:
    lengths = range(total_sequences + 1)
    most = bisect_right(lengths, stream.max_sequences, key=lambda sequences: int(order.counts(sequences)[number])) - 1
    tokens = batches.last_end(most) * order.sequence_length
    shorter = f"Train on at most {tokens:,} tokens; or, " if tokens else "Train on fewer tokens; or, "
    share = floor(10_000 * stream.max_sequences / total_sequences) / 100
    epochs = count * order.sequence_length / stream.unique_tokens
    name, _, value = stream.limit.partition(" = ")
    enough = f"to {ceil(100 * epochs) / 100:g}" if name in ("max_epochs", "epochs") else "further"
    bucket = "" if stream.name == source_of(stream.name) else f" ({stream.name})"
    if not stream.max_sequences:
        least = order.sequence_length / stream.unique_tokens
        return Fault(
            f"data.sources.{source_of(stream.name)}.{name} = {value}",
            f"one sequence of {order.sequence_length:,} tokens is {least:.2f} passes over this source of "
            f"{stream.unique_tokens:,} tokens{bucket}.",
            "Join it with another source (list its paths there), take it out, set data.when_exhausted, or raise "
            f"{name} to {ceil(100 * least) / 100:g}.",
        )
    return Fault(
        f"data.sources.{source_of(stream.name)}.{name} = {value}",
        f"this run reads {count * order.sequence_length:,} tokens of a source of {stream.unique_tokens:,}{bucket}, "
        f"{epochs:.2f} epochs.",
        f"{shorter}in a run as long as this, give it at most {share:.2f} % of the tokens (now "
        f"{100 * count / total_sequences:.2f} %) by weight or data.replay_ratio; or set data.when_exhausted; or raise "
        f"{name} {enough}, or add text to the source.",
    )
