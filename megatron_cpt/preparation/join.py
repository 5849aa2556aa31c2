"""Finished pieces to a dataset: the last pass of a single run, and what `merge` does with shards.

1. What is left out is marked, a byte a document on disk, and listed (leaving.py).
2. The bound is found below which documents are held out (holdout.py).
3. Range by range of keys, one stretch of every run is read, sorted, and written to PREFIX or PREFIX.validation.

Memory holds one range, whatever the size of the whole. What stood under PREFIX stays whole until step 3 ends.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.columns import DOCUMENT_RECORD, DOCUMENTS, ColumnWriter, column_path
from megatron_cpt.corpus.indexed import IndexedWriter, bin_path, invalidate, manifest_path
from megatron_cpt.corpus.manifest import Manifest, read_manifest, write_manifest
from megatron_cpt.preparation.contamination import NGRAM_WORDS, Contamination, contamination_path
from megatron_cpt.preparation.findings import FoundRun
from megatron_cpt.preparation.holdout import below, bound_of_share, bound_of_tokens
from megatron_cpt.preparation.job import (
    Job,
    contaminated_path,
    duplicates_path,
    ids_path,
    near_duplicates_path,
    validation_prefix,
)
from megatron_cpt.preparation.leaving import (
    Places,
    list_contaminated,
    list_rejected,
    mark_contaminated,
    mark_copies,
    mark_near_duplicates,
)
from megatron_cpt.preparation.marks import Marks
from megatron_cpt.preparation.piecework import Finished
from megatron_cpt.preparation.sorted_run import SortedRun, TokenizedDocuments
from megatron_cpt.runs.durable import durable_file, write_json

RANGE_BYTES = 128 << 20
"""Of token ids in a range of keys, about."""
PORTION_BYTES = 4 << 20
"""Of token ids that are put in order and written at a time, about."""


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
    found = [piece.found(job) for piece in pieces]
    places = Places(job, pieces, runs)
    rejected = list_rejected(job, pieces, places)
    with Marks(job.workspace / "left_out", runs) as marks:
        left_out = replace(_mark(job, runs, found, places, marks), rejected=rejected)
        bound = _holdout_bound(job, runs, marks)
        if job.settings.decontaminate is None:
            return _write(job, runs, marks, bound, left_out)
        evaluation = orjson.loads(job.evaluation.read_bytes())
        sets = list_contaminated(job, evaluation, runs, found, places, marks, bound)
        joined = _write(job, runs, marks, bound, left_out)
    record = Contamination(ngram_words=NGRAM_WORDS, data_sha256=joined.training.data_sha256, sets=sets)
    write_json(contamination_path(job.output), asdict(record))
    return joined


@dataclass(frozen=True)
class _LeftOut:
    """Counts of what is left out; None where it is not looked for."""

    duplicates: int
    contaminated: int | None
    near_duplicates: int | None
    rejected: int = 0


def _mark(job: Job, runs: Sequence[SortedRun], found: Sequence[FoundRun], places: Places, marks: Marks) -> _LeftOut:
    settings = job.settings
    duplicates = 0 if settings.keep_duplicates else mark_copies(job, runs, places, marks)
    contaminated = near = None
    # Before near duplicates are looked for: of two, the one that stays must not leave afterwards.
    if settings.decontaminate is not None:
        contaminated = mark_contaminated(found, marks) if settings.contaminated == "remove" else 0
    if settings.near_duplicates is not None:
        near = mark_near_duplicates(job, settings.near_duplicates, runs, found, places, marks)
    return _LeftOut(duplicates, contaminated, near)


def _holdout_bound(job: Job, runs: Sequence[SortedRun], marks: Marks) -> int:
    """The key below which documents are held out."""
    if job.settings.holdout_tokens is None:
        return bound_of_share(job.settings.holdout)

    def documents() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
        for number, run in enumerate(runs):
            records = run.records()[~marks.left_out(number, 0, run.documents)]
            yield records["holdout_key"], records["tokens"]

    return bound_of_tokens(documents, job.settings.holdout_tokens)


def _chunks(job: Job, runs: Sequence[SortedRun], marks: Marks) -> Iterator[TokenizedDocuments]:
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
        order = np.argsort(whole.records["key"], kind="stable")
        # Small portions: their memory is used again and again, that of a second whole range would be new every time.
        portions = np.cumsum(whole.records["tokens"][order]) * job.dtype.itemsize // PORTION_BYTES
        for part in np.split(order, np.flatnonzero(np.diff(portions)) + 1) if len(order) else []:
            yield whole.in_order(part)


def _stretch(run: SortedRun, number: int, first: int, end: int, marks: Marks) -> TokenizedDocuments:
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


def _write(job: Job, runs: Sequence[SortedRun], marks: Marks, bound: int, left_out: _LeftOut) -> Joined:
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
        job.replacing.touch()
        # No moment has the new training part beside an old held-out one, or the reverse.
        invalidate(job.output)
        _remove_stale(job)
    validation = None if held_out is None else _declared(job, held_out, left_out)
    return Joined(_declared(job, training, left_out), validation)


def _refuse_empty(job: Job, training: _Part, held_out: _Part | None) -> None:
    for part in filter(None, (held_out, training)):
        if part.writer.documents == 0:
            settings = job.settings
            asked = f"{settings.holdout_tokens:,} tokens" if settings.holdout_tokens else f"{settings.holdout:.2%}"
            remedy = "Raise --holdout." if part is held_out else "Give inputs with text, and hold out less than all."
            raise BadInput(Fault(str(part.prefix), f"would get no document (held out: {asked}).", remedy))


def _remove_stale(job: Job) -> None:
    """What an earlier call left and this one does not write: its held-out documents may be in training now."""
    stale = {
        duplicates_path(job.output): job.settings.keep_duplicates,
        near_duplicates_path(job.output): job.settings.near_duplicates is None,
        contaminated_path(job.output): job.settings.decontaminate is None,
        contamination_path(job.output): True,
        ids_path(job.output): not job.settings.id_key,
    }
    for path in (path for path, gone in stale.items() if gone):
        path.unlink(missing_ok=True)
    prefix = validation_prefix(job.output)
    if not manifest_path(prefix).is_file() or read_manifest(prefix).settings is None:
        return
    invalidate(prefix)
    for path in (bin_path(prefix), column_path(prefix, DOCUMENTS), ids_path(prefix)):
        path.unlink(missing_ok=True)


def _declared(job: Job, part: _Part, left_out: _LeftOut) -> Manifest:
    writer = part.writer
    manifest = Manifest(
        documents=writer.documents,
        tokens=writer.token_count,
        bytes=part.bytes,
        dtype=writer.dtype.name,
        largest_id=writer.largest_id,
        vocabulary_size=job.vocabulary_size,
        tokenizer=job.tokenizer,
        tokenizer_folder=job.tokenizer_folder,
        eod=job.eod,
        bos=job.bos,
        order=job.settings.order,
        seed=job.settings.seed,
        settings=asdict(job.settings),
        sources=job.sources,
        rejected=left_out.rejected,
        duplicates=left_out.duplicates,
        near_duplicates=left_out.near_duplicates,
        contaminated=left_out.contaminated,
        data_sha256=writer.data_sha256,
        index_sha256=writer.index_sha256,
        tool_version=job.version,
    )
    write_manifest(part.prefix, manifest)
    return manifest
