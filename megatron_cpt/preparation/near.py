"""Which documents are near duplicates of one that stays, with memory bounded whatever the size of the corpus.

1. Range by range of band keys, one stretch of every run's table is read (findings.py); documents with an equal key are
   candidates, and those whose whole signatures agree enough are a pair. Pairs go to a scratch file.
2. Pairs are read back in the order of rank of the document that would leave: it leaves if the other one stays.

The rank of a document is its hold-out key (holdout.py), and of a pair the one of higher rank leaves. So which document
of several stays depends on content alone, not on the order of the input; and if any of them would be held out, the
one that stays is: no near duplicate of a held-out document remains in training. Likeness is judged pair by pair,
never through a chain of documents between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.preparation.findings import FoundRun
from megatron_cpt.preparation.marks import Marks
from megatron_cpt.preparation.minhash import SLOTS, similarity
from megatron_cpt.preparation.sorted_run import SortedRun
from megatron_cpt.runs.durable import named_errors

RANGE_BANDS = 1 << 21
"""Bands that are compared at a time, about: 100 MB."""
COMPARED_TEXTS = 1 << 16
"""Candidates whose signatures are in memory at a time: 34 MB."""
JUDGED_PAIRS = 1 << 14
"""Pairs whose signatures are compared at a time."""
RANGE_PAIRS = 1 << 20
"""Pairs that are sorted at a time, about: 100 MB."""
MOST_COMPARED = 32
"""Of documents that share a band key, each is compared with so many of lowest rank: templates have thousands."""
_BAND = np.dtype([("key", "<u8"), ("rank", "<u8"), ("document", "<i8")])
_PAIR = np.dtype([("rank", "<u8"), ("other_rank", "<u8"), ("document", "<i8"), ("other", "<i8"), ("similarity", "<f8")])
"""A document, by its number among those of all runs, and another of lower rank that it is like. All of 8 bytes: numpy
copies fields that are not aligned before it searches them."""


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A document that is nearly another, which stays."""

    run: int
    """Number of its run."""
    position: int
    """Its place among the records of the run."""
    of_run: int
    """Run of the document that stays."""
    of_position: int
    """Position of that document."""
    similarity: float
    """Share of the slots in which their signatures agree."""


def near_duplicates(
    runs: Sequence[SortedRun],
    found: Sequence[FoundRun],
    threshold: float,
    marks: Marks,
    scratch: Path,
) -> Iterator[NearDuplicate]:
    """Every document to be left out because one that stays is at least `threshold` (0 to 1) like it.

    `marks` says which documents are left out by now, exact copies among them; the caller has to mark what it is given
    before it asks for the next. `scratch` is a file that may be overwritten.
    """
    firsts = np.cumsum([0, *(run.documents for run in runs)])
    stretches = _write_pairs(_ranges(runs, found, firsts, marks), found, firsts, threshold, scratch)
    try:
        for pair in _in_order(scratch, stretches):
            run, position = _place(firsts, int(pair["document"]))
            other_run, other_position = _place(firsts, int(pair["other"]))
            if not marks.reason(run, position) and not marks.reason(other_run, other_position):
                yield NearDuplicate(run, position, other_run, other_position, round(float(pair["similarity"]), 4))
    finally:
        scratch.unlink(missing_ok=True)


def _place(firsts: npt.NDArray[np.int64], document: int) -> tuple[int, int]:
    run = int(np.searchsorted(firsts, document, side="right")) - 1
    return run, document - int(firsts[run])


def _write_pairs(
    ranges: Iterator[npt.NDArray[np.void]],
    found: Sequence[FoundRun],
    firsts: npt.NDArray[np.int64],
    threshold: float,
    scratch: Path,
) -> list[tuple[int, int]]:
    """Writes all pairs in stretches, each sorted, and returns where each begins and ends."""
    stretches: list[tuple[int, int]] = []
    written = 0
    with named_errors(scratch), scratch.open("wb") as file:
        for bands in ranges:
            for candidates in _candidates(bands):
                pairs = _pairs(candidates, _Signatures(found, firsts, candidates["document"]), threshold)
                file.write(pairs.tobytes())  # numpy's own writing passes over a full disk
                stretches.append((written, written + len(pairs)))
                written += len(pairs)
    return stretches


def _ranges(
    runs: Sequence[SortedRun], found: Sequence[FoundRun], firsts: npt.NDArray[np.int64], marks: Marks
) -> Iterator[npt.NDArray[np.void]]:
    """The bands of all documents that are not left out, sorted by key and rank, a range of keys at a time."""
    bits = (sum(one.bands for one in found) // RANGE_BANDS).bit_length()
    for number in range(1 << bits):
        low, high = number << (64 - bits), ((number + 1) << (64 - bits)) - 1
        parts = [np.empty(0, _BAND)]
        for owner, (run, one) in enumerate(zip(runs, found, strict=True)):
            keys = one.band_keys()
            begin = int(np.searchsorted(keys, np.uint64(low), side="left"))
            end = int(np.searchsorted(keys, np.uint64(high), side="right"))
            part = np.empty(end - begin, _BAND)
            positions = one.band_positions()[begin:end]
            part["key"] = keys[begin:end]
            part["rank"] = run.records()["holdout_key"][positions]
            part["document"] = positions.astype(np.int64) + firsts[owner]
            parts.append(part[~marks.left_out_at(owner, positions)])
        bands = np.concatenate(parts)
        yield bands[np.lexsort((bands["rank"], bands["key"]))]


def _candidates(bands: npt.NDArray[np.void]) -> Iterator[npt.NDArray[np.void]]:
    """The bands that others have too, some at a time, those of one key together."""
    same = bands["key"][1:] == bands["key"][:-1]
    shared = np.zeros(len(bands), np.bool_)
    shared[1:] |= same
    shared[:-1] |= same
    bands = bands[shared]
    if len(bands) == 0:
        return
    begins = np.flatnonzero(np.concatenate([[True], bands["key"][1:] != bands["key"][:-1]]))
    ends = np.append(begins[1:], len(bands))
    first = 0
    while first < len(begins):
        last = max(first + 1, int(np.searchsorted(ends, begins[first] + COMPARED_TEXTS, side="right")))
        lot = bands[begins[first] : ends[last - 1]]
        if len(lot) <= COMPARED_TEXTS:
            yield lot
        else:
            # All of one key.
            for start in range(MOST_COMPARED, len(lot), COMPARED_TEXTS):
                yield np.concatenate([lot[:MOST_COMPARED], lot[start : start + COMPARED_TEXTS]])
        first = last


class _Signatures:
    """Signatures of some documents, read once."""

    def __init__(
        self, found: Sequence[FoundRun], firsts: npt.NDArray[np.int64], documents: npt.NDArray[np.int64]
    ) -> None:
        self._documents = np.unique(documents)
        self._rows = np.empty((len(self._documents), SLOTS), np.uint32)
        bounds = np.searchsorted(self._documents, firsts)
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            begin, end = bounds[number], bounds[number + 1]
            rows = found[number].signature_rows()
            self._rows[begin:end] = rows[self._documents[begin:end] - firsts[number]]

    def of(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """uint32[documents, SLOTS]"""
        rows: npt.NDArray[np.uint32] = self._rows[np.searchsorted(self._documents, documents)]
        return rows


def _pairs(candidates: npt.NDArray[np.void], signatures: _Signatures, threshold: float) -> npt.NDArray[np.void]:
    """The candidates that are alike, sorted: each with those of lowest rank among the documents of its key."""
    begins = np.flatnonzero(np.concatenate([[True], candidates["key"][1:] != candidates["key"][:-1]]))
    group = np.repeat(begins, np.diff(begins, append=len(candidates)))
    behind = np.arange(len(candidates)) - group
    alike = [np.empty(0, _PAIR)]
    for lowest in range(min(MOST_COMPARED, int(behind.max()))):
        judged = np.flatnonzero(behind > lowest)
        for start in range(0, len(judged), JUDGED_PAIRS):
            these = judged[start : start + JUDGED_PAIRS]
            documents, others = candidates[these], candidates[group[these] + lowest]
            likeness = similarity(signatures.of(documents["document"]), signatures.of(others["document"]))
            kept = likeness >= threshold
            alike.append(_paired(documents[kept], others[kept], likeness[kept]))
    return _sorted_once(np.concatenate(alike))


def _paired(
    documents: npt.NDArray[Any], others: npt.NDArray[Any], alike: npt.NDArray[np.float64]
) -> npt.NDArray[np.void]:
    pairs = np.empty(len(documents), _PAIR)
    pairs["rank"], pairs["document"] = documents["rank"], documents["document"]
    pairs["other_rank"], pairs["other"], pairs["similarity"] = others["rank"], others["document"], alike
    return pairs


def _in_order(scratch: Path, stretches: Sequence[tuple[int, int]]) -> Iterator[npt.NDArray[np.void]]:
    """All pairs, sorted, a range of ranks at a time."""
    count = stretches[-1][1] if stretches else 0
    if count == 0:
        return
    bits = (count // RANGE_PAIRS).bit_length()
    for number in range(1 << bits):
        # Mapped anew for each range, so that the pages of the one before are not held.
        table = np.memmap(scratch, _PAIR, mode="r", shape=(count,))
        low, high = number << (64 - bits), ((number + 1) << (64 - bits)) - 1
        parts = [np.empty(0, _PAIR)]
        for begin, end in stretches:
            ranks = table["rank"][begin:end]
            first = begin + int(np.searchsorted(ranks, np.uint64(low), side="left"))
            last = begin + int(np.searchsorted(ranks, np.uint64(high), side="right"))
            parts.append(np.array(table[first:last]))
        yield from _sorted_once(np.concatenate(parts))


def _sorted_once(pairs: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Pairs by rank and other rank; one that several bands found is there once."""
    pairs = pairs[np.lexsort((pairs["other_rank"], pairs["rank"]))]
    again = (pairs["rank"][1:] == pairs["rank"][:-1]) & (pairs["other_rank"][1:] == pairs["other_rank"][:-1])
    return pairs[np.concatenate([np.ones(min(1, len(pairs)), np.bool_), ~again])]
