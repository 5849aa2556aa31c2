"""Which documents are exact copies or near duplicates of one that stays, with bounded memory.

Exact copies: every run has a table of its documents sorted by content hash (sorted_runs.py), read range by range. The
parts of a document that was cut have its hash. Those of its first copy stay, one of each number.

Near duplicates:
1. Range by range of band keys, one stretch of every run's table is read (text_signatures.py). Documents with an equal
   key are candidates; those whose whole signatures agree enough are a pair. Pairs go to a scratch file.
2. Pairs are read back in the order of the document that would be dropped. It is dropped if the other one stays.

The document of a pair with the higher hold-out key (sorted_runs.py) is dropped. So the choice depends on content alone,
not on the order of the input, and no near duplicate of a held-out document remains in training. Similarity is judged
pair by pair, never through a chain of documents.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megatron_cpt.preparation.sorted_runs import SortedRun
from megatron_cpt.preparation.text_signatures import SLOTS, FoundRun, similarity
from megatron_cpt.runs.folder import named_errors, sync_file


class Reason(IntEnum):
    """Why a document is left out."""

    NONE = 0
    """It stays."""
    COPY = 1
    """An exact copy of another."""
    CONTAMINATED = 2
    """It overlaps an evaluation item."""
    NEAR_DUPLICATE = 3
    """Nearly another, which stays."""


class DropMask:
    """A reason for each document of some runs. The file is made for a block, and goes with it unless it is kept."""

    def __init__(self, path: Path, runs: Sequence[SortedRun]) -> None:
        self._path = path
        self._first = np.cumsum([0, *(run.documents for run in runs)])

    @staticmethod
    def kept(path: Path, runs: Sequence[SortedRun]) -> "DropMask":
        """The reasons that `keep` left, of the same runs, to be read."""
        mask = DropMask(path, runs)
        mask._reasons = np.memmap(path, np.uint8, mode="r")
        return mask

    def __enter__(self) -> Self:
        count = max(1, int(self._first[-1]))
        with named_errors(self._path), self._path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, count)  # A full disk is an error here, and a signal at a mark.
        self._reasons = np.memmap(self._path, np.uint8, mode="r+", shape=(count,))
        return self

    def __exit__(self, *error: object) -> None:
        del self._reasons
        self._path.unlink(missing_ok=True)

    def keep(self, path: Path) -> tuple[int, int]:
        """Leaves the file under another name, on disk, and returns its bytes and the checksum that `holds` compares."""
        self._reasons.flush()
        sync_file(self._path)
        self._path.rename(path)
        return len(self._reasons), zlib.crc32(np.asarray(self._reasons).data)

    def set(self, run: int, position: int, reason: Reason) -> None:
        """Leaves a document of a run out."""
        self._reasons[self._first[run] + position] = reason

    def reason(self, run: int, position: int) -> Reason:
        """Why a document is left out, or NONE."""
        return Reason(self._reasons[self._first[run] + position])

    def left_out(self, run: int, first: int, end: int) -> npt.NDArray[np.bool_]:
        """Whether the documents of a stretch of a run are left out: bool[end - first]."""
        start = self._first[run]
        return np.array(self._reasons[start + first : start + end], np.bool_)

    def left_out_at(self, run: int, positions: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Whether some documents of a run are left out: bool[positions]."""
        return np.array(self._reasons[self._first[run] + positions.astype(np.int64)], np.bool_)


RANGE_BANDS = 1 << 21
"""Bands that are compared at a time, about: 100 MB."""
COMPARED_TEXTS = 1 << 16
"""Candidates whose signatures are in memory at a time: 34 MB."""
_JUDGED_PAIRS = 1 << 14
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
    drop_mask: DropMask,
    scratch: Path,
) -> Iterator[NearDuplicate]:
    """Every document to be left out because one that stays is at least `threshold` (0 to 1) like it.

    `drop_mask` says which documents are left out by now, exact copies among them. The caller has to drop what it is
    given before it asks for the next. `scratch` is a file that may be overwritten.
    """
    firsts = np.cumsum([0, *(run.documents for run in runs)])
    stretches = _write_pairs(_ranges(runs, found, firsts, drop_mask), found, firsts, threshold, scratch)
    try:
        for pair in _in_order(scratch, stretches):
            run, position = _place(firsts, int(pair["document"]))
            other_run, other_position = _place(firsts, int(pair["other"]))
            if not drop_mask.reason(run, position) and not drop_mask.reason(other_run, other_position):
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
    runs: Sequence[SortedRun], found: Sequence[FoundRun], firsts: npt.NDArray[np.int64], drop_mask: DropMask
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
            records = run.records()
            # Parts of a document share its key, and are told apart by their ranks.
            part["rank"] = records["holdout_key"][positions] + records["part"][positions].astype(np.uint64)
            part["document"] = positions.astype(np.int64) + firsts[owner]
            parts.append(part[~drop_mask.left_out_at(owner, positions)])
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
        for start in range(0, len(judged), _JUDGED_PAIRS):
            these = judged[start : start + _JUDGED_PAIRS]
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


RANGE_DOCUMENTS = 1 << 21
"""Documents that are compared at a time, about: 100 MB."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A document that repeats an earlier one."""

    content_hash: int
    """Of both."""
    run: int
    """Number of its run."""
    position: int
    """Its place among the records of the run."""
    first_run: int
    """Run of the document it repeats."""
    first_position: int
    """Position of that document."""


def copies(runs: Sequence[SortedRun]) -> Iterator[Copy]:
    """Every copy among runs given in the order read, in the order of content hashes and, within one, of reading."""
    documents = sum(run.documents for run in runs)
    if documents == 0:
        return
    bits = (documents // RANGE_DOCUMENTS).bit_length()
    for number in range(1 << bits):
        yield from _copies_between(runs, number << (64 - bits), ((number + 1) << (64 - bits)) - 1)


@dataclass(frozen=True, slots=True)
class KnownCopy:
    """A document that a dataset has already."""

    content_hash: int
    """Of both."""
    run: int
    """Number of its run."""
    position: int
    """Its place among the records of the run."""
    dataset: int
    """Number of the dataset."""
    document: int
    """Number of the document there."""


def known_copies(runs: Sequence[SortedRun], known: Sequence[npt.NDArray[np.uint64]]) -> Iterator[KnownCopy]:
    """Every document of the runs whose content hash is one of a dataset's: `known`, uint64[documents] of each."""
    hashes = np.concatenate([np.empty(0, np.uint64), *known])
    firsts = np.cumsum([0, *map(len, known)])
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    for number, run in enumerate(runs if len(hashes) else ()):
        table = run.by_hash()
        places = np.searchsorted(hashes, table["content_hash"])
        found = np.flatnonzero(hashes[np.minimum(places, len(hashes) - 1)] == table["content_hash"])
        for entry, place in zip(table[found], order[places[found]].tolist(), strict=True):
            dataset, document = _place(firsts, place)
            yield KnownCopy(int(entry["content_hash"]), number, int(entry["position"]), dataset, document)


def _copies_between(runs: Sequence[SortedRun], low: int, high: int) -> Iterator[Copy]:
    """The copies among hashes from `low` to `high`, both included."""
    stretches = []
    for run in runs:
        table = run.by_hash()
        hashes = table["content_hash"]
        first = int(np.searchsorted(hashes, np.uint64(low), side="left"))
        end = int(np.searchsorted(hashes, np.uint64(high), side="right"))
        stretches.append(np.array(table[first:end]))
    entries = np.concatenate(stretches)
    owners = np.repeat(np.arange(len(runs)), [len(stretch) for stretch in stretches])
    # Runs are in the order read and each stretch by place within a hash: a stable sort keeps the first one first.
    order = np.argsort(entries["content_hash"], kind="stable")
    hashes = entries["content_hash"][order]
    repeats = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    firsts = order[np.searchsorted(hashes, hashes[repeats])]
    stays = _first_of_parts(hashes, entries["part"][order])[repeats] & (entries["part"][firsts] > 0)
    repeats, firsts = repeats[~stays], firsts[~stays]
    for again, first in zip(order[repeats], firsts, strict=True):
        yield Copy(
            int(entries["content_hash"][again]),
            int(owners[again]),
            int(entries["position"][again]),
            int(owners[first]),
            int(entries["position"][first]),
        )


def _first_of_parts(hashes: npt.NDArray[np.uint64], parts: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether documents, sorted by hash, are the first of their hash and number of part, above 0: bool[documents]."""
    numbered = np.flatnonzero(parts)
    order = numbered[np.lexsort((parts[numbered], hashes[numbered]))]
    again = (hashes[order][1:] == hashes[order][:-1]) & (parts[order][1:] == parts[order][:-1])
    first = np.zeros(len(parts), np.bool_)
    first[order] = np.concatenate([np.ones(min(1, len(order)), np.bool_), ~again])
    return first
