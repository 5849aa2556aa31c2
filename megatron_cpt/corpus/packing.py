"""Whole documents packed into sequences by best fit decreasing (arXiv:2404.10830), as a stream of sequences.

1. A document of at most L tokens is one piece. A longer one is cut into pieces of L tokens; each begins with the last
   token of the one before, which is its input and was its label.
2. Pieces go by length, longest first, into the fullest sequence that has room for them, else into a new one. So which
   pieces are together is a function of the lengths alone.
3. The stream has the sequences one behind the other, L tokens each: its pieces in their order, then padding. Sequence s
   of the order is therefore one of them, and an epoch is all of them.

The first token of a piece and padding count in no loss: nothing before them is of their document. Every other token
counts as it would without packing. A document of one token has no label, and is left out.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.manifest import Described
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.corpus.stream import TokenStream

Int64s = npt.NDArray[np.int64]

PADDING = 0
"""The id that fills a sequence up: any that the model has a row for."""


def best_fit(lengths: Int64s, capacity: int) -> Int64s:
    """The bin of each item, from 0, by best fit decreasing; of equal lengths the first item is placed first: int64[n].

    Args:
        lengths: int64[n], from 1 to the capacity.

    >>> best_fit(np.array([3, 7, 5, 2]), 10).tolist()
    [0, 0, 1, 1]
    """
    bins = np.empty(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1
    room: dict[int, list[Int64s]] = {}  # bins by the room that is left in them, those longest there first
    count = 0
    for items in np.split(order, cuts) if len(order) else []:
        length = int(lengths[items[0]])
        # All items of a length at once: of those that fit, the fullest bins take as many as they have room for.
        for left in sorted(left for left in room if left >= length):
            if not len(items):
                break
            there = np.concatenate(room.pop(left))
            items, untouched = _filled(bins, items, length, there, left, room)
            if len(untouched):
                room[left] = [untouched]
        if len(items):
            needed = -(-len(items) // (capacity // length))
            items, _ = _filled(bins, items, length, np.arange(count, count + needed), capacity, room)
            count += needed
    return bins


def _filled(
    bins: Int64s, items: Int64s, length: int, there: Int64s, left: int, room: dict[int, list[Int64s]]
) -> tuple[Int64s, Int64s]:
    """Puts items of a length into bins that have so much room left; what remains of the items, and of the bins."""
    each = left // length
    used = min(len(there), -(-len(items) // each))
    taken = min(len(items), used * each)
    bins[items[:taken]] = np.repeat(there[:used], each)[:taken]
    last = taken - (used - 1) * each  # items in the last of the bins
    for which, number in ((there[: used - 1], each), (there[used - 1 : used], last)):
        if len(which) and left - number * length:
            room.setdefault(left - number * length, []).append(which)
    return items[taken:], there[used:]


def pieces_of(lengths: Int64s, capacity: int) -> tuple[Int64s, Int64s, Int64s]:
    """The pieces of documents: number of the document, offset in it, and tokens of each, int64[pieces].

    >>> [part.tolist() for part in pieces_of(np.array([3, 1, 10]), 4)]
    [[0, 2, 2, 2], [0, 0, 3, 6], [3, 4, 4, 4]]
    """
    # A piece of n tokens has n - 1 labels, and so has a document of n tokens in pieces that share one.
    counts = -(-(lengths - 1) // max(capacity - 1, 1))
    documents = np.repeat(np.arange(len(lengths)), counts)
    numbers = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = numbers * (capacity - 1)
    return documents, offsets, np.minimum(lengths[documents] - offsets, capacity)


class PackedStream(TokenStream):
    """Datasets and selections whose documents are packed into sequences. Raises as TokenStream does."""

    def __init__(
        self,
        paths: Sequence[str | Path],
        only: Sequence[SelectedDataset] | None,
        sequence_length: int,
        described: Described | None = None,
    ) -> None:
        """Opens what TokenStream opens; `sequence_length` is at least 2 tokens."""
        super().__init__(paths, only, described)
        self.sequence_length = sequence_length
        self.unpacked_tokens = self.tokens
        """Tokens of all documents."""
        lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in self.documents())])
        self.cut_documents = sum(int((part.lengths > sequence_length).sum()) for part in self.documents())
        """Documents that are longer than a sequence."""
        documents, offsets, self._lengths = pieces_of(np.maximum(lengths, 1), sequence_length)
        bins = best_fit(self._lengths, sequence_length)
        order = np.argsort(bins, kind="stable")
        starts = np.cumsum(lengths) - lengths
        self._origins = (starts[documents] + offsets)[order]
        """Where each piece begins in the stream that is not packed."""
        self._lengths = self._lengths[order]
        self.sequences = int(bins.max(initial=-1)) + 1
        """Sequences of an epoch."""
        ends = np.cumsum(self._lengths)
        firsts = np.flatnonzero(np.diff(bins[order], prepend=-1))
        before = np.repeat(ends[firsts] - self._lengths[firsts], np.diff(firsts, append=len(order)))
        self._places = ends - self._lengths - before + bins[order] * sequence_length
        """Where each piece begins in this stream."""
        self.tokens = self.sequences * sequence_length
        digest = hashlib.sha256(self._origins.astype("<i8").tobytes() + self._lengths.astype("<i8").tobytes())
        self._described += f"\npacked {sequence_length} {digest.hexdigest()}"
        self.identity = self.identity_by([manifest.data_sha256 for manifest in self.manifests])

    @property
    def padding_share(self) -> float:
        """Share of the tokens, 0 to 1, that are padding."""
        return 1 - float(self._lengths.sum()) / self.tokens if self.tokens else 0.0

    @property
    def has_own_mask(self) -> bool:
        return True

    @cached_property
    def _begins(self) -> Int64s:
        """Where pieces and padding begin, ascending."""
        ends = self._places + self._lengths
        return np.unique(np.concatenate([self._places, ends[ends % self.sequence_length > 0]]))

    def copy(self, start: int, out: Int64s) -> None:
        if self.tokens == 0:
            raise ValueError("a stream without tokens cannot be read")
        out[:] = PADDING
        for filled, origin, _, count in self._read_pieces(start, len(out)):
            super().copy(origin, out[filled : filled + count])

    def document_starts(self, start: int, length: int) -> Int64s:
        """Where documents, or pieces of long ones, and padding begin in [start, start + length), counted from start."""
        found = [np.empty(0, np.int64)]
        for filled, position, count in self._rounds(start, length):
            begins = self._begins
            inside = begins[begins.searchsorted(position) : begins.searchsorted(position + count)]
            found.append(inside - position + filled)
        return np.concatenate(found)

    def counts_in_loss(self, start: int, length: int, column: str | None) -> npt.NDArray[np.bool_]:
        found = np.zeros(length, np.bool_)
        for filled, origin, inside, count in self._read_pieces(start, length):
            found[filled : filled + count] = super().counts_in_loss(origin, count, column)
            if inside == 0:
                found[filled] = False
        return found

    def _rounds(self, start: int, length: int) -> "list[tuple[int, int, int]]":
        """Stretches of one pass each: tokens before it, where in the pass it begins, its tokens."""
        found, filled = [], 0
        while filled < length:
            position = (start + filled) % self.tokens
            count = min(length - filled, self.tokens - position)
            found.append((filled, position, count))
            filled += count
        return found

    def _read_pieces(self, start: int, length: int) -> "list[tuple[int, int, int, int]]":
        """What pieces hold of [start, start + length): tokens before it, where it begins in the stream that is not
        packed, how many tokens of the piece come before it, and its tokens."""
        found = []
        for filled, position, count in self._rounds(start, length):
            first = int(self._places.searchsorted(position, side="right")) - 1
            last = int(self._places.searchsorted(position + count))
            for number in range(max(first, 0), last):
                place, tokens = int(self._places[number]), int(self._lengths[number])
                begin, end = max(place, position), min(place + tokens, position + count)
                if begin < end:
                    inside = begin - place
                    found.append((filled + begin - position, int(self._origins[number]) + inside, inside, end - begin))
        return found
