"""Texts as hashed words and n-grams of words, alike where two texts differ only in case, blanks and punctuation.

For what compares texts rather than tokenizes them: near duplicates (text_signatures.py) and overlap with evaluation
items (contamination.py). A word is a run of letters and digits with their marks: vowel signs, tone marks, accents that
no letter contains. What joins letters and is not seen (U+200D, U+00AD) is no part of it. Where no blank parts words,
each ideograph is one and, in Thai, Lao, Khmer, Burmese and their relatives, what ends with a mark.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.hashing import mixed

_FACTOR = 0x9E3779B97F4A7C15
_INVERSE = pow(_FACTOR, -1, 1 << 64)
_CODE_POINTS = 0x110000
_ZERO_WIDTH_SPACE = "\u200b"
"""Parts words, unlike other characters that are not seen."""
_IDEOGRAPHS = ((0x3040, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000))
"""Kana and Han: first code point of each range and one behind its last."""


_UNSPACED = ((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x1950, 0x1AB0), (0xA9E0, 0xAA00), (0xAA60, 0xAAE0))
"""Scripts that put no blank between words, ideographs aside (Line_Break=SA of Unicode): as above."""
_PARTS, _LETTER, _WORD, _MARK, _SYLLABLE_MARK, _UNSEEN = range(6)
"""Kinds of code points: what parts words; of a word; a word by itself; belongs to the letter before it; that and ends
a word; is passed over."""


@dataclass(frozen=True)
class HashedWords:
    """The words of texts, laid end to end."""

    hashes: npt.NDArray[np.uint64]
    """64-bit hash of each word, the same on every machine: uint64[words of all]."""
    counts: npt.NDArray[np.int64]
    """Words of each text: int64[texts]."""

    def ngrams(self, length: int) -> "HashedWords":
        """The hashes of all runs of `length` words within a text; a text of fewer words has none."""
        ends = np.cumsum(self.counts)
        counts = np.maximum(self.counts - length + 1, 0)
        # Of each n-gram: its number among those of its text, behind all words before that text.
        firsts = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        firsts += np.repeat(ends - self.counts, counts)
        return HashedWords(_hashed_runs(mixed(self.hashes), firsts, firsts + length), counts)


def hashed_words(texts: Sequence[str]) -> HashedWords:
    """The words of texts, after compatibility decomposition (NFKC) and in lower case."""
    # Between two texts stands a line end, so that no word reaches from one into the next.
    plain = [unicodedata.normalize("NFKC", text).lower() for text in texts]
    points = np.frombuffer("\n".join([*plain, ""]).encode("utf-32-le", "surrogatepass"), "<u4")
    kind = _kinds()[points]
    text_ends = np.cumsum([len(text) + 1 for text in plain])
    if (kind == _UNSEEN).any():
        seen = kind != _UNSEEN
        text_ends = np.cumsum(seen)[text_ends - 1] if len(text_ends) else text_ends
        points, kind = points[seen], kind[seen]
    is_mark = kind >= _MARK
    ends_word = np.zeros(len(kind), np.bool_)
    if is_mark.any():
        # A mark is of the kind of what it stands on; on nothing it is nothing.
        base = np.maximum.accumulate(np.where(is_mark, 0, np.arange(len(kind))))
        ends_word = kind == _SYLLABLE_MARK
        kind = np.where(is_mark, np.where(kind[base] >= _MARK, _PARTS, kind[base]), kind)
    before = np.concatenate([np.zeros(1, np.uint8), kind[:-1]])
    starts = (kind == _WORD) | ((kind == _LETTER) & ((before != _LETTER) | np.concatenate([[False], ends_word[:-1]])))
    firsts = np.flatnonzero(starts & ~is_mark)
    after = np.concatenate([kind[1:], np.zeros(1, np.uint8)])
    mark_after = np.concatenate([is_mark[1:], [False]])
    stops = (kind == _WORD) | ((kind == _LETTER) & ((after != _LETTER) | ends_word))
    ends = np.flatnonzero(stops & ~mark_after) + 1
    counts = np.diff(np.searchsorted(firsts, text_ends), prepend=0)
    return HashedWords(_hashed_runs(points.astype(np.uint64) + np.uint64(1), firsts, ends), counts)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """The kind of each code point."""
    letters = map(str.isalnum, map(chr, range(_CODE_POINTS)))
    kinds = np.fromiter(letters, np.uint8, _CODE_POINTS)  # _PARTS and _LETTER
    for first, end in _IDEOGRAPHS:
        kinds[first:end] *= _WORD
    categories = np.array([unicodedata.category(chr(point)) for point in range(_CODE_POINTS)])
    kinds[np.char.startswith(categories, "M")] = _MARK
    for first, end in _UNSPACED:
        kinds[first:end][kinds[first:end] == _MARK] = _SYLLABLE_MARK
    kinds[categories == "Cf"] = _UNSEEN
    kinds[ord(_ZERO_WIDTH_SPACE)] = _PARTS
    return kinds


def _hashed_runs(
    values: npt.NDArray[np.uint64], firsts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """A hash of each values[first:end]: sums of v_i f^i up to every place, taken apart at both ends and shifted to 0.

    All modulo 2^64; the factor is odd, so that it has an inverse.
    """
    if len(firsts) == 0:
        return np.empty(0, np.uint64)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(_FACTOR, len(values)), out=sums[1:])
    runs = (sums[ends] - sums[firsts]) * _powers(_INVERSE, len(values))[firsts]
    return mixed(runs + mixed((ends - firsts).astype(np.uint64)))


def _powers(factor: int, count: int) -> npt.NDArray[np.uint64]:
    """1, f, f^2, ... modulo 2^64: uint64[count]."""
    powers = np.full(count, factor, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)
