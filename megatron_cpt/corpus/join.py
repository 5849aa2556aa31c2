"""Finished pieces to a dataset: the last pass of a single run, and what `merge` does with shards.

1. Rejected lines are listed; too many of them end the call here.
2. Exact copies of earlier documents are found, listed and marked, a byte a document on disk (dedup.py).
3. The bound is found below which documents are held out (holdout.py).
4. Range by range of keys, one stretch of every run is read, sorted, and written to PREFIX or PREFIX.validation.

Memory holds one range, whatever the size of the whole. What stood under PREFIX stays whole until step 4 ends.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.columns import DOCUMENT_RECORD, DOCUMENTS, ColumnWriter, column_path
from megatron_cpt.corpus.dedup import copies
from megatron_cpt.corpus.holdout import below, bound_of_share, bound_of_tokens
from megatron_cpt.corpus.indexed import IndexedWriter, bin_path, invalidate, manifest_path
from megatron_cpt.corpus.job import Job, duplicates_path, ids_path, rejected_path, validation_prefix
from megatron_cpt.corpus.manifest import Manifest, read_manifest, write_manifest
from megatron_cpt.corpus.piecework import Finished
from megatron_cpt.corpus.sorted_run import SortedRun, TokenizedDocuments
from megatron_cpt.runs.durable import durable_file

RANGE_BYTES = 128 << 20
"""Of token ids in a range of keys, about."""


@dataclass(frozen=True)
class Joined:
    """The datasets that were written."""

    training: Manifest
    """Manifest of PREFIX."""
    validation: Manifest | None
    """Manifest of PREFIX.validation. None: nothing was held out."""


def join(job: Job, pieces: Sequence[Finished]) -> Joined:
    """Writes the datasets and the lists of what is left out, from all pieces in the order read.

    Raises BadInput for too many rejected documents or a part (training or held-out) that would get none.
    """
    runs = [piece.run(job) for piece in pieces]
    places = _Places(job, pieces)
    rejected = _list_rejected(job, pieces, places)
    with _Marks(job, runs) as marks:
        duplicates = 0 if job.settings.keep_duplicates else _mark_copies(job, runs, places, marks)
        bound = _holdout_bound(job, runs, marks)
        return _write(job, runs, marks, bound, rejected, duplicates)


class _Places:
    """Where a document stood: pieces count lines from their own beginning, people from the file's."""

    def __init__(self, job: Job, pieces: Sequence[Finished]) -> None:
        self._job = job
        self._pieces = pieces
        self._before: list[int] = []
        for number, piece in enumerate(pieces):
            goes_on = number > 0 and pieces[number - 1].file == piece.file
            self._before.append(self._before[-1] + pieces[number - 1].lines if goes_on else 0)

    def tell(self, piece: int, line: int, name: str) -> dict[str, str | int]:
        """File, line and, where there is one, id, for a list."""
        place: dict[str, str | int] = {
            "file": self._job.sources[self._pieces[piece].file].path,
            "line": self._before[piece] + line,
        }
        return place | {"id": name} if name else place


def _list_rejected(job: Job, pieces: Sequence[Finished], places: _Places) -> int:
    """Lists every rejected line and returns how many there are. BadInput: more than are allowed."""
    rejected = sum(len(piece.rejected) for piece in pieces)
    if rejected == 0:
        rejected_path(job.output).unlink(missing_ok=True)
        return 0
    with durable_file(rejected_path(job.output)) as listing:
        for number, piece in enumerate(pieces):
            for line in piece.rejected:
                entry = places.tell(number, line.line, line.id) | {"reason": line.reason}
                listing.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
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


class _Marks:
    """Which documents are left out, a byte each, in a file that the system may hold in memory or not."""

    def __init__(self, job: Job, runs: Sequence[SortedRun]) -> None:
        self._path = job.workspace / "left_out"
        self._first = np.cumsum([0, *(run.documents for run in runs)])

    def __enter__(self) -> "_Marks":
        self._marks = np.memmap(self._path, np.uint8, mode="w+", shape=(max(1, int(self._first[-1])),))
        return self

    def __exit__(self, *error: object) -> None:
        del self._marks
        self._path.unlink()

    def mark(self, run: int, position: int) -> None:
        self._marks[self._first[run] + position] = 1

    def left_out(self, run: int, first: int, end: int) -> npt.NDArray[np.bool_]:
        """Whether the documents of a stretch of a run are left out: bool[end - first]."""
        start = self._first[run]
        return np.array(self._marks[start + first : start + end], np.bool_)


def _mark_copies(job: Job, runs: Sequence[SortedRun], places: _Places, marks: _Marks) -> int:
    """Marks and lists every exact copy with what it repeats, and returns how many there are."""
    count = 0
    with durable_file(duplicates_path(job.output)) as listing:
        for copy in copies(runs):
            marks.mark(copy.run, copy.position)
            again = _told(runs, places, copy.run, copy.position)
            first = _told(runs, places, copy.first_run, copy.first_position)
            entry = {**again, "reason": "exact copy", "of": first, "content_hash": f"{copy.content_hash:016x}"}
            listing.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    if count == 0:
        duplicates_path(job.output).unlink()
    return count


def _told(runs: Sequence[SortedRun], places: _Places, run: int, position: int) -> dict[str, str | int]:
    record = runs[run].records()[position]
    name = runs[run].id_of(position) if record["id_bytes"] else ""
    return places.tell(run, int(record["line"]), name)


def _holdout_bound(job: Job, runs: Sequence[SortedRun], marks: _Marks) -> int:
    """The key below which documents are held out."""
    if job.settings.holdout_tokens is None:
        return bound_of_share(job.settings.holdout)

    def documents() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
        for number, run in enumerate(runs):
            records = run.records()[~marks.left_out(number, 0, run.documents)]
            yield records["holdout_key"], records["tokens"]

    return bound_of_tokens(documents, job.settings.holdout_tokens)


def _chunks(job: Job, runs: Sequence[SortedRun], marks: _Marks) -> Iterator[TokenizedDocuments]:
    """Every document that is not left out, in the order of the dataset, some at a time."""
    if job.settings.order == "as_read":
        for number, run in enumerate(runs):
            yield _stretch(run, number, 0, run.documents, marks)
        return
    if not runs:
        return
    size = sum(run.tokens for run in runs) * job.dtype.itemsize
    bits = max(0, math.ceil(math.log2(max(1, size / RANGE_BYTES))))
    for number in range(1 << bits):
        low, high = number << (64 - bits), ((number + 1) << (64 - bits)) - 1
        stretches = []
        for owner, run in enumerate(runs):
            keys = run.records()["key"]
            first = int(np.searchsorted(keys, np.uint64(low), side="left"))
            end = int(np.searchsorted(keys, np.uint64(high), side="right"))
            stretches.append(_stretch(run, owner, first, end, marks))
        whole = TokenizedDocuments.joined(stretches)
        del stretches
        yield whole.in_order(np.argsort(whole.records["key"], kind="stable"))


def _stretch(run: SortedRun, number: int, first: int, end: int, marks: _Marks) -> TokenizedDocuments:
    left_out = marks.left_out(number, first, end)
    documents = run.read(first, end)
    return documents.chosen(~left_out) if left_out.any() else documents


class _Part:
    """One of the datasets that are written: training or held-out."""

    def __init__(self, job: Job, prefix: Path, files: ExitStack) -> None:
        self.prefix = prefix
        self.bytes = 0
        # Left in the reverse order: data and index first, then what stands beside them.
        self._ids = files.enter_context(durable_file(ids_path(prefix))) if job.settings.id_key else None
        self._column = files.enter_context(ColumnWriter(prefix, DOCUMENTS, DOCUMENT_RECORD))
        self.writer = files.enter_context(IndexedWriter(prefix, job.dtype, job.vocabulary_size))

    def add(self, documents: TokenizedDocuments) -> None:
        records = documents.records
        if len(documents.sentences):
            self.writer.add_split(documents.tokens, documents.sentences, records["sentences"])
        else:
            self.writer.add_many(documents.tokens, records["tokens"])
        self._column.add(records[list(DOCUMENT_RECORD.names or ())])
        self.bytes += int(records["bytes"].sum())
        if self._ids is not None:
            ends = np.cumsum(records["id_bytes"])
            content = documents.ids.tobytes()
            for end, length in zip(ends.tolist(), records["id_bytes"].tolist(), strict=True):
                self._ids.write(orjson.dumps(content[end - length : end].decode(), option=orjson.OPT_APPEND_NEWLINE))


def _write(job: Job, runs: Sequence[SortedRun], marks: _Marks, bound: int, rejected: int, duplicates: int) -> Joined:
    with ExitStack() as files:
        # The training part is entered first, so that it appears last.
        training = _Part(job, job.output, files)
        held_out = _Part(job, validation_prefix(job.output), files) if job.settings.holds_out else None
        for chunk in _chunks(job, runs, marks):
            if held_out is None:
                training.add(chunk)
                continue
            which = below(chunk.records["holdout_key"], bound)
            held_out.add(chunk.chosen(which))
            training.add(chunk.chosen(~which))
        _refuse_empty(job, training, held_out)
        # No moment has the new training part beside an old held-out one, or the reverse.
        invalidate(job.output)
        _remove_stale(job)
    counts = {"rejected": rejected, "duplicates": duplicates}
    validation = None if held_out is None else _declared(job, held_out, counts)
    return Joined(_declared(job, training, counts), validation)


def _refuse_empty(job: Job, training: _Part, held_out: _Part | None) -> None:
    for part in filter(None, (held_out, training)):
        if part.writer.documents == 0:
            settings = job.settings
            asked = f"{settings.holdout_tokens:,} tokens" if settings.holdout_tokens else f"{settings.holdout:.2%}"
            remedy = "Raise --holdout." if part is held_out else "Give inputs with text, and hold out less than all."
            raise BadInput(Fault(str(part.prefix), f"would get no document (held out: {asked}).", remedy))


def _remove_stale(job: Job) -> None:
    """What an earlier call left and this one does not write: its held-out documents may be in training now."""
    if job.settings.keep_duplicates:
        duplicates_path(job.output).unlink(missing_ok=True)
    if not job.settings.id_key:
        ids_path(job.output).unlink(missing_ok=True)
    prefix = validation_prefix(job.output)
    if not manifest_path(prefix).is_file() or read_manifest(prefix).settings is None:
        return
    invalidate(prefix)
    for path in (bin_path(prefix), column_path(prefix, DOCUMENTS), ids_path(prefix)):
        path.unlink(missing_ok=True)


def _declared(job: Job, part: _Part, counts: dict[str, int]) -> Manifest:
    writer = part.writer
    manifest = Manifest(
        documents=writer.documents,
        tokens=writer.token_count,
        bytes=part.bytes,
        dtype=writer.dtype.name,
        vocabulary_size=job.vocabulary_size,
        tokenizer=job.tokenizer,
        tokenizer_folder=job.tokenizer_folder,
        eod=job.eod,
        bos=job.bos,
        order=job.settings.order,
        seed=job.settings.seed,
        settings=asdict(job.settings),
        sources=job.sources,
        rejected=counts["rejected"],
        duplicates=counts["duplicates"],
        data_sha256=writer.data_sha256,
        index_sha256=writer.index_sha256,
        tool_version=job.version,
    )
    write_manifest(part.prefix, manifest)
    return manifest
