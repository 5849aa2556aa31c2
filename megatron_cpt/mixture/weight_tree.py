"""Which source each sequence comes from: the weight-cut tree, in exact integers.

Construction. The sources, sorted by weight, are cut in two where the two halves weigh most nearly the
same; each half is cut again, down to single sources. Of the first n sequences that reach a node, the left
half gets

    left(n) = floor(n a / t + 1/2)        a = weight of the left half, t = weight of the node

and the right half the others. left(n) grows by 0 or 1 with n, so sequence n goes left exactly if
left(n + 1) > left(n), and is then number left(n) there, else number n - left(n) on the right. One walk
down the tree turns an index into a source and a position in its stream; the same divisions turn a prefix
into counts.

No source is ever two sequences off. Let e be the error of a node: the sequences that reached it less the
n w / W due to its weight. A child whose share of its node is q inherits q e and adds the rounding, so
|e(child)| <= q |e(node)| + 1/2. A child that is cut again has q <= 2/3. For let it hold two sources or more
and q > 1/2, and move the source next to the cut, of share w, to the other side. In a left child it is the
lightest, w <= q/2; beside a left child of share 1 - q it is no heavier than that, w <= 1 - q. The move would be
the better cut unless w >= 2 q - 1; either way q <= 2/3. So above the leaves |e| <= 1/2 + 2/3 |e| stays below 3/2,
and at a leaf below 3/2 + 1/2 = 2.

Exactness. n a may need 92 bits; with n = m t + r it is m a t + r a, so left(n) = m a + floor(r a / t + 1/2).
Weights sum to at most 2^30, so that everything stays inside 64 bits for every n.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd

import numpy as np
import numpy.typing as npt

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
