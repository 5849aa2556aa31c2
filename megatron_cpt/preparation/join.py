"""Finished pieces to a dataset, or to one part of it: the last pass.

What becomes of each document was decided before (decisions.py). A part is a range of the order, so that several can be
joined at a time, each by a process or a machine of its own. Its documents are written in their order, held-out ones to
a dataset beside.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson

from megatron_cpt.corpus.columns import DOCUMENT_RECORD, DOCUMENTS, LOSS_SPAN, LOSS_SPANS, ColumnWriter, column_path
from megatron_cpt.corpus.indexed import IndexedWriter, bin_path, invalidate, manifest_path
from megatron_cpt.corpus.manifest import Manifest, Part, read_manifest, samples_of, write_manifest
from megatron_cpt.preparation.contamination import NGRAM_WORDS, Contamination, contamination_path
from megatron_cpt.preparation.decisions import Decisions, LeftOut, count_overlaps
from megatron_cpt.preparation.dedup import DropMask
from megatron_cpt.preparation.job import Job, ids_path, is_held_out, validation_prefix
from megatron_cpt.preparation.process_piece import Finished
from megatron_cpt.preparation.sorted_runs import ALL, SortedRun, TokenizedDocuments, below
from megatron_cpt.runs.folder import durable_file, file_sha256, refuse_without_room, write_checked_json

_RANGE_BYTES = 128 << 20
"""Of documents in a range of keys, about."""
PORTION_BYTES = 4 << 20
"""Of documents that are put in order and written at a time, about."""


@dataclass(frozen=True)
class Joined:
    """The datasets that were written."""

    training: Manifest
    """Manifest of PREFIX."""
    validation: Manifest | None
    """Manifest of PREFIX.validation. None: nothing was held out."""


def join(job: Job, pieces: Sequence[Finished], runs: Sequence[SortedRun], decisions: Decisions, number: int) -> Joined:
    """Writes part `number`, from 1, of the datasets, from all pieces in the order read and their runs."""
    prefix = job.datasets[number - 1]
    drop_mask = DropMask.kept(decisions.drops, runs)
    stretches = _stretches(job, runs, number - 1)
    refuse_without_room(prefix, _bytes_to_write(job, runs, drop_mask, stretches))
    with ExitStack() as files:
        # The training part is entered first, so that it appears last.
        training = _Writer(job, prefix, files)
        held_out = _Writer(job, validation_prefix(prefix), files) if job.settings.holds_out else None
        for chunk in _chunks(job, runs, drop_mask, stretches, number - 1):
            if held_out is None:
                training.add(chunk)
                continue
            which = below(chunk.records["holdout_key"], decisions.bound)
            held_out.add(chunk.chosen(which))
            training.add(chunk.chosen(~which))
        # No moment has the new training part beside an old held-out one, or the reverse.
        invalidate(prefix)
        # Whoever finds the note may take what has no manifest for this job's: not before what is older is gone.
        job.note_replacing()
        _remove_stale(prefix, ids=not job.settings.id_key)
    of = job.settings.parts
    part = None if of == 1 else Part(number, of, decisions.identity)
    validation = None if held_out is None else _declared(job, held_out, decisions.left_out, part, held_out=True)
    joined = Joined(_declared(job, training, decisions.left_out, part, held_out=False), validation)
    if job.settings.decontaminate is not None:
        found = [piece.found(job) for piece in pieces]
        sets = count_overlaps(job, runs, found, drop_mask, decisions.bound, stretches)
        record = Contamination(ngram_words=NGRAM_WORDS, data_sha256=joined.training.data_sha256, sets=sets)
        write_checked_json(contamination_path(prefix), asdict(record))
    return joined


def _stretches(job: Job, runs: Sequence[SortedRun], part: int) -> list[tuple[int, int]]:
    """The documents of a part, from 0, in each run: from one position to another."""
    of = job.settings.parts
    if job.settings.order == "shuffled":
        return _between(runs, ALL * part // of, ALL * (part + 1) // of)
    # As read, the place of a document among all is its key.
    firsts = np.cumsum([0, *(run.documents for run in runs)]).tolist()
    low, high = firsts[-1] * part // of, firsts[-1] * (part + 1) // of
    return [
        (min(max(low - first, 0), run.documents), min(max(high - first, 0), run.documents))
        for first, run in zip(firsts[:-1], runs, strict=True)
    ]


def _between(runs: Sequence[SortedRun], low: int, high: int) -> list[tuple[int, int]]:
    """Where the keys from `low` on, and below `high`, are in each run: from one position to another."""
    found = []
    for run in runs:
        keys = run.records()["key"]
        first = np.searchsorted(keys, np.uint64(low), side="left")
        found.append((int(first), int(np.searchsorted(keys, np.uint64(high - 1), side="right"))))
    return found


def _chunks(
    job: Job, runs: Sequence[SortedRun], drop_mask: DropMask, stretches: Sequence[tuple[int, int]], part: int
) -> Iterator[TokenizedDocuments]:
    """Every document of the part, from 0, that is not left out, in the order of the dataset, some at a time."""
    if job.settings.order == "as_read":
        for number, (run, (first, end)) in enumerate(zip(runs, stretches, strict=True)):
            yield _stretch(run, number, first, end, drop_mask)
        return
    if not runs:
        return
    size = sum(
        run.bytes * (end - first) // max(1, run.documents) for run, (first, end) in zip(runs, stretches, strict=True)
    )
    ranges, of = size // _RANGE_BYTES + 1, job.settings.parts
    for place in range(part * ranges, (part + 1) * ranges):
        bounds = ALL * place // (of * ranges), ALL * (place + 1) // (of * ranges)
        between = stretches if ranges == 1 else _between(runs, *bounds)
        whole = TokenizedDocuments.joined(
            [
                _stretch(run, number, first, end, drop_mask)
                for number, (run, (first, end)) in enumerate(zip(runs, between, strict=True))
            ]
        )
        order = np.argsort(whole.records["key"], kind="stable")
        # Small portions: their memory is used again and again, that of a second whole range would be new every time.
        sizes = whole.records["tokens"][order] * job.dtype.itemsize + whole.records.itemsize
        portions = np.cumsum(sizes) // PORTION_BYTES
        for some in np.split(order, np.flatnonzero(np.diff(portions)) + 1) if len(order) else []:
            yield whole.in_order(some)


def _stretch(run: SortedRun, number: int, first: int, end: int, drop_mask: DropMask) -> TokenizedDocuments:
    left_out = drop_mask.left_out(number, first, end)
    documents = run.read(first, end)
    return documents.chosen(~left_out) if left_out.any() else documents


class _Writer:
    """A dataset that is being written: training documents or held-out ones."""

    def __init__(self, job: Job, prefix: Path, files: ExitStack) -> None:
        self.prefix = prefix
        self.bytes = self.loss_tokens = 0
        # Left in the reverse order: the spans, so that no pair is without them, data and index, what stands beside.
        self._ids = files.enter_context(durable_file(ids_path(prefix))) if job.settings.id_key else None
        self._column = files.enter_context(ColumnWriter(prefix, DOCUMENTS, DOCUMENT_RECORD))
        self.writer = files.enter_context(IndexedWriter(prefix, job.dtype, job.vocabulary_size))
        has_spans = job.settings.train_on == "responses"
        self._spans = files.enter_context(ColumnWriter(prefix, LOSS_SPANS, LOSS_SPAN)) if has_spans else None

    def add(self, documents: TokenizedDocuments) -> None:
        records = documents.records
        if self._spans is not None:
            starts = self.writer.token_count + np.cumsum(records["tokens"]) - records["tokens"]
            spans = documents.spans.copy()
            for bound in ("begin", "end"):
                spans[bound] += np.repeat(starts, records["spans"])
            self._spans.add(spans)
            self.loss_tokens += int((spans["end"] - spans["begin"]).sum())
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


def _bytes_to_write(
    job: Job, runs: Sequence[SortedRun], drop_mask: DropMask, stretches: Sequence[tuple[int, int]]
) -> int:
    """Of tokens, index and column, with one sequence a document: what both datasets need at least."""
    tokens = documents = 0
    for number, (run, (first, end)) in enumerate(zip(runs, stretches, strict=True)):
        kept = run.records()["tokens"][first:end][~drop_mask.left_out(number, first, end)]
        tokens, documents = tokens + int(kept.sum()), documents + len(kept)
    return tokens * job.dtype.itemsize + documents * (4 + 8 + 8 + DOCUMENT_RECORD.itemsize)


def _remove_stale(output: Path, ids: bool) -> None:
    """What an earlier call left and this one does not write: its held-out documents may be in training now.

    Args:
        ids: whether the list of ids is not written.
    """
    # Columns are written anew, and not to be read beside tokens of another dataset.
    beside = [contamination_path(output), column_path(output, DOCUMENTS), column_path(output, LOSS_SPANS)]
    for path in [*beside, *([ids_path(output)] if ids else [])]:
        path.unlink(missing_ok=True)
    prefix = validation_prefix(output)
    if not manifest_path(prefix).is_file() or not is_held_out(read_manifest(prefix)):
        return
    invalidate(prefix)
    beside = [column_path(prefix, DOCUMENTS), column_path(prefix, LOSS_SPANS), ids_path(prefix)]
    for path in (bin_path(prefix), *beside):
        path.unlink(missing_ok=True)


def _declared(job: Job, written: _Writer, left_out: LeftOut, part: Part | None, held_out: bool) -> Manifest:
    writer = written.writer
    has_spans = job.settings.train_on == "responses"
    manifest = Manifest(
        documents=writer.documents,
        tokens=writer.token_count,
        bytes=written.bytes,
        dtype=writer.dtype.name,
        largest_id=writer.largest_id,
        unknown_share=_share(left_out.counts.unknown, left_out.counts.tokens),
        lost_share=_share(left_out.counts.lost, left_out.counts.bytes) or 0.0,
        tokens_per_word=_share(left_out.counts.sampled_tokens, left_out.counts.sampled_words),
        vocabulary_size=job.vocabulary_size,
        tokenizer=job.tokenizer,
        tokenizer_folder=job.tokenizer_folder,
        eod=job.eod,
        bos=job.bos,
        held_out=held_out,
        order=job.settings.order,
        seed=job.settings.seed,
        settings=asdict(job.settings),
        # A thousand parts that name a hundred thousand files each would be opened in minutes.
        sources=job.sources if part is None or part.number == 1 else None,
        sources_sha256=job.sources_sha256,
        not_read=job.not_read,
        rejected=left_out.rejected,
        filtered=None if left_out.filtered is None else sum(left_out.filtered.values()),
        filtered_by=None if left_out.filtered is None else dict(sorted(left_out.filtered.items())),
        cut=left_out.counts.cut if job.settings.cuts or left_out.counts.cut else None,
        part=part,
        duplicates=left_out.duplicates,
        near_duplicates=left_out.near_duplicates,
        contaminated=left_out.contaminated,
        data_sha256=writer.data_sha256,
        samples_sha256=samples_of(written.prefix, writer.index_sha256),
        index_sha256=writer.index_sha256,
        documents_sha256=file_sha256(column_path(written.prefix, DOCUMENTS)),
        loss_spans_sha256=file_sha256(column_path(written.prefix, LOSS_SPANS)) if has_spans else None,
        loss_tokens=written.loss_tokens if has_spans else None,
        truncated=left_out.counts.truncated if job.settings.truncate else None,
        tool_version=job.version,
    )
    write_manifest(written.prefix, manifest)
    return manifest


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
