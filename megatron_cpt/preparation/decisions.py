"""What becomes of the documents of finished pieces, decided once, before anything of a dataset is written.

Rejected lines, copies, near duplicates and contaminated documents are listed with reason and place. Those that are left
out are marked, and it is settled up to which key documents are held out. The decisions are kept in PREFIX.pieces, so
that every part of the dataset (join.py), on whatever machine, is written by the same ones.
"""

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.manifest import documents_column, load_manifest
from megatron_cpt.preparation.contamination import NGRAM_WORDS, SetOverlap
from megatron_cpt.preparation.dedup import DropMask, Reason, copies, known_copies, near_duplicates
from megatron_cpt.preparation.encode_documents import TextCounts
from megatron_cpt.preparation.job import (
    Job,
    contaminated_path,
    duplicates_path,
    near_duplicates_path,
    note,
    noted,
    rejected_path,
    validation_prefix,
)
from megatron_cpt.preparation.pieces import spans
from megatron_cpt.preparation.process_piece import Finished, completed_pieces
from megatron_cpt.preparation.sorted_runs import SortedRun, below, bound_of_share, bound_of_tokens, holds
from megatron_cpt.preparation.text_signatures import FoundRun
from megatron_cpt.runs.folder import durable_file, held

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


def _refuse_without_ids(job: Job, pieces: Sequence[Finished]) -> None:
    """Refuses an --id-key that no document has: every id would be empty. Raises BadInput."""
    key = job.settings.id_key
    if key is not None and any(piece.documents for piece in pieces) and not any(piece.id_bytes for piece in pieces):
        rule = "none of the documents has such a key, or it holds nothing."
        raise BadInput(Fault(f"--id-key {key}", rule, "Name a key of theirs, or leave --id-key out."))


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
        for again in near_duplicates(runs, found, threshold, drop_mask, _scratch(job, "pairs")):
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
) -> None:
    """Lists every document that overlaps evaluation items, copies apart, held-out ones too.

    `evaluation` are the sets by name with the ids of their items; `bound`, that of held-out documents.
    """
    items = _Items(evaluation)
    everything = [(0, run.documents) for run in runs]

    def entries() -> Iterator[dict[str, Any]]:
        for one in _overlapping(runs, found, drop_mask, bound, everything):
            yield {
                **places.of_document(one.run, one.position),
                "reason": f"shares {NGRAM_WORDS}-grams of words with evaluation items",
                "left_out": one.left_out,
                "held_out": one.held_out,
                "items": len(one.overlaps),
                "overlaps": items.named(one.overlaps),
            }

    _write_list(contaminated_path(job.output), entries())


@dataclass(frozen=True, slots=True)
class _Overlapping:
    """A document that overlaps evaluation items and is no copy."""

    run: int
    position: int
    overlaps: npt.NDArray[np.void]
    """OVERLAP[items]"""
    left_out: bool
    held_out: bool
    """It stays, in the held-out part."""


def _overlapping(
    runs: Sequence[SortedRun],
    found: Sequence[FoundRun],
    drop_mask: DropMask,
    bound: int,
    stretches: Sequence[tuple[int, int]],
) -> Iterator[_Overlapping]:
    """Those of the stretches of the runs, from one position to another, in the order read."""
    for run, (one, (first, end)) in enumerate(zip(found, stretches, strict=True)):
        for overlaps in _by_document(one, runs[run]):
            position = int(overlaps["position"][0])
            reason = drop_mask.reason(run, position)
            if not first <= position < end or reason in (Reason.COPY, Reason.NEAR_DUPLICATE):
                continue
            left_out = reason == Reason.CONTAMINATED
            key = runs[run].records()["holdout_key"][position : position + 1]
            yield _Overlapping(run, position, overlaps, left_out, not left_out and bool(below(key, bound)[0]))


def count_overlaps(
    job: Job,
    runs: Sequence[SortedRun],
    found: Sequence[FoundRun],
    drop_mask: DropMask,
    bound: int,
    stretches: Sequence[tuple[int, int]],
) -> list[SetOverlap]:
    """What the documents of some stretches of the runs share with each evaluation set. Held-out documents are not
    counted unless they are left out."""
    items = _Items(_evaluation(job))
    for one in _overlapping(runs, found, drop_mask, bound, stretches):
        if not one.held_out:
            items.add(one.overlaps["item"], one.left_out)
    return items.sets()


def _evaluation(job: Job) -> list[dict[str, Any]]:
    """The sets that the pieces were compared with. IntegrityFault: they are not what was written."""
    evaluation: list[dict[str, Any]] | None = noted(job.evaluation)
    if evaluation is None:
        rule = "is not what was written. Run the same command, or one of the shards, again: it writes it anew."
        raise IntegrityFault(f"{job.evaluation}: {rule}")
    return evaluation


def _by_document(found: FoundRun, run: SortedRun) -> Iterator[npt.NDArray[np.void]]:
    """The overlaps of each document that has some, in the order read."""
    table = np.array(found.overlap_table())
    positions, begins = np.unique(table["position"], return_index=True)
    ends = np.append(begins[1:], len(table))
    for number in np.argsort(run.records()["line"][positions]).tolist():
        yield table[begins[number] : ends[number]]


class _Items:
    """The items of evaluation sets, numbered through, and how many of them documents overlap."""

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
        path.unlink(missing_ok=True)
    return count


@dataclass(frozen=True)
class LeftOut:
    """Counts of what is left out of all parts; None where it is not looked for."""

    duplicates: int
    contaminated: int | None
    near_duplicates: int | None
    rejected: int
    filtered: dict[str, int] | None
    """By the reason."""
    counts: TextCounts

    @property
    def causes(self) -> str:
        """Why documents are left out, and how many, as the end of a sentence; nothing where none is."""
        kinds = {
            "copies": self.duplicates,
            "near duplicates": self.near_duplicates,
            "with words of an evaluation": self.contaminated,
            "rejected": self.rejected,
            "not wanted": None if self.filtered is None else sum(self.filtered.values()),
        }
        found = [f"{count:,} {name}" for name, count in kinds.items() if count]
        return f": {', '.join(found)}" if found else ""


@dataclass(frozen=True)
class Decisions:
    """What becomes of the documents of all pieces."""

    identity: str
    """Hash of the pieces and of the settings that decide."""
    bound: int
    """Documents whose hold-out key is below it are held out."""
    left_out: LeftOut
    drops: Path
    """File of a DropMask over the runs of the pieces."""


def decided(job: Job, pieces: Sequence[Finished], check: bool) -> Decisions:
    """What becomes of the documents of all pieces, given in the order read: as it was decided before, or decided now.

    One process decides; others that share the workspace wait for it. On a `check` it reads every piece before.

    Raises BadInput for damaged pieces, too many rejected documents, or a training or held-out part that would get none.
    """
    kept = _kept(job, pieces)
    if kept is not None:
        return kept

    def taken(holder: str) -> Fault:
        return Fault(str(job.output), f"is being joined by {holder}.", "Wait for it.")

    with held(job.path("deciding"), taken, wait=True):
        kept = _kept(job, pieces)
        if kept is None:
            if check:
                completed_pieces(job, spans(job.inputs, job.piece_size, job.settings.text_key), check)
            kept = _decide(job, pieces)
    return kept


_DECIDED, _DROPS = "decided.json", "left_out"


def _identity(job: Job, pieces: Sequence[Finished]) -> str:
    settings = asdict(job.settings)
    del settings["parts"]
    checksums = [(piece.checksum, piece.found_checksum) for piece in pieces]
    content = orjson.dumps([job.digest, settings, checksums], option=orjson.OPT_SORT_KEYS)
    return sha256(content).hexdigest()


def _kept(job: Job, pieces: Sequence[Finished]) -> Decisions | None:
    """What was decided of these pieces before; None where nothing was, or it is not what was written."""
    content = noted(job.path(_DECIDED))
    identity = _identity(job, pieces)
    if content is None or content["identity"] != identity:
        return None
    drops = job.path(_DROPS)
    if not holds(drops, content["drops_bytes"], content["drops_checksum"]):
        return None
    left_out = content["left_out"]
    left_out["counts"] = TextCounts(**left_out["counts"])
    return Decisions(identity, int(content["bound"], 16), LeftOut(**left_out), drops)


def _decide(job: Job, pieces: Sequence[Finished]) -> Decisions:
    """Writes the lists of what is left out, and keeps what is decided."""
    runs = [piece.run(job) for piece in pieces]
    found = [piece.found(job) for piece in pieces]
    places = SourceLocator(job, pieces, runs)
    rejected = _list_rejected(job, pieces, places)
    _refuse_without_ids(job, pieces)
    with DropMask(_scratch(job, _DROPS), runs) as drop_mask:
        counts = sum((piece.counts for piece in pieces), TextCounts())
        filtered = dict(sum((Counter(piece.filtered) for piece in pieces), Counter())) if job.settings.chooses else None
        duplicates, contaminated, near = _drop(job, runs, found, places, drop_mask)
        left_out = LeftOut(duplicates, contaminated, near, rejected, filtered, counts)
        bound = _holdout_bound(job, runs, drop_mask)
        if job.settings.decontaminate is not None:
            _list_contaminated(job, _evaluation(job), runs, found, places, drop_mask, bound)
        _refuse_empty(job, runs, drop_mask, bound, left_out)
        _remove_stale_lists(job)
        size, checksum = drop_mask.keep(job.path(_DROPS))
    identity = _identity(job, pieces)
    kept = {
        "identity": identity,
        "bound": f"{bound:x}",  # it may have 65 bits
        "left_out": asdict(left_out),
        "drops_bytes": size,
        "drops_checksum": checksum,
    }
    note(job.path(_DECIDED), kept, durable=True)
    return Decisions(identity, bound, left_out, job.path(_DROPS))


def _scratch(job: Job, name: str) -> Path:
    """A file of this process alone: where a file system has no locks, two may decide."""
    return job.path(f"{name}.{secrets.token_hex(4)}")


def _drop(
    job: Job, runs: Sequence[SortedRun], found: Sequence[FoundRun], places: SourceLocator, drop_mask: DropMask
) -> tuple[int, int | None, int | None]:
    """Copies, contaminated documents and near duplicates that were dropped; None: not looked for."""
    settings = job.settings
    duplicates = _drop_copies(job, runs, places, drop_mask) if settings.drops_copies else 0
    contaminated = near = None
    # Before near duplicates are looked for: of two, the one that stays must not leave afterwards.
    if settings.decontaminate is not None:
        contaminated = _drop_contaminated(found, drop_mask) if settings.contaminated == "remove" else 0
    if settings.near_duplicates is not None:
        near = _drop_near_duplicates(job, settings.near_duplicates, runs, found, places, drop_mask)
    return duplicates, contaminated, near


def _holdout_bound(job: Job, runs: Sequence[SortedRun], drop_mask: DropMask) -> int:
    """The key below which documents are held out."""
    if job.settings.holdout_tokens is None:
        return bound_of_share(job.settings.holdout)

    def documents() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
        for number, run in enumerate(runs):
            records = run.records()[~drop_mask.left_out(number, 0, run.documents)]
            yield records["holdout_key"], records["tokens"]

    return bound_of_tokens(documents, job.settings.holdout_tokens)


def _refuse_empty(job: Job, runs: Sequence[SortedRun], drop_mask: DropMask, bound: int, left_out: LeftOut) -> None:
    """Raises BadInput where no document is left for training, or none is held out that is to be."""
    training = held_out = 0
    for number, run in enumerate(runs):
        which = below(run.records()["holdout_key"][~drop_mask.left_out(number, 0, run.documents)], bound)
        held_out += int(which.sum())
        training += len(which) - int(which.sum())
    if left_out.filtered and not training and not held_out:
        counted = ", ".join(f"{reason} {count:,}" for reason, count in Counter(left_out.filtered).most_common())
        remedy = "Look at some documents with --limit, and ask for less."
        raise BadInput(Fault(str(job.output), f"would get no document. Left out: {counted}.", remedy))
    if not training and not held_out:
        raise BadInput(Fault(str(job.output), f"would get no document{left_out.causes}.", "Give others."))
    settings = job.settings
    if not settings.holds_out:
        return
    asked = f"{settings.holdout_tokens:,} tokens" if settings.holdout_tokens else f"{settings.holdout:.2%}"
    for count, prefix, remedy in (
        (held_out, validation_prefix(job.output), "Raise --holdout."),
        (training, job.output, "Give inputs with text, and hold out less than all."),
    ):
        if not count:
            raise BadInput(Fault(str(prefix), f"would get no document (held out: {asked}).", remedy))


def _remove_stale_lists(job: Job) -> None:
    """Lists that an earlier call left and this one does not write."""
    stale = {
        duplicates_path(job.output): not job.settings.drops_copies,
        near_duplicates_path(job.output): job.settings.near_duplicates is None,
        contaminated_path(job.output): job.settings.decontaminate is None,
    }
    for path in (path for path, gone in stale.items() if gone):
        path.unlink(missing_ok=True)
