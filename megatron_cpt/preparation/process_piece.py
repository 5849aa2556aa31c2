"""One piece: read, tokenized with BOS and EOD, hashed, sorted and stored, so that it need not be done again."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.documents import OUTSIDE, Document, Filtered, Line, Rejected, read_piece
from megatron_cpt.preparation.encode_documents import DocumentEncoder, TextCounts, no_documents
from megatron_cpt.preparation.indexed_input import TokenReader
from megatron_cpt.preparation.input_kinds import STANDARD_INPUT, WHOLE, plain_stream
from megatron_cpt.preparation.job import Job, note, noted
from megatron_cpt.preparation.pieces import Piece, Span, piece_name, shard_numbers, spans, unpacked
from megatron_cpt.preparation.pool import Progress
from megatron_cpt.preparation.sorted_runs import SortedRun, TokenBuffer, TokenizedDocuments, write_run
from megatron_cpt.preparation.text_signatures import (
    BANDS,
    FoundRun,
    TextChecks,
    TextSignatures,
    join_signatures,
    text_signatures,
    write_signatures,
)

_BATCH_DOCUMENTS = 2048
_BATCH_CHARACTERS = 1_000_000
"""A batch ends at either: bounds memory."""
_TOKEN_CHARACTERS = 4
"""Of a token, about."""


def batches(lines: Iterable[Line], rejected: list[Rejected]) -> Iterator[list[Document]]:
    """The documents in the order read, some at a time; rejected lines are put on the list."""
    batch: list[Document] = []
    characters = 0
    for line in lines:
        if isinstance(line, Rejected):
            rejected.append(line)
        if not isinstance(line, Document):
            continue
        batch.append(line)
        characters += len(line.text) if line.tokens is None else _TOKEN_CHARACTERS * len(line.tokens)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class Finished:
    """What became of a piece. Its documents are in the sorted run of the same name."""

    file: int
    """Number of the file among the inputs."""
    number: int
    """Number of the piece within the file."""
    lines: int
    """Lines, rows, or whole files, read; blank ones too."""
    documents: int
    tokens: int
    """BOS and EOD counted."""
    sentences: int
    """0 unless they are split."""
    id_bytes: int
    spans: int
    """Spans of tokens that count in the loss; 0 where all do."""
    bytes: int
    """UTF-8 bytes of the text of the documents."""
    rejected: list[Rejected]
    """Lines that give no document."""
    filtered: dict[str, int]
    """Documents that are not wanted, by the reason."""
    counts: TextCounts
    digest: str
    """Hash of what was read from standard input; empty otherwise."""
    checksum: int
    """Of the sorted run."""
    signatures: int
    """Documents with a MinHash signature: all, or 0 where none are made."""
    bands: int
    """Bands of all signatures."""
    overlaps: int
    """Overlaps of a document with an evaluation item."""
    found_checksum: int
    """Of what the texts showed (text_signatures.py); 0 where nothing was looked for."""

    def found(self, job: Job) -> FoundRun:
        """What the texts showed."""
        path = _path(job, piece_name(self.file, self.number), "found")
        return FoundRun(path, self.signatures, self.bands, self.overlaps)

    def run(self, job: Job) -> SortedRun:
        """The documents."""
        path = _path(job, piece_name(self.file, self.number), "run")
        return SortedRun(path, job.dtype, self.documents, self.tokens, self.sentences, self.id_bytes, self.spans)


def _path(job: Job, name: str, ending: str) -> Path:
    return job.path(f"{name}.{ending}")


def finished(job: Job, piece: Piece) -> Finished | None:
    """What became of a piece, if it was done before, from the same bytes, and is whole."""
    found = _read_finished(job, piece.file, piece.number, check=True)
    return found if found is not None and found.digest == piece.digest else None


def _read_finished(job: Job, file: int, number: int, check: bool) -> Finished | None:
    """What became of the piece of a file, if it was done. `check` reads its documents and trusts no others: what
    a machine wrote may have been lost with its power, or on the way to another."""
    content = noted(_path(job, piece_name(file, number), "json"))
    if content is None:
        return None
    content["rejected"] = [Rejected(**line) for line in content["rejected"]]
    content["counts"] = TextCounts(**content["counts"])
    done = Finished(**content)
    return done if not check or _damaged(job, done) is None else None


def _damaged(job: Job, done: Finished) -> Path | None:
    """The file of a piece that is not what was written."""
    found, run = done.found(job), done.run(job)
    if job.settings.looks_at_text and not found.is_whole(done.found_checksum):
        return found.path
    return None if run.is_whole(done.checksum) else run.path


def tokenize_piece(
    job: Job, framing: DocumentEncoder, looked_for: TextChecks | None, piece: Piece, counters: npt.NDArray[np.int64]
) -> Finished:
    """Does a piece. `counters`, int64[3], are raised on the way by documents, bytes of text and tokens."""
    source = job.inputs[piece.file]
    rejected: list[Rejected] = []
    counts = TextCounts()
    filtered: Counter[str] = Counter()
    read: Counter[type[Line]] = Counter()
    reader = TokenReader(framing.tokenizer, job.bos, job.eod, looked_for is not None)
    lines = _counted(read_piece(piece, source.kind, job.settings.keys, reader.documents), read)
    parts = [no_documents()]
    findings: list[TextSignatures] = []
    with TokenBuffer(job.workspace, job.dtype) as tokens:
        for batch in batches(lines, rejected):
            encoded = framing.frame(piece.file, batch)
            part = encoded.tokenized
            rejected += encoded.rejected
            filtered += encoded.left_out
            counts += encoded.counts
            _check_ids(job, part)
            tokens.add(part.tokens)
            parts.append(replace(part, tokens=no_documents().tokens))
            if looked_for is not None:
                findings.append(text_signatures(looked_for, [document.text for document in encoded.documents]))
            counters += (len(part.records), int(part.records["bytes"].sum()), len(part.tokens))
        whole = TokenizedDocuments.joined(parts)
        found = join_signatures(findings, [len(part.records) for part in parts[1:]])
        del parts, findings
        found_checksum = 0 if looked_for is None else _write_found(job, piece, found, whole)
        checksum = write_run(_path(job, piece.name, "run"), whole, tokens)
    done = Finished(
        file=piece.file,
        number=piece.number,
        lines=read.total(),
        documents=len(whole.records),
        tokens=tokens.count,
        sentences=len(whole.sentences),
        id_bytes=len(whole.ids),
        spans=len(whole.spans),
        bytes=int(whole.records["bytes"].sum()),
        rejected=sorted(rejected, key=lambda line: line.line),
        filtered=dict(filtered + Counter({OUTSIDE: read[Filtered]})),
        counts=counts,
        digest=piece.digest,
        checksum=checksum,
        signatures=len(found.signatures),
        bands=int(found.signed.sum()) * BANDS,
        overlaps=len(found.overlaps),
        found_checksum=found_checksum,
    )
    # What has its record is done: the run came before.
    note(_path(job, piece.name, "json"), asdict(done))
    if source.streamed:
        piece.path.unlink()
    return done


def _counted(lines: Iterable[Line], seen: "Counter[type[Line]]") -> Iterator[Line]:
    """The lines, counted by what they are."""
    for line in lines:
        seen[type(line)] += 1
        yield line


def _write_found(job: Job, piece: Piece, found: TextSignatures, whole: TokenizedDocuments) -> int:
    order = np.argsort(whole.records["key"], kind="stable")
    return write_signatures(_path(job, piece.name, "found"), found, order)


def _check_ids(job: Job, part: TokenizedDocuments) -> None:
    """An id that does not fit is an error, never a wrap."""
    if len(part.tokens) and not 0 <= int(part.tokens.min()) <= int(part.tokens.max()) < job.vocabulary_size:
        rule = f"gives ids outside 0 to {job.vocabulary_size - 1}."
        raise BadInput(Fault(job.tokenizer_folder, rule, "Use a tokenizer whose vocabulary holds its own ids."))


def _end_stream(job: Job, file: int, pieces: int) -> None:
    """Notes how many pieces a stream gave: it was read to its end."""
    note(_path(job, f"{file:06d}", "end.json"), pieces)


def _pieces_of_stream(job: Job, file: int) -> int | None:
    """How many pieces a stream gave; None if it was not read to its end."""
    count: int | None = noted(_path(job, f"{file:06d}", "end.json"))
    return count


def pending_pieces(job: Job, found: Iterable[Span], folder: Path, bar: Progress) -> Iterator[Piece]:
    """The pieces that are not completed yet; those of streams are unpacked into a folder."""
    for span in found:
        if not span.streamed:
            pieces: Iterable[Piece] = [span.piece]
        elif _known(job, span.piece.file):
            bar.skip(span.size)
            continue
        else:
            pieces = _unpacked(job, span.piece.file, folder)
        for piece in pieces:
            done = finished(job, piece)
            if done is None:
                yield piece
            else:
                bar.skip(done.bytes)
                if span.streamed:
                    piece.path.unlink()


def _known(job: Job, file: int) -> bool:
    """Whether a stream need not be read again; of standard input that shows only when it is."""
    return job.inputs[file].path != STANDARD_INPUT and _streamed(job, file, check=True) is not None


def _unpacked(job: Job, file: int, folder: Path) -> Iterator[Piece]:
    source = job.inputs[file]
    standard = source.path == STANDARD_INPUT
    number = 0
    with plain_stream(source) as stream:
        for piece in unpacked(stream, file, source.kind in WHOLE, standard, folder, job.piece_size):
            number += 1
            yield replace(piece, origin=job.sources[file].path)
    _end_stream(job, file, number)


def _streamed(job: Job, file: int, check: bool) -> list[Finished] | None:
    """The pieces of a stream that was read to its end, if all are completed."""
    count = _pieces_of_stream(job, file)
    if count is None:
        return None
    pieces = [_read_finished(job, file, number, check) for number in range(count)]
    there = [piece for piece in pieces if piece is not None]
    return there if len(there) == count else None


def completed_pieces(job: Job, found: Sequence[Span], check: bool) -> list[Finished]:
    """Every piece of the spans, in the order read. Raises BadInput where some are missing or, on a `check`, damaged."""
    pieces: list[Finished] = []
    missing: list[Span] = []
    for span in found:
        file = span.piece.file
        if span.streamed:
            there = _streamed(job, file, check)
        else:
            piece = _read_finished(job, file, span.piece.number, check)
            there = None if piece is None else [piece]
        if there is None:
            missing.append(span)
        pieces += there or []
    if missing:
        listed = "; ".join(_state(job, span) for span in missing[:_MOST_LISTED])
        more = f"; and {len(missing) - _MOST_LISTED:,} more" if len(missing) > _MOST_LISTED else ""
        raise BadInput(
            Fault(
                f"{len(missing):,} of {len(found):,} parts of the input",
                f"are not tokenized yet or damaged: {listed}{more}.",
                f"Run the same command again, which does these alone{_shards_of(job, missing)}.",
            )
        )
    return pieces


_MOST_LISTED = 8


def _state(job: Job, span: Span) -> str:
    """What is wrong with a part of the input, and with which of its files."""
    file, path = span.piece.file, job.sources[span.piece.file].path
    if not span.streamed:
        numbers = [span.piece.number]
    elif (count := _pieces_of_stream(job, file)) is not None:
        numbers = list(range(count))
    else:
        return f"{path} was not read to its end"
    for number in numbers:
        record = _path(job, piece_name(file, number), "json")
        if not record.exists():
            return f"piece {number + 1:,} of {path} is not tokenized"
        done = _read_finished(job, file, number, check=False)
        damaged = record if done is None else _damaged(job, done)
        if damaged is not None:
            return f"piece {number + 1:,} of {path}: {damaged} is {'damaged' if damaged.exists() else 'not there'}"
    return path  # Another process has done it meanwhile.


def note_shards(job: Job, shards: int) -> None:
    """Says how many shards there are, so that a piece can be traced to its shard."""
    note(job.path(_SHARDS), shards)


_SHARDS = "shards.json"


def _shards_of(job: Job, missing: Sequence[Span]) -> str:
    """The shards that do some parts of the input, as commands; nothing where there are none."""
    shards: int | None = noted(job.path(_SHARDS))
    if shards is None:
        return ""
    found = spans(job.inputs, job.piece_size, job.settings.text_key)
    numbers = dict(zip(found, shard_numbers(found, shards), strict=True))
    of_these = sorted({numbers[span] for span in missing if span in numbers})
    listed = ", ".join(f"--shard {number}/{shards}" for number in of_these[:_MOST_LISTED])
    more = f" and {len(of_these) - _MOST_LISTED:,} more" if len(of_these) > _MOST_LISTED else ""
    return f". Of shards that is: megatron-cpt prepare ... --output {job.output} {listed}{more}; then merge"
