"""The order of training sequences: a pure function of (phases, seed, index), with no index files.

1. The weight tree says which source sequence i comes from, and how many of each source came before, in exact integers.
2. The source's stream has epochs: epoch e of a source of T tokens owns sequences ceil(eT/L) to ceil((e+1)T/L).
3. A keyed permutation orders the sequences inside each epoch, position by position; no array is built.

In every prefix of a phase each source is within two sequences of its due share.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from math import gcd

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.hashing import mixed

Integers = npt.NDArray[np.int64]

LARGEST_WEIGHT_SUM = 2**30
"""Largest sum of the integer weights of a tree."""


@dataclass(frozen=True)
class _Level:
    """The nodes of one depth of a tree; all fields are arrays of shape [nodes].

    A half is a node of the next level, by its number there, or a single source, by ~number (negative).
    """

    left_weight: Integers
    weight: Integers
    left: Integers
    right: Integers

    def split(self, arrived: Integers, node: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
        """left(n) of n = `arrived` at each node, and whether sequence n itself goes left; shapes [n]."""
        weight, left_weight = self.weight[node], self.left_weight[node]
        laps, rest = np.divmod(arrived, weight)
        whole, part = np.divmod(2 * rest * left_weight + weight, 2 * weight)
        return laps * left_weight + whole, part + 2 * left_weight >= 2 * weight


class WeightTree:
    """The weight-cut tree of integer weights."""

    def __init__(self, weights: Sequence[int], names: Sequence[str]) -> None:
        """Weights are not negative and sum to 1 up to 2^30, else ValueError; 0 leaves a source out.

        Equal weights stand in the order of their names, and weights are divided by their common divisor:
        neither the order in which sources are listed nor the scale of the weights changes anything.
        """
        if len(weights) != len(names) or min(weights) < 0 or not 0 < sum(weights) <= LARGEST_WEIGHT_SUM:
            raise ValueError("one weight for each source, none negative, with a sum from 1 to 2^30")
        scale = gcd(*weights)
        ranked = sorted((-(weight // scale), names[number], number) for number, weight in enumerate(weights))
        present = [(-negative, number) for negative, _, number in ranked if negative]
        self._sources = len(weights)
        self._heaviest = present[0][1]
        self._levels = _levels([number for _, number in present], [weight for weight, _ in present])

    def locate(self, index: Integers) -> tuple[Integers, Integers]:
        """The source of each index (shape [n]) and the position in its stream, both of shape [n]."""
        source, position = np.full(index.shape, self._heaviest, np.int64), index.copy()
        walking, node, arrived = np.arange(index.size), np.zeros(index.shape, np.int64), index
        for level in self._levels:
            left_count, goes_left = level.split(arrived, node)
            arrived = np.where(goes_left, left_count, arrived - left_count)
            half = np.where(goes_left, level.left[node], level.right[node])
            done = half < 0
            source[walking[done]], position[walking[done]] = ~half[done], arrived[done]
            walking, node, arrived = walking[~done], half[~done], arrived[~done]
        return source, position

    def counts(self, sequences: int) -> Integers:
        """Sequences of each source among the first `sequences`, shape [sources]."""
        counts = np.zeros(self._sources, np.int64)
        counts[self._heaviest] = sequences
        arrived = np.array([sequences], np.int64)
        for level in self._levels:
            left_count, _ = level.split(arrived, np.arange(arrived.size))
            halves = np.concatenate((level.left, level.right))
            shares = np.concatenate((left_count, arrived - left_count))
            single = halves < 0
            counts[~halves[single]] = shares[single]
            arrived = np.empty(np.count_nonzero(~single), np.int64)
            arrived[halves[~single]] = shares[~single]
        return counts


def _levels(numbers: Sequence[int], weights: Sequence[int]) -> list[_Level]:
    """The levels of a tree, top first; none for a single source."""
    summed = [0, *accumulate(weights)]
    spans = [(0, len(numbers))] if len(numbers) > 1 else []
    levels: list[_Level] = []
    while spans:
        rows: list[tuple[int, ...]] = []
        below: list[tuple[int, int]] = []
        for low, high in spans:
            cut = _cut(summed, low, high)
            halves: list[int] = []
            for start, end in ((low, cut), (cut, high)):
                single = end - start == 1
                halves.append(~numbers[start] if single else len(below))
                below.extend([] if single else [(start, end)])
            rows.append((summed[cut] - summed[low], summed[high] - summed[low], *halves))
        levels.append(_Level(*np.array(rows, np.int64).T))
        spans = below
    return levels


def _cut(summed: Sequence[int], low: int, high: int) -> int:
    """Where the sources [low, high) part most evenly by weight; the earlier of two cuts that do."""
    doubled_half = summed[low] + summed[high]
    after = bisect_right(summed, doubled_half // 2, low + 1, high - 1)
    return min(range(max(low + 1, after - 1), after + 1), key=lambda cut: abs(2 * summed[cut] - doubled_half))


TOKEN_LIMIT = 2**62
"""Runs and sources are shorter than this, in tokens."""

_REPEATED = 2**63
"""Keys the orders of a draw that is repeated apart from those of epochs, which are fewer."""


@dataclass(frozen=True)
class Draw:
    """A source is read in draws: so many of the sequences of an epoch, chosen at random."""

    sequences: int
    """Sequences of a draw; the source has as many tokens."""
    resample: bool
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
        """Raises ValueError for what makes no order; mixture/blend.py has the messages for users."""
        _check(sources, phases, sequence_length)
        self.sources = tuple(sources)
        self.phases = tuple(phases)
        self.sequence_length = sequence_length
        self.seed = seed
        names = [source.name for source in sources]
        self._tokens = np.array([source.tokens for source in sources], np.int64)
        self._keys = np.array([key_of("order", seed, name) for name in names], np.uint64)
        self._drawn = np.array([source.draw.sequences if source.draw else 0 for source in sources], np.int64)
        self._resampled = np.array([source.draw is None or source.draw.resample for source in sources])
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
        place = permute(within, size, derive(self._keys[source], np.where(self._resampled[source], epoch, 0)))
        return Located(source.astype(np.int32), epoch, first + place.astype(np.int64))

    def _in_draws(self, source: Integers, position: Integers) -> tuple[Integers, Integers, Integers]:
        """The draw of each position, the epoch whose cut into sequences it takes, and the place in its permutation."""
        draw, within = np.divmod(position, self._drawn[source])
        again = np.flatnonzero(~self._resampled[source])
        keys = derive(derive(self._keys[source[again]], _REPEATED), draw[again])
        within[again] = permute(within[again], self._drawn[source[again]], keys).astype(np.int64)
        # The cuts of epochs e and e + L are the same; the smaller of them stays inside 64 bits.
        return draw, np.where(self._resampled[source], draw % self.sequence_length, 0), within


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


Unsigned = npt.NDArray[np.uint64]

ROUNDS = 20
"""Each half is hashed into the other ten times. A round moves tiny sizes very little: with 8 rounds the 720
permutations of six positions are visibly not equally likely, from 16 on a chi-square test finds nothing."""

LARGEST_SIZE = 2**62
"""The squares of the halves then stay inside 64 bits."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


_ROUND = mixed(np.arange(ROUNDS, dtype=np.uint64) + _GOLDEN)
"""What tells the rounds of a key apart."""


def derive(key: npt.ArrayLike, number: npt.ArrayLike) -> Unsigned:
    """The key of the `number`-th thing under a key: element by element, with numpy broadcasting."""
    return mixed(np.atleast_1d(_unsigned(key)) ^ mixed(np.atleast_1d(_unsigned(number)) + _GOLDEN))


def key_of(*parts: str | int) -> int:
    """A 64-bit key from words and numbers, the same on every machine and in every process."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(position: npt.ArrayLike, size: npt.ArrayLike, key: npt.ArrayLike) -> Unsigned:
    """Where each position of [0, size) goes under the permutation that `key` names.

    position, size and key are integers or integer arrays that broadcast to one shape [n]: every element
    may have its own size and key. Returns uint64 [n]. Raises ValueError for a size outside [1, 2^62] or a
    position outside [0, size).
    """
    positions, sizes, keys = np.broadcast_arrays(*map(np.atleast_1d, map(_unsigned, (position, size, key))))
    if np.any(sizes > LARGEST_SIZE) or np.any(positions >= sizes):
        raise ValueError("permute: a position lies outside [0, size), or a size outside [1, 2^62]")
    columns = _columns(sizes)
    result = _network(positions, sizes, columns, keys)
    outside = np.flatnonzero(result >= sizes)
    while outside.size:
        result[outside] = _network(result[outside], sizes[outside], columns[outside], keys[outside])
        outside = outside[result[outside] >= sizes[outside]]
    return result


def _network(position: Unsigned, size: Unsigned, columns: Unsigned, key: Unsigned) -> Unsigned:
    """One pass of all rounds over the pairs of [0, columns) x [0, rows)."""
    rows = (size + columns - np.uint64(1)) // columns
    left, right = np.divmod(position, rows)
    for first in range(0, ROUNDS, 2):
        left = (left + _hash(key, first, right)) % columns
        right = (right + _hash(key, first + 1, left)) % rows
    return left * rows + right


def _hash(key: Unsigned, number: int, half: Unsigned) -> Unsigned:
    """Of a half in a round: 63 bits, so that a half can be added without a carry out of 64."""
    return mixed(mixed(key ^ _ROUND[number]) + half * _GOLDEN) >> np.uint64(1)


def _columns(size: Unsigned) -> Unsigned:
    """The smallest even number whose square holds the size; the float root is off by one at most."""
    root = np.sqrt(size.astype(np.float64)).astype(np.uint64)
    root = root - (root * root > size)
    root = root + (root * root < size)
    return root + (root & np.uint64(1))


def _unsigned(value: npt.ArrayLike) -> Unsigned:
    return np.asarray(value).astype(np.uint64) if not isinstance(value, int) else np.asarray(value, np.uint64)
