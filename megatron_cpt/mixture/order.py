"""The order of training sequences: a pure function of (phases, seed, index), with no index files.

1. The index falls into a phase, and the phase's weight-cut tree (weight_tree.py, with the proof that every
   source stays within two sequences of its due share) turns it into a source and a count of that
   source's sequences within the phase.
2. What the source gave in earlier phases is added: its position is carried on, nothing is read twice or
   skipped where the weights change.
3. The T tokens of a source repeat for ever; sequence s is tokens [s L, s L + L) of that endless stream.
   Epoch e owns the sequences that start in it, s in [ceil(e T / L), ceil((e + 1) T / L)), and reads them in
   the order of a keyed permutation (permutation.py), the key made of seed, source name and epoch.

4. A source that is read in draws of K sequences gives the first K of epoch d's permutation for draw d, or, where
   one draw is repeated, the first K of epoch 0's, in the order of a permutation keyed by the number of the pass.

Without draws nothing is dropped, every token is read k times before any is read k + 1 times (the one sequence across
the edge of an epoch aside), the cut into sequences moves from epoch to epoch by itself, and sources shorter
than a sequence work. Nothing depends on the length of the run, on batch sizes, ranks or workers.

All arithmetic is exact in 64 bits: weights of a phase sum to at most 2^30, runs and sources are shorter than
2^62 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.mixture.permutation import derive, key_of, permute
from megatron_cpt.mixture.weight_tree import Integers, WeightTree

TOKEN_LIMIT = 2**62
"""Runs and sources are shorter than this, in tokens."""

_REPEATED = 2**63
"""Keys the orders of a draw that is repeated apart from those of epochs, which are fewer."""


@dataclass(frozen=True)
class Draw:
    """A source is read in draws: so many of the sequences of an epoch, chosen at random."""

    sequences: int
    """Sequences of a draw; the source has as many tokens."""
    anew: bool
    """Whether each draw is made anew from the whole source; otherwise the first is repeated in other orders."""


@dataclass(frozen=True)
class SourceStream:
    """What the order has to know of a source."""

    name: str
    """Part of the permutation's key: a renamed source is another source."""
    tokens: int
    """Tokens of one pass over the source."""
    draw: Draw | None = None
    """The draws that it is read in; None: whole epochs."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own weights."""

    first_sequence: int
    """Index of its first sequence; it lasts until the next phase begins."""
    weights: tuple[int, ...]
    """Integer weight of each source, in the order of the sources; 0 leaves one out."""


@dataclass(frozen=True)
class Located:
    """Where sequences of the run come from; arrays of one shape [n]."""

    source: npt.NDArray[np.int32]
    """Number of the source."""
    epoch: Integers
    """Epoch of the source, or number of its draw, from 0."""
    sequence: Integers
    """s: the sequence is tokens [s L, s L + L) of the source's endless stream."""


class SampleOrder:
    """The order of a run's sequences. Takes memory per source, none per sequence."""

    def __init__(
        self, sources: Sequence[SourceStream], phases: Sequence[Phase], sequence_length: int, seed: int
    ) -> None:
        """Raises ValueError for what makes no order; mixture/plan.py has the messages for users."""
        _check(sources, phases, sequence_length)
        self.sources = tuple(sources)
        self.phases = tuple(phases)
        self.sequence_length = sequence_length
        self.seed = seed
        names = [source.name for source in sources]
        self._tokens = np.array([source.tokens for source in sources], np.int64)
        self._keys = np.array([key_of("order", seed, name) for name in names], np.uint64)
        self._drawn = np.array([source.draw.sequences if source.draw else 0 for source in sources], np.int64)
        self._anew = np.array([source.draw is None or source.draw.anew for source in sources])
        self._starts = np.array([phase.first_sequence for phase in phases], np.int64)
        self._trees = [WeightTree(phase.weights, names) for phase in phases]
        self._carried = np.zeros((len(phases), len(sources)), np.int64)
        for number, length in enumerate(np.diff(self._starts)):
            self._carried[number + 1] = self._carried[number] + self._trees[number].counts(int(length))

    def locate(self, indices: npt.ArrayLike) -> Located:
        """Source, epoch and sequence of each index of the run; indices is an integer array of shape [n].

        Raises ValueError for a negative index or one that ends after 2^62 tokens.
        """
        index = np.atleast_1d(np.asarray(indices, np.int64))
        if np.any(index < 0) or np.any(index >= TOKEN_LIMIT // self.sequence_length):
            raise ValueError(f"an index lies before the run's first sequence or after its first {TOKEN_LIMIT} tokens")
        phase = np.searchsorted(self._starts, index, side="right") - 1
        source, position = np.empty_like(index), np.empty_like(index)
        for number in np.unique(phase):
            here = phase == number
            source[here], position[here] = self._trees[number].locate(index[here] - self._starts[number])
        return self._shuffled(source, position + self._carried[phase, source])

    def counts(self, sequences: int) -> Integers:
        """Sequences of each source among the first `sequences` of the run, shape [sources]."""
        phase = max(0, int(np.searchsorted(self._starts, sequences)) - 1)
        return self._carried[phase] + self._trees[phase].counts(sequences - int(self._starts[phase]))

    def _shuffled(self, source: Integers, position: Integers) -> Located:
        """The sequence read in the place of each source's position-th, within the same epoch."""
        length, tokens = self.sequence_length, self._tokens[source]
        epoch = position * length // tokens
        cut, within = epoch, position - _ceil_divide(epoch * tokens, length)
        drawn = np.flatnonzero(self._drawn[source])
        if drawn.size:
            cut = epoch.copy()
            epoch[drawn], cut[drawn], within[drawn] = self._in_draws(source[drawn], position[drawn])
        first = _ceil_divide(cut * tokens, length)
        size = _ceil_divide((cut + 1) * tokens, length) - first
        place = permute(within, size, derive(self._keys[source], np.where(self._anew[source], epoch, 0)))
        return Located(source.astype(np.int32), epoch, first + place.astype(np.int64))

    def _in_draws(self, source: Integers, position: Integers) -> tuple[Integers, Integers, Integers]:
        """The draw of each position, the epoch whose cut into sequences it takes, and the place in its permutation."""
        draw, within = np.divmod(position, self._drawn[source])
        again = np.flatnonzero(~self._anew[source])
        keys = derive(derive(self._keys[source[again]], _REPEATED), draw[again])
        within[again] = permute(within[again], self._drawn[source[again]], keys).astype(np.int64)
        # The cuts of epochs e and e + L are the same; the smaller of them stays inside 64 bits.
        return draw, np.where(self._anew[source], draw % self.sequence_length, 0), within


def _check(sources: Sequence[SourceStream], phases: Sequence[Phase], sequence_length: int) -> None:
    starts = [phase.first_sequence for phase in phases]
    if sequence_length < 1 or not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise ValueError("an order needs a sequence length, and phases of which the first begins at 0")
    if len({source.name for source in sources}) != len(sources):
        raise ValueError("two sources of an order have the same name")
    read = {number for phase in phases for number, weight in enumerate(phase.weights) if weight}
    for number in read:
        source = sources[number]
        if not 0 < source.tokens < TOKEN_LIMIT:
            raise ValueError(f"source {source.name} is read, but has no tokens or more than 2^62")
        if source.draw and not 0 < source.draw.sequences <= source.tokens // sequence_length:
            raise ValueError(f"a draw of {source.draw.sequences} sequences from source {source.name} is not whole")


def _ceil_divide(numerator: Integers, denominator: int) -> Integers:
    return -(-numerator // denominator)
