"""What is done to one piece: read, tokenized, sorted, and filed so that it need never be done again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.batches import Framing, batches
from megatron_cpt.preparation.documents import Document, Keys, Rejected, read_piece
from megatron_cpt.preparation.findings import Findings, FoundRun, LookedFor, find, join_findings, write_findings
from megatron_cpt.preparation.job import Job
from megatron_cpt.preparation.minhash import BANDS
from megatron_cpt.preparation.pieces import Piece, piece_name
from megatron_cpt.preparation.sorted_run import RECORD, SortedRun, TokenizedDocuments, write_run
from megatron_cpt.preparation.spool import TokenSpool
from megatron_cpt.runs.durable import renamed_file


@dataclass(frozen=True)
class Finished:
    """What became of a piece. Its documents are in the sorted run of the same name."""

    file: int
    """Number of the file among the inputs."""
    number: int
    """Number of the piece within the file."""
    lines: int
    """Lines, rows, or whole files, read."""
    documents: int
    tokens: int
    """BOS and EOD counted."""
    sentences: int
    """0 unless they are split."""
    id_bytes: int
    bytes: int
    """UTF-8 bytes of the text of the documents."""
    rejected: list[Rejected]
    """Lines that give no document."""
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
    """Of what the texts showed (findings.py); 0 where nothing was looked for."""

    def found(self, job: Job) -> FoundRun:
        """What the texts showed."""
        path = _path(job, piece_name(self.file, self.number), "found")
        return FoundRun(path, self.signatures, self.bands, self.overlaps)

    def run(self, job: Job) -> SortedRun:
        """The documents."""
        path = _path(job, piece_name(self.file, self.number), "run")
        return SortedRun(path, job.dtype, self.documents, self.tokens, self.sentences, self.id_bytes)


def _path(job: Job, name: str, ending: str) -> Path:
    return job.workspace / f"{name}.{ending}"


def finished(job: Job, piece: Piece) -> Finished | None:
    """What became of a piece, if it was done before, from the same bytes, and is whole."""
    found = read_finished(job, piece.file, piece.number, check=True)
    return found if found is not None and found.digest == piece.digest else None


def read_finished(job: Job, file: int, number: int, check: bool) -> Finished | None:
    """What became of the piece of a file, if it was done. `check` reads its documents and trusts no others: what
    a machine wrote may have been lost with its power, or on the way to another."""
    path = _path(job, piece_name(file, number), "json")
    try:
        content = orjson.loads(path.read_bytes())
        content["rejected"] = [Rejected(**line) for line in content["rejected"]]
        done = Finished(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return done if not check or _is_whole(job, done) else None


def _is_whole(job: Job, done: Finished) -> bool:
    if job.settings.looks_at_text and not done.found(job).is_whole(done.found_checksum):
        return False
    return done.run(job).is_whole(done.checksum)


def tokenize_piece(
    job: Job, framing: Framing, looked_for: LookedFor | None, piece: Piece, counters: npt.NDArray[np.int64]
) -> Finished:
    """Does a piece. `counters`, int64[3], are raised on the way by documents, bytes of text and tokens."""
    source = job.inputs[piece.file]
    keys = Keys(job.settings.text_key, job.settings.id_key)
    rejected: list[Rejected] = []
    parts = [_nothing()]
    findings: list[Findings] = []
    with TokenSpool(job.workspace, job.dtype) as tokens:
        for batch in batches(read_piece(piece, source.kind, keys), rejected):
            part, unusable = framing.frame(piece.file, batch)
            rejected += unusable
            _check_ids(job, part)
            tokens.add(part.tokens)
            parts.append(replace(part, tokens=_nothing().tokens))
            if looked_for is not None:
                findings.append(find(looked_for, _texts(batch, unusable)))
            counters += (len(part.records), int(part.records["bytes"].sum()), len(part.tokens))
        whole = TokenizedDocuments.joined(parts)
        found = join_findings(findings, [len(part.records) for part in parts[1:]])
        del parts, findings
        found_checksum = 0 if looked_for is None else _write_found(job, piece, found, whole)
        checksum = write_run(_path(job, piece.name, "run"), whole, tokens)
    done = Finished(
        file=piece.file,
        number=piece.number,
        lines=len(whole.records) + len(rejected),
        documents=len(whole.records),
        tokens=tokens.count,
        sentences=len(whole.sentences),
        id_bytes=len(whole.ids),
        bytes=int(whole.records["bytes"].sum()),
        rejected=sorted(rejected, key=lambda line: line.line),
        digest=piece.digest,
        checksum=checksum,
        signatures=len(found.signatures),
        bands=int(found.signed.sum()) * BANDS,
        overlaps=len(found.overlaps),
        found_checksum=found_checksum,
    )
    # What has its record is done: the run came before.
    _note(_path(job, piece.name, "json"), asdict(done))
    if source.streamed:
        piece.path.unlink()
    return done


def _write_found(job: Job, piece: Piece, found: Findings, whole: TokenizedDocuments) -> int:
    order = np.argsort(whole.records["key"], kind="stable")
    return write_findings(_path(job, piece.name, "found"), found, order)


def _texts(batch: Sequence[Document], unusable: Sequence[Rejected]) -> list[str]:
    """The texts of the documents that were tokenized."""
    lines = {rejected.line for rejected in unusable}
    return [document.text for document in batch if document.line not in lines]


def _check_ids(job: Job, part: TokenizedDocuments) -> None:
    """An id that does not fit is an error, never a wrap."""
    if len(part.tokens) and not 0 <= int(part.tokens.min()) <= int(part.tokens.max()) < job.vocabulary_size:
        rule = f"gives ids outside 0 to {job.vocabulary_size - 1}."
        raise BadInput(Fault(job.tokenizer_folder, rule, "Use a tokenizer whose vocabulary holds its own ids."))


def _nothing() -> TokenizedDocuments:
    return TokenizedDocuments(np.empty(0, RECORD), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.uint8))


def end_stream(job: Job, file: int, pieces: int) -> None:
    """Notes how many pieces a stream gave: it was read to its end."""
    _note(_path(job, f"{file:06d}", "end.json"), {"pieces": pieces})


def pieces_of_stream(job: Job, file: int) -> int | None:
    """How many pieces a stream gave; None if it was not read to its end."""
    try:
        return int(orjson.loads(_path(job, f"{file:06d}", "end.json").read_bytes())["pieces"])
    except (OSError, ValueError):
        return None


def _note(path: Path, value: dict[str, Any]) -> None:
    with renamed_file(path) as file:
        file.write(orjson.dumps(value))
