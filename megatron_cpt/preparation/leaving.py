"""What is left out of a dataset, marked and listed with reason and place: the first steps of the last pass (join.py).

1. Rejected lines are listed; too many of them end the call here.
2. Exact copies of earlier documents (dedup.py), documents that overlap evaluation items (contamination.py), and near
   duplicates of documents that stay (near.py) are marked, in this order, and listed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.contamination import NGRAM_WORDS, SetOverlap
from megatron_cpt.preparation.dedup import copies
from megatron_cpt.preparation.findings import FoundRun
from megatron_cpt.preparation.holdout import below
from megatron_cpt.preparation.job import Job, contaminated_path, duplicates_path, near_duplicates_path, rejected_path
from megatron_cpt.preparation.marks import Marks, Reason
from megatron_cpt.preparation.near import near_duplicates
from megatron_cpt.preparation.piecework import Finished
from megatron_cpt.preparation.sorted_run import SortedRun
from megatron_cpt.runs.durable import durable_file

MOST_LISTED = 10
"""Items of a document that a list names, those with most n-grams in common; all are counted."""


class Places:
    """Where a document stood: pieces count lines from their own beginning, people from the file's."""

    def __init__(self, job: Job, pieces: Sequence[Finished], runs: Sequence[SortedRun]) -> None:
        self._job = job
        self._pieces = pieces
        self._runs = runs
        self._before: list[int] = []
        for number, piece in enumerate(pieces):
            goes_on = number > 0 and pieces[number - 1].file == piece.file
            self._before.append(self._before[-1] + pieces[number - 1].lines if goes_on else 0)

    def of_line(self, piece: int, line: int, name: str) -> dict[str, Any]:
        """File, line and, where there is one, id, for a list."""
        place: dict[str, Any] = {
            "file": self._job.sources[self._pieces[piece].file].path,
            "line": self._before[piece] + line,
        }
        return place | {"id": name} if name else place

    def of_document(self, run: int, position: int) -> dict[str, Any]:
        """The same of a document of a run."""
        record = self._runs[run].records()[position]
        name = self._runs[run].id_of(position) if record["id_bytes"] else ""
        return self.of_line(run, int(record["line"]), name)


def list_rejected(job: Job, pieces: Sequence[Finished], places: Places) -> int:
    """Lists every rejected line and returns how many there are. BadInput: more than are allowed."""
    entries = (
        places.of_line(number, line.line, line.id) | {"reason": line.reason}
        for number, piece in enumerate(pieces)
        for line in piece.rejected
    )
    rejected = _write_list(rejected_path(job.output), entries)
    read = sum(piece.lines for piece in pieces)
    if rejected > job.settings.max_rejected * read:
        raise BadInput(
            Fault(
                f"{rejected:,} of {read:,} documents",
                f"were rejected, more than {job.settings.max_rejected:.2%}; "
                f"{rejected_path(job.output)} lists them with reasons.",
                "Mend them, or allow more with --max-rejected: what is tokenized already is used again.",
            )
        )
    return rejected


def mark_copies(job: Job, runs: Sequence[SortedRun], places: Places, marks: Marks) -> int:
    """Marks and lists every exact copy with what it repeats, and returns how many there are."""

    def entries() -> Iterator[dict[str, Any]]:
        for copy in copies(runs):
            marks.mark(copy.run, copy.position, Reason.COPY)
            yield {
                **places.of_document(copy.run, copy.position),
                "reason": "exact copy",
                "of": places.of_document(copy.first_run, copy.first_position),
                "content_hash": f"{copy.content_hash:016x}",
            }

    return _write_list(duplicates_path(job.output), entries())


def mark_contaminated(found: Sequence[FoundRun], marks: Marks) -> int:
    """Marks every document that overlaps an evaluation item and is not left out yet; returns how many there are."""
    count = 0
    for run, one in enumerate(found):
        for position in np.unique(one.overlap_table()["position"]).tolist():
            if marks.reason(run, position) == Reason.NONE:
                marks.mark(run, position, Reason.CONTAMINATED)
                count += 1
    return count


def mark_near_duplicates(
    job: Job, threshold: float, runs: Sequence[SortedRun], found: Sequence[FoundRun], places: Places, marks: Marks
) -> int:
    """Marks and lists every near duplicate of a document that stays, and returns how many there are."""

    def entries() -> Iterator[dict[str, Any]]:
        for again in near_duplicates(runs, found, threshold, marks, job.workspace / "pairs"):
            marks.mark(again.run, again.position, Reason.NEAR_DUPLICATE)
            yield {
                **places.of_document(again.run, again.position),
                "reason": "near duplicate",
                "of": places.of_document(again.of_run, again.of_position),
                "similarity": again.similarity,
            }

    return _write_list(near_duplicates_path(job.output), entries())


def list_contaminated(
    job: Job,
    evaluation: Sequence[dict[str, Any]],
    runs: Sequence[SortedRun],
    found: Sequence[FoundRun],
    places: Places,
    marks: Marks,
    bound: int,
) -> list[SetOverlap]:
    """Lists every document that overlaps evaluation items, copies apart, and counts them by set.

    `evaluation` are the sets by name with the ids of their items; `bound`, that of held-out documents, which are listed
    and not counted unless they are left out.
    """
    tally = _Tally(evaluation)

    def entries() -> Iterator[dict[str, Any]]:
        for run, one in enumerate(found):
            for overlaps in _by_document(one, runs[run]):
                position = int(overlaps["position"][0])
                reason = marks.reason(run, position)
                if reason in (Reason.COPY, Reason.NEAR_DUPLICATE):
                    continue
                left_out = reason == Reason.CONTAMINATED
                key = runs[run].records()["holdout_key"][position : position + 1]
                held_out = not left_out and bool(below(key, bound)[0])
                if not held_out:
                    tally.add(overlaps["item"], left_out)
                yield {
                    **places.of_document(run, position),
                    "reason": f"shares {NGRAM_WORDS}-grams of words with evaluation items",
                    "left_out": left_out,
                    "held_out": held_out,
                    "items": len(overlaps),
                    "overlaps": tally.named(overlaps),
                }

    _write_list(contaminated_path(job.output), entries())
    return tally.sets()


def _by_document(found: FoundRun, run: SortedRun) -> Iterator[npt.NDArray[np.void]]:
    """The overlaps of each document that has some, in the order read."""
    table = np.array(found.overlap_table())
    positions, begins = np.unique(table["position"], return_index=True)
    ends = np.append(begins[1:], len(table))
    for number in np.argsort(run.records()["line"][positions]).tolist():
        yield table[begins[number] : ends[number]]


class _Tally:
    """Documents and items by set."""

    def __init__(self, evaluation: Sequence[dict[str, Any]]) -> None:
        self._evaluation = evaluation
        self._firsts = np.cumsum([0, *(len(one["items"]) for one in evaluation)])
        self._items = np.zeros((2, int(self._firsts[-1])), np.bool_)
        self._documents = np.zeros((2, len(evaluation)), np.int64)

    def add(self, items: npt.NDArray[np.uint32], left_out: bool) -> None:
        """A document that overlaps these items, each once."""
        self._items[int(left_out), items] = True
        self._documents[int(left_out), np.unique(self._set_of(items))] += 1

    def named(self, overlaps: npt.NDArray[np.void]) -> list[dict[str, Any]]:
        """The items that a document has most in common with."""
        most = overlaps[np.lexsort((overlaps["item"], -overlaps["ngrams"].astype(np.int64)))][:MOST_LISTED]
        named = []
        for overlap, number in zip(most, self._set_of(most["item"]).tolist(), strict=True):
            one = self._evaluation[number]
            item = one["items"][int(overlap["item"]) - int(self._firsts[number])]
            named.append({"set": one["name"], "item": item, "ngrams": int(overlap["ngrams"])})
        return named

    def sets(self) -> list[SetOverlap]:
        """The counts of each set."""
        counted = []
        for number, one in enumerate(self._evaluation):
            kept, left_out = self._items[:, self._firsts[number] : self._firsts[number + 1]].sum(axis=1).tolist()
            counted.append(
                SetOverlap(
                    name=one["name"],
                    source=one["source"],
                    sha256=one["sha256"],
                    items=len(one["items"]),
                    too_short=one["too_short"],
                    items_left_out=left_out,
                    items_kept=kept,
                    documents_left_out=int(self._documents[1, number]),
                    documents_kept=int(self._documents[0, number]),
                )
            )
        return counted

    def _set_of(self, items: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        return np.searchsorted(self._firsts, items, side="right") - 1


def _write_list(path: Path, entries: Iterator[dict[str, Any]]) -> int:
    """A JSON object a line; returns how many. Of none there is no file."""
    count = 0
    with durable_file(path) as listing:
        for entry in entries:
            listing.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    if count == 0:
        path.unlink()
    return count
