"""Finished pieces to a dataset: the last pass of a single run, and what `merge` does with shards.

Rejected lines, copies, near duplicates and contaminated documents are marked and listed with reason and place.
Documents are held out. What remains is written in its order.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.indexed import IndexedWriter, bin_path, invalidate, manifest_path
from megatron_cpt.corpus.manifest import (
    DOCUMENT_RECORD,
    DOCUMENTS,
    LOSS_SPAN,
    LOSS_SPANS,
    ColumnWriter,
    Manifest,
    column_path,
    documents_column,
    load_manifest,
    read_manifest,
    samples_of,
    write_manifest,
)
from megatron_cpt.preparation.contamination import NGRAM_WORDS, Contamination, SetOverlap, contamination_path
from megatron_cpt.preparation.dedup import DropMask, Reason, copies, known_copies, near_duplicates
from megatron_cpt.preparation.encode_documents import TextCounts
from megatron_cpt.preparation.job import (
    Job,
    contaminated_path,
    duplicates_path,
    ids_path,
    is_held_out,
    near_duplicates_path,
    noted,
    rejected_path,
    validation_prefix,
)
from megatron_cpt.preparation.process_piece import Finished
from megatron_cpt.preparation.sorted_runs import SortedRun, TokenizedDocuments, below, bound_of_share, bound_of_tokens
from megatron_cpt.preparation.text_signatures import FoundRun
from megatron_cpt.runs.folder import durable_file, file_sha256, refuse_without_room, write_checked_json

_MOST_LISTED = 10
"""Items of a document that a list names, those with most n-grams in common; all are counted."""


class SourceLocator:
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
        """The same of a document of a run, and its number where it is a part of what stood there."""
        record = self._runs[run].records()[position]
        name = self._runs[run].id_of(position) if record["id_bytes"] else ""
        place = self.of_line(run, int(record["line"]), name)
        return place | {"part": int(record["part"])} if record["part"] else place


def _list_rejected(job: Job, pieces: Sequence[Finished], places: SourceLocator) -> int:
    """Lists every rejected line and returns how many there are. BadInput: more than are allowed."""
    entries = (
        places.of_line(number, line.line, line.id) | {"reason": line.reason}
        for number, piece in enumerate(pieces)
        for line in piece.rejected
    )
    rejected = _write_list(rejected_path(job.output), entries)
    in_parts = sum(piece.counts.parts - piece.counts.cut for piece in pieces)
    read = sum(piece.documents + len(piece.rejected) for piece in pieces) - in_parts
    if rejected > job.settings.max_rejected * read:
        reasons = Counter(line.reason.partition(":")[0] for piece in pieces for line in piece.rejected)
        reason, count = reasons.most_common(1)[0]
        example = next(line.reason for piece in pieces for line in piece.rejected if line.reason.startswith(reason))
        most = "all" if count == rejected else f"{count:,} of them"
        raise BadInput(
            Fault(
                f"{rejected:,} of {read:,} documents",
                f"were rejected, more than {job.settings.max_rejected:.2%}, {most} because: {example}; "
                f"{rejected_path(job.output)} lists them with reasons.",
                "Mend them, or allow more with --max-rejected: what is tokenized already is used again.",
            )
        )
    return rejected


def _drop_copies(job: Job, runs: Sequence[SortedRun], places: SourceLocator, drop_mask: DropMask) -> int:
    """Drops and lists every exact copy, of a dataset of --dedup-against or of a document before it, with what it
    repeats, and returns how many there are."""

    known = job.settings.dedup_against or {}
    hashes = [_known_hashes(prefix, sha256) for prefix, sha256 in known.items()]

    def entries() -> Iterator[dict[str, Any]]:
        for again in known_copies(runs, hashes):
            drop_mask.set(again.run, again.position, Reason.COPY)
            yield {
                **places.of_document(again.run, again.position),
                "reason": "exact copy",
                "of": {"dataset": [*known][again.dataset], "document": again.document},
                "content_hash": f"{again.content_hash:016x}",
            }
        for copy in copies(runs) if not job.settings.keep_duplicates else ():
            if drop_mask.reason(copy.run, copy.position):
                continue
            drop_mask.set(copy.run, copy.position, Reason.COPY)
            yield {
                **places.of_document(copy.run, copy.position),
                "reason": "exact copy",
                "of": places.of_document(copy.first_run, copy.first_position),
                "content_hash": f"{copy.content_hash:016x}",
            }

    return _write_list(duplicates_path(job.output), entries())


def _known_hashes(prefix: str, sha256: str) -> npt.NDArray[np.uint64]:
    """The content hashes of a dataset. BadInput: it is not the one that the call began with."""
    manifest = load_manifest(prefix)
    if manifest.documents_sha256 != sha256:
        remedy = "Run the same command again: what is tokenized already is used again."
        raise BadInput(Fault(f"--dedup-against {prefix}", "has changed since the call began.", remedy))
    return np.array(documents_column(prefix, manifest)["content_hash"])


def _drop_contaminated(found: Sequence[FoundRun], drop_mask: DropMask) -> int:
    """Drops every document that overlaps an evaluation item and is not left out yet; returns how many there are."""
    count = 0
    for run, one in enumerate(found):
        for position in np.unique(one.overlap_table()["position"]).tolist():
            if drop_mask.reason(run, position) == Reason.NONE:
                drop_mask.set(run, position, Reason.CONTAMINATED)
                count += 1
    return count


def _drop_near_duplicates(
    job: Job,
    threshold: float,
    runs: Sequence[SortedRun],
    found: Sequence[FoundRun],
    places: SourceLocator,
    drop_mask: DropMask,
) -> int:
    """Drops and lists every near duplicate of a document that stays, and returns how many there are."""

    def entries() -> Iterator[dict[str, Any]]:
        for again in near_duplicates(runs, found, threshold, drop_mask, job.path("pairs")):
            drop_mask.set(again.run, again.position, Reason.NEAR_DUPLICATE)
            yield {
                **places.of_document(again.run, again.position),
                "reason": "near duplicate",
                "of": places.of_document(again.of_run, again.of_position),
                "similarity": again.similarity,
            }

    return _write_list(near_duplicates_path(job.output), entries())


def _list_contaminated(
    job: Job,
    evaluation: Sequence[dict[str, Any]],
    runs: Sequence[SortedRun],
    found: Sequence[FoundRun],
    places: SourceLocator,
    drop_mask: DropMask,
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
                reason = drop_mask.reason(run, position)
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
        most = overlaps[np.lexsort((overlaps["item"], -overlaps["ngrams"].astype(np.int64)))][:_MOST_LISTED]
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


_RANGE_BYTES = 128 << 20
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
    places = SourceLocator(job, pieces, runs)
    rejected = _list_rejected(job, pieces, places)
    with DropMask(job.path("left_out"), runs) as drop_mask:
        counts = sum((piece.counts for piece in pieces), TextCounts())
        filtered = sum((Counter(piece.filtered) for piece in pieces), Counter()) if job.settings.chooses else None
        left_out = replace(
            _drop(job, runs, found, places, drop_mask), rejected=rejected, filtered=filtered, counts=counts
        )
        bound = _holdout_bound(job, runs, drop_mask)
        if job.settings.decontaminate is None:
            return _write(job, runs, drop_mask, bound, left_out)
        evaluation = noted(job.evaluation)
        if evaluation is None:
            rule = "is not what was written. Run the same command, or one of the shards, again: it writes it anew."
            raise IntegrityFault(f"{job.evaluation}: {rule}")
        sets = _list_contaminated(job, evaluation, runs, found, places, drop_mask, bound)
        joined = _write(job, runs, drop_mask, bound, left_out)
    record = Contamination(ngram_words=NGRAM_WORDS, data_sha256=joined.training.data_sha256, sets=sets)
    write_checked_json(contamination_path(job.output), asdict(record))
    return joined


@dataclass(frozen=True)
class _LeftOut:
    """Counts of what is left out; None where it is not looked for."""

    duplicates: int
    contaminated: int | None
    near_duplicates: int | None
    rejected: int = 0
    filtered: Counter[str] | None = None
    """By the reason."""
    counts: TextCounts = TextCounts()  # noqa: RUF009

    @property
    def causes(self) -> str:
        """Why documents are left out, and how many, as the end of a sentence; nothing where none is."""
        kinds = {
            "copies": self.duplicates,
            "near duplicates": self.near_duplicates,
            "with words of an evaluation": self.contaminated,
            "rejected": self.rejected,
            "not wanted": None if self.filtered is None else self.filtered.total(),
        }
        found = [f"{count:,} {name}" for name, count in kinds.items() if count]
        return f": {', '.join(found)}" if found else ""


def _drop(
    job: Job, runs: Sequence[SortedRun], found: Sequence[FoundRun], places: SourceLocator, drop_mask: DropMask
) -> _LeftOut:
    settings = job.settings
    duplicates = _drop_copies(job, runs, places, drop_mask) if settings.drops_copies else 0
    contaminated = near = None
    # Before near duplicates are looked for: of two, the one that stays must not leave afterwards.
    if settings.decontaminate is not None:
        contaminated = _drop_contaminated(found, drop_mask) if settings.contaminated == "remove" else 0
    if settings.near_duplicates is not None:
        near = _drop_near_duplicates(job, settings.near_duplicates, runs, found, places, drop_mask)
    return _LeftOut(duplicates, contaminated, near)


def _holdout_bound(job: Job, runs: Sequence[SortedRun], drop_mask: DropMask) -> int:
    """The key below which documents are held out."""
    if job.settings.holdout_tokens is None:
        return bound_of_share(job.settings.holdout)

    def documents() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
        for number, run in enumerate(runs):
            records = run.records()[~drop_mask.left_out(number, 0, run.documents)]
            yield records["holdout_key"], records["tokens"]

    return bound_of_tokens(documents, job.settings.holdout_tokens)


def _chunks(job: Job, runs: Sequence[SortedRun], drop_mask: DropMask) -> Iterator[TokenizedDocuments]:
    """Every document that is not left out, in the order of the dataset, some at a time."""
    if job.settings.order == "as_read":
        for number, run in enumerate(runs):
            yield _stretch(run, number, 0, run.documents, drop_mask)
        return
    if not runs:
        return
    size = sum(run.tokens for run in runs) * job.dtype.itemsize
    bits = max(0, math.ceil(math.log2(max(1, size / _RANGE_BYTES))))
    for number in range(1 << bits):
        low, high = number << (64 - bits), ((number + 1) << (64 - bits)) - 1
        stretches = []
        for owner, run in enumerate(runs):
            keys = run.records()["key"]
            first = int(np.searchsorted(keys, np.uint64(low), side="left"))
            end = int(np.searchsorted(keys, np.uint64(high), side="right"))
            stretches.append(_stretch(run, owner, first, end, drop_mask))
        whole = TokenizedDocuments.joined(stretches)
        del stretches
        order = np.argsort(whole.records["key"], kind="stable")
        # Small portions: their memory is used again and again, that of a second whole range would be new every time.
        portions = np.cumsum(whole.records["tokens"][order]) * job.dtype.itemsize // PORTION_BYTES
        for part in np.split(order, np.flatnonzero(np.diff(portions)) + 1) if len(order) else []:
            yield whole.in_order(part)


def _stretch(run: SortedRun, number: int, first: int, end: int, drop_mask: DropMask) -> TokenizedDocuments:
    left_out = drop_mask.left_out(number, first, end)
    documents = run.read(first, end)
    return documents.chosen(~left_out) if left_out.any() else documents


class _Part:
    """One of the datasets that are written: training or held-out."""

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


def _write(job: Job, runs: Sequence[SortedRun], drop_mask: DropMask, bound: int, left_out: _LeftOut) -> Joined:
    refuse_without_room(job.output, _bytes_to_write(job, runs, drop_mask))
    with ExitStack() as files:
        # The training part is entered first, so that it appears last.
        training = _Part(job, job.output, files)
        held_out = _Part(job, validation_prefix(job.output), files) if job.settings.holds_out else None
        for chunk in _chunks(job, runs, drop_mask):
            if held_out is None:
                training.add(chunk)
                continue
            which = below(chunk.records["holdout_key"], bound)
            held_out.add(chunk.chosen(which))
            training.add(chunk.chosen(~which))
        _refuse_empty(job, training, held_out, left_out)
        job.replacing.touch()
        # No moment has the new training part beside an old held-out one, or the reverse.
        invalidate(job.output)
        _remove_stale(job)
    validation = None if held_out is None else _declared(job, held_out, left_out)
    return Joined(_declared(job, training, left_out), validation)


def _bytes_to_write(job: Job, runs: Sequence[SortedRun], drop_mask: DropMask) -> int:
    """Of tokens, index and column, with one sequence a document: what all parts need at least."""
    tokens = documents = 0
    for number, run in enumerate(runs):
        kept = run.records()["tokens"][~drop_mask.left_out(number, 0, run.documents)]
        tokens, documents = tokens + int(kept.sum()), documents + len(kept)
    return tokens * job.dtype.itemsize + documents * (4 + 8 + 8 + DOCUMENT_RECORD.itemsize)


def _refuse_empty(job: Job, training: _Part, held_out: _Part | None, left_out: _LeftOut) -> None:
    if left_out.filtered and not training.writer.documents and not (held_out and held_out.writer.documents):
        counted = ", ".join(f"{reason} {count:,}" for reason, count in left_out.filtered.most_common())
        remedy = "Look at some documents with --limit, and ask for less."
        raise BadInput(Fault(str(job.output), f"would get no document. Left out: {counted}.", remedy))
    for part in filter(None, (held_out, training)):
        if part.writer.documents == 0:
            settings = job.settings
            if not settings.holds_out:
                raise BadInput(Fault(str(part.prefix), f"would get no document{left_out.causes}.", "Give others."))
            asked = f"{settings.holdout_tokens:,} tokens" if settings.holdout_tokens else f"{settings.holdout:.2%}"
            remedy = "Raise --holdout." if part is held_out else "Give inputs with text, and hold out less than all."
            raise BadInput(Fault(str(part.prefix), f"would get no document (held out: {asked}).", remedy))


def _remove_stale(job: Job) -> None:
    """What an earlier call left and this one does not write: its held-out documents may be in training now."""
    stale = {
        duplicates_path(job.output): not job.settings.drops_copies,
        near_duplicates_path(job.output): job.settings.near_duplicates is None,
        contaminated_path(job.output): job.settings.decontaminate is None,
        contamination_path(job.output): True,
        ids_path(job.output): not job.settings.id_key,
        # Written anew, and not to be read beside tokens of another dataset.
        column_path(job.output, DOCUMENTS): True,
        column_path(job.output, LOSS_SPANS): True,
    }
    for path in (path for path, gone in stale.items() if gone):
        path.unlink(missing_ok=True)
    prefix = validation_prefix(job.output)
    if not manifest_path(prefix).is_file() or not is_held_out(read_manifest(prefix)):
        return
    invalidate(prefix)
    beside = (column_path(prefix, DOCUMENTS), column_path(prefix, LOSS_SPANS), ids_path(prefix))
    for path in (bin_path(prefix), *beside):
        path.unlink(missing_ok=True)


def _declared(job: Job, part: _Part, left_out: _LeftOut) -> Manifest:
    writer = part.writer
    has_spans = job.settings.train_on == "responses"
    manifest = Manifest(
        documents=writer.documents,
        tokens=writer.token_count,
        bytes=part.bytes,
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
        held_out=part.prefix != job.output,
        order=job.settings.order,
        seed=job.settings.seed,
        settings=asdict(job.settings),
        sources=job.sources,
        not_read=job.not_read,
        rejected=left_out.rejected,
        filtered=None if left_out.filtered is None else left_out.filtered.total(),
        filtered_by=None if left_out.filtered is None else dict(sorted(left_out.filtered.items())),
        cut=left_out.counts.cut if job.settings.cuts or left_out.counts.cut else None,
        duplicates=left_out.duplicates,
        near_duplicates=left_out.near_duplicates,
        contaminated=left_out.contaminated,
        data_sha256=writer.data_sha256,
        samples_sha256=samples_of(part.prefix, writer.index_sha256),
        index_sha256=writer.index_sha256,
        documents_sha256=file_sha256(column_path(part.prefix, DOCUMENTS)),
        loss_spans_sha256=file_sha256(column_path(part.prefix, LOSS_SPANS)) if has_spans else None,
        loss_tokens=part.loss_tokens if has_spans else None,
        truncated=left_out.counts.truncated if job.settings.truncate else None,
        tool_version=job.version,
    )
    write_manifest(part.prefix, manifest)
    return manifest


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
