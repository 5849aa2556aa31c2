"""The phases of a run: those configured, the stairs of ramps, and those that begin where a stream is exhausted.

A stream is exhausted once it has given all sequences that it may (streams.py). Where its share is to be redistributed,
a phase begins at exactly that index of the run, in which its share is divided among the others of its role in
proportion, so that the replay ratio holds before and after. A phase that begins with an epoch of a source begins with
the first whole step after it. All of them depend on what came before them alone: a longer run or a phase appended later
changes none.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.batches import Batches
from megatron_cpt.config.blend import DataSettings, PhaseSettings
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.units import Duration, epochs_of_source
from megatron_cpt.mixture.shares import due_shares, integer_weights, source_of
from megatron_cpt.mixture.streams import BlendStream
from megatron_cpt.mixture.weight_tree import Integers, WeightTree

Shares = tuple[Fraction, ...]
STAIRS = 32
"""Stairs of a ramp whose blocks the configuration does not size."""


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
    tokens = sum(stream.once for stream in streams if source_of(stream.name) == source)
    of_source = np.array([source_of(stream.name) == source for stream in streams])
    sequences = ceil(Fraction(repr(epochs)) * tokens / data.sequence_length)
    most = data.sources[source].max_epochs
    if most is not None and epochs <= most:
        # A limit is rounded down: what it allows is as near to the epochs as the source comes.
        sequences = min(sequences, sum(stream.room for stream in streams if source_of(stream.name) == source))
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
        self._rooms = np.array([stream.room for stream in self.streams], np.int64)
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
        for stair, stair_end in self._stairs(shares, phase):
            self._shares = stair
            if self._lay(stair, roles, end if stair_end is None else min(end, stair_end), goal):
                return True
        return False

    def _stairs(self, shares: Shares, phase: PhaseSettings) -> Iterator[tuple[Shares, int | None]]:
        """The blends of a phase and the indices where they end; the last lasts to the end of the phase.

        A stair has the share that a straight ramp has in its middle, so that both give as many tokens.
        """
        before = self._shares
        if phase.ramp is not None and before is not None:
            begin, tokens = self.position, self.batches.times(self.data.sequence_length)
            done = self.batches.whole_steps(begin)
            steps = self._steps_of(phase.ramp)
            block = phase.ramp_block.steps(tokens.size) if phase.ramp_block else ceil(steps / STAIRS)
            whole = self.batches.total(done + steps) - begin
            for first in range(0, steps, block):
                stair_begin = self.batches.total(done + first)
                stair_end = self.batches.total(done + min(first + block, steps))
                part = Fraction(stair_begin + stair_end - 2 * begin, 2 * whole)
                stair = tuple(old + part * (new - old) for old, new in zip(before, shares, strict=True))
                yield stair, stair_end
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
            exhausted = self._given >= self._rooms if self._redistributes else np.zeros(len(shares), np.bool_)
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
        read, room = np.array([share > 0 for share in shares]), self._rooms - self._given
        return _first(most, lambda length: bool(np.any((tree.counts(length) >= room) & read)))

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
