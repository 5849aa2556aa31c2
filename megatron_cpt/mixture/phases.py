"""From weights and replay ratio, as users write them, to streams and phases of the order.

A stream is a source, or a quality bucket of one, with a limit. A phase is a stretch of training with its own integer
weights: configured, a step of a ramp, or begun where a stream is exhausted.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor, gcd, lcm

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import DataSettings, PhaseSettings, SourceSettings
from megatron_cpt.config.units import Batches, Duration, epochs_of_source
from megatron_cpt.mixture.order import LARGEST_WEIGHT_SUM, Draw, Integers, SourceStream, WeightTree

UNLIMITED = 2**62
"""Stands for the limit of a stream without one; runs are shorter."""

_SLACK = 2
"""The order is never two sequences off: a target may be passed by them, unless its share is redistributed."""


@dataclass(frozen=True)
class BlendStream:
    """A stream of text and what the blend has to know of it."""

    name: str
    """Name of the source, or SOURCE.N for bucket N of a source."""
    tokens: int
    """Tokens of one pass over the text."""
    identity: str
    """What is read (TokenStream.identity); empty: names and tokens alone tell streams apart in the fingerprint."""
    unique_tokens: int
    """Tokens of one pass over what is read: those of a draw where one is repeated, else those of the text."""
    role: str
    """domain or replay."""
    scale: Fraction
    """What the source's weight is multiplied by to give that of the stream."""
    max_sequences: int
    """Sequences that it may give to the run."""
    limit: str
    """The setting that limits it, `max_epochs = 4`; empty where none does."""
    target: Fraction | None
    """Tokens that it is to give; None: as many as its share comes to."""
    draw: Draw | None
    """The draws it is read in; None: in epochs."""

    @property
    def for_order(self) -> SourceStream:
        """What the order has to know."""
        return SourceStream(self.name, self.tokens, self.draw)


def blend_streams(
    data: DataSettings,
    stream_tokens: Mapping[str, int],
    identities: Mapping[str, str] | None = None,
    portions: Mapping[str, Fraction] | None = None,
) -> tuple[BlendStream, ...]:
    """The streams of a blend, sources in the order of the configuration.

    Args:
        stream_tokens: tokens of one pass over each stream, by name, the buckets of a source in their order.
        identities: what each stream reads, by name.
        portions: part of its source's weight that each bucket has, by name. Other streams have all of it.
    """
    by_source: dict[str, dict[str, int]] = {name: {} for name in data.sources}
    for name, tokens in stream_tokens.items():
        by_source[source_of(name)][name] = tokens
    streams = []
    for source_name, its_tokens in by_source.items():
        source = data.sources[source_name]
        whole = _target_tokens(source, its_tokens)
        draw = _draw(source, data.sequence_length)
        for name, tokens in its_tokens.items():
            scale = (portions or {}).get(name, Fraction(1)) * (whole or 1)
            unique_tokens = draw.sequences * data.sequence_length if draw and not draw.resample else tokens
            target = scale if whole else None
            max_sequences, limit = _max_sequences(data, source, unique_tokens, target)
            identity = (identities or {}).get(name, "")
            streams.append(
                BlendStream(
                    name, tokens, identity, unique_tokens, source.role, scale, max_sequences, limit, target, draw
                )
            )
    return tuple(streams)


def _draw(source: SourceSettings, sequence_length: int) -> Draw | None:
    if source.sample_per_epoch is None:
        return None
    return Draw(source.sample_per_epoch.tokens // sequence_length, source.sample_per_epoch.resample == "each_epoch")


def _target_tokens(source: SourceSettings, stream_tokens: Mapping[str, int]) -> Fraction | None:
    """Tokens that a source is to give by its target; None where it has none."""
    if source.tokens is not None:
        return Fraction(source.tokens)
    if source.epochs is not None:
        return decimal(source.epochs) * sum(stream_tokens.values())
    if source.quality is not None and source.quality.epochs is not None:
        passes = zip(source.quality.epochs, stream_tokens.values(), strict=True)
        return sum((decimal(epochs) * tokens for epochs, tokens in passes), Fraction(0))
    return None


def _max_sequences(
    data: DataSettings, source: SourceSettings, unique_tokens: int, target: Fraction | None
) -> tuple[int, str]:
    """Sequences that a stream may give, and the setting that says so.

    Args:
        unique_tokens: tokens of one pass over what it reads.
        target: tokens that it is to give, if it has a target.
    """
    limits = [(UNLIMITED, "")]
    if source.max_epochs is not None:
        # Rounded down: a limit holds, and a sequence may be many passes over a short source.
        passes = floor(decimal(source.max_epochs) * unique_tokens / data.sequence_length)
        limits.append((passes, f"max_epochs = {source.max_epochs:g}"))
    if target is not None:
        spare = 0 if data.when_exhausted == "redistribute" else _SLACK
        goal = target / data.sequence_length
        limits.append((ceil(goal) + spare if spare else floor(goal), _target_setting(source)))
    return min(limits)


def _target_setting(source: SourceSettings) -> str:
    if source.tokens is not None:
        return f"tokens = {source.tokens}"
    if source.epochs is not None:
        return f"epochs = {source.epochs:g}"
    return f"quality.epochs = {source.quality and source.quality.epochs}"


Shares = tuple[Fraction, ...]
_PIECES = 32
"""Most pieces of a ramp, in each of which the blend is constant."""


@dataclass(frozen=True)
class BlendPhase:
    """A stretch of the run with one blend."""

    first_sequence: int
    """Index of its first sequence; it lasts until the next phase begins."""
    shares: Shares
    """Share of its sequences due to each stream, in the order of the streams; they sum to 1."""
    exhausted: tuple[str, ...] = ()
    """Streams that are no longer read, because they have given what they may."""
    number: int = 0
    """Number of the configured phase that it is of."""


def blend_phases(
    data: DataSettings,
    streams: Sequence[BlendStream],
    total_sequences: int,
    batches: Batches,
    starts: Sequence[int | None],
) -> list[BlendPhase]:
    """The phases that a run of `total_sequences` reaches.

    Args:
        batches: sequences of the optimizer steps.
        starts: steps before each configured phase; None for one that begins with an epoch of a source.

    Raises BadInput where nothing is left to take over a share, because all streams of a role are exhausted, or where
    an epoch that begins a phase comes after the phase that follows.
    """
    walk = _Walk(data, streams, batches)
    phases, starts = (data.phases, starts) if data.phases else ([PhaseSettings(from_tokens=Duration(0))], [0])
    total = max(1, total_sequences)
    for number, phase in enumerate(phases):
        if walk.position >= total:
            break
        known = [batches.total(step) for step in starts[number + 1 :] if step is not None]
        end = min([*known, total])
        following = phases[number + 1] if number + 1 < len(phases) else None
        goal = _goal(following, data, streams) if following is not None and starts[number + 1] is None else None
        if not walk.take(number, phase, end, goal) and goal is not None and end < total:
            rule = f"it has not come by token {end * data.sequence_length:,}, where a later phase begins."
            where = f"data.phases.{number + 1}.{phases[number + 1].beginning}"
            raise BadInput(Fault(where, rule, "List phases in the order of training, or begin the later one later."))
    return walk.phases


@dataclass(frozen=True)
class _Goal:
    """Sequences of a source that a phase waits for."""

    streams: npt.NDArray[np.bool_]
    """Which streams are of the source, bool[streams]."""
    sequences: int
    """Sequences that they are to have given together."""


def _goal(phase: PhaseSettings, data: DataSettings, streams: Sequence[BlendStream]) -> _Goal:
    epochs, source = epochs_of_source(phase.from_epoch or "")
    tokens = sum(stream.unique_tokens for stream in streams if source_of(stream.name) == source)
    of_source = np.array([source_of(stream.name) == source for stream in streams])
    sequences = ceil(Fraction(repr(epochs)) * tokens / data.sequence_length)
    most = data.sources[source].max_epochs
    if most is not None and epochs <= most:
        # A limit is rounded down: what it allows is as near to the epochs as the source comes.
        sequences = min(sequences, sum(stream.max_sequences for stream in streams if source_of(stream.name) == source))
    return _Goal(of_source, sequences)


@dataclass
class _Walk:
    """Lays phase after phase, counting what each stream has given where that decides where phases begin."""

    data: DataSettings
    streams: Sequence[BlendStream]
    batches: Batches
    phases: list[BlendPhase] = field(default_factory=list)
    position: int = 0
    """Sequences of the run laid so far."""

    def __post_init__(self) -> None:
        self._names = [stream.name for stream in self.streams]
        self._roles = [stream.role for stream in self.streams]
        self._max_sequences = np.array([stream.max_sequences for stream in self.streams], np.int64)
        self._given: Integers = np.zeros(len(self.streams), np.int64)
        self._redistributes = self.data.when_exhausted == "redistribute"
        self._counts = self._redistributes or any(phase.from_epoch for phase in self.data.phases)
        self._shares: Shares | None = None
        """Shares due at the end of what is laid, before any is redistributed."""

    def take(self, number: int, phase: PhaseSettings, end: int, goal: _Goal | None) -> bool:
        """Lays a configured phase up to an index, or to the step after its goal is met; returns whether it was met."""
        blend, self._number = self.data.in_phase(phase), number
        shares = tuple(due_shares(blend, {stream.name: stream.scale for stream in self.streams}).values())
        roles = self._roles if blend.replay_ratio is not None else ["all"] * len(self._roles)
        for piece, piece_end in self._pieces(shares, phase):
            self._shares = piece
            if self._lay(piece, roles, end if piece_end is None else min(end, piece_end), goal):
                return True
        return False

    def _pieces(self, shares: Shares, phase: PhaseSettings) -> Iterator[tuple[Shares, int | None]]:
        """The blends of a phase and the indices where they end; the last lasts to the end of the phase.

        A piece has the share that a straight ramp has in its middle, so that both give as many tokens.
        """
        before = self._shares
        if phase.ramp is not None and before is not None:
            begin = self.position
            done = self.batches.whole_steps(begin)
            steps = self._steps_of(phase.ramp)
            block = ceil(steps / _PIECES)
            whole = self.batches.total(done + steps) - begin
            for first in range(0, steps, block):
                piece_begin = self.batches.total(done + first)
                piece_end = self.batches.total(done + min(first + block, steps))
                part = Fraction(piece_begin + piece_end - 2 * begin, 2 * whole)
                piece = tuple(old + part * (new - old) for old, new in zip(before, shares, strict=True))
                yield piece, piece_end
        yield shares, None

    def _steps_of(self, length: Duration) -> int:
        """Steps of a stretch that begins where the run is laid to."""
        tokens = self.batches.times(self.data.sequence_length)
        done = self.batches.whole_steps(self.position)
        if length.unit == "steps":
            return length.steps(tokens.size)
        return max(1, tokens.nearest_step(tokens.total(done) + length.amount) - done)

    def _lay(self, shares: Shares, roles: Sequence[str], end: int, goal: _Goal | None) -> bool:
        """Lays one blend, less what is exhausted, up to an index or a goal; returns whether the goal was met."""
        while self.position < end:
            exhausted = self._given >= self._max_sequences if self._redistributes else np.zeros(len(shares), np.bool_)
            left = self._redistributed(shares, roles, exhausted)
            gone = zip(self._names, shares, exhausted.tolist(), strict=True)
            out = tuple(name for name, share, is_exhausted in gone if share and is_exhausted)
            self.phases.append(BlendPhase(self.position, left, out, self._number))
            if not self._counts:
                self.position = end
                return False
            tree, length = WeightTree(integer_weights(left), self._names), end - self.position
            if self._redistributes:
                length = self._until_exhausted(left, tree, length)
            met = self._until(goal, tree, length) if goal else None
            length = length if met is None else met
            self._given = self._given + tree.counts(length)
            self.position += length
            if met is not None:
                return True
        return False

    def _until_exhausted(self, shares: Shares, tree: WeightTree, most: int) -> int:
        """Sequences until the first stream that is read has given all it may; `most` if none does before."""
        read, left = np.array([share > 0 for share in shares]), self._max_sequences - self._given
        return _first(most, lambda length: bool(np.any((tree.counts(length) >= left) & read)))

    def _until(self, goal: _Goal, tree: WeightTree, most: int) -> int | None:
        """Sequences to the end of the step in which a goal is met, at least one step; None: not within so many."""
        missing = goal.sequences - int(self._given[goal.streams].sum())
        length = _first(most, lambda n: int(tree.counts(n)[goal.streams].sum()) >= missing)
        if int(tree.counts(length)[goal.streams].sum()) < missing:
            return None
        first = self.phases[-1].first_sequence
        ends = self.batches.next_end(first + max(1, length))
        return ends - first if ends - first <= most else None

    def _redistributed(self, shares: Shares, roles: Sequence[str], exhausted: npt.NDArray[np.bool_]) -> Shares:
        """The shares once some streams are no longer read: those of each role in proportion."""
        if not exhausted.any():
            return shares
        left = [Fraction(0) if gone else share for share, gone in zip(shares, exhausted, strict=True)]
        factors = {}
        for role in set(roles):
            due = sum((share for share, own in zip(shares, roles, strict=True) if own == role), Fraction(0))
            kept = sum((share for share, own in zip(left, roles, strict=True) if own == role), Fraction(0))
            if due and not kept:
                raise BadInput(self._nothing_left(role))
            factors[role] = due / kept if kept else Fraction(0)
        return tuple(share * factors[role] for share, role in zip(left, roles, strict=True))

    def _nothing_left(self, role: str) -> Fault:
        whose = "every source" if role == "all" else f"every source of role `{role}`"
        tokens = self.batches.last_end(self.position) * self.data.sequence_length
        shorter = f"Train on at most {tokens:,} tokens, " if tokens else ""
        return Fault(
            "data.when_exhausted = redistribute",
            f"after {self.position * self.data.sequence_length:,} tokens {whose} has given what its max_epochs or "
            "target allows, and nothing is left to take over its share.",
            f"{shorter}{'raise' if shorter else 'Raise'} the limit, or give the role another source.",
        )


def _first(most: int, reached: Callable[[int], bool]) -> int:
    """The smallest of the lengths up to `most` that has reached something, else `most`; what is reached stays so."""
    return bisect_left(range(most), True, key=reached)


def due_shares(data: DataSettings, scales: Mapping[str, Fraction] | None = None) -> dict[str, Fraction]:
    """Each stream's exact share of the training tokens, by name; they sum to 1.

    Args:
        scales: what the weight of its source is multiplied by for each stream, by the stream's name. None: the
            streams are the sources.

    Raises ValueError where a role is to give tokens and has no weight; config/checks.py has told the user.
    """
    weights = {
        name: decimal(data.sources[source_of(name)].weight) * scale
        for name, scale in (scales or dict.fromkeys(data.sources, Fraction(1))).items()
    }
    shares: dict[str, Fraction] = {}
    for role, ratio in _role_shares(data).items():
        members = [name for name in weights if role in (None, data.sources[source_of(name)].role)]
        total = sum(weights[name] for name in members)
        if ratio and not total:
            raise ValueError(f"{role or 'all'} sources are to give {ratio} of the tokens and have no weight")
        shares |= {name: ratio * weights[name] / (total or 1) for name in members}
    return {name: shares[name] for name in weights}


def source_of(stream: str) -> str:
    """The source of a stream: names of sources have no dots, buckets of a source are named SOURCE.N."""
    return stream.partition(".")[0]


def integer_weights(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest whole numbers in the ratio of the shares, in their order.

    Where these would sum to more than the order's 2^30, the nearest that sum to about 2^29, and at least 1
    for a source that is read: its share is then off by less than 1e-8.
    """
    scale = lcm(*(share.denominator for share in shares))
    weights = [int(share * scale) for share in shares]
    common = gcd(*weights)
    if sum(weights) // common <= LARGEST_WEIGHT_SUM:
        return tuple(weight // common for weight in weights)
    return tuple(max(1, round(share * (LARGEST_WEIGHT_SUM // 2))) if share else 0 for share in shares)


def decimal(number: float) -> Fraction:
    """The fraction that the shortest decimal text of a float names."""
    return Fraction(repr(float(number)))


def _role_shares(data: DataSettings) -> dict[str | None, Fraction]:
    """The share of each role; without a replay ratio, of all sources together (None)."""
    if data.replay_ratio is None:
        return {None: Fraction(1)}
    replay = decimal(data.replay_ratio)
    return {"domain": 1 - replay, "replay": replay}
