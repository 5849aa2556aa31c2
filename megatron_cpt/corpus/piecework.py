"""What is done to one piece: read, tokenized, sorted, and filed so that it need never be done again."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.batches import Framing, batches
from megatron_cpt.corpus.documents import Keys, Rejected, read_piece
from megatron_cpt.corpus.job import Job
from megatron_cpt.corpus.pieces import Piece, piece_name
from megatron_cpt.corpus.sorted_run import RECORD, SortedRun, TokenizedDocuments, write_run
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
    except (OSError, ValueError):
        return None
    content["rejected"] = [Rejected(**line) for line in content["rejected"]]
    found = Finished(**content)
    return None if check and not found.run(job).is_whole(found.checksum) else found


def tokenize_piece(job: Job, framing: Framing, piece: Piece, counters: npt.NDArray[np.int64]) -> Finished:
    """Does a piece. `counters`, int64[3], are raised on the way by documents, bytes of text and tokens."""
    source = job.inputs[piece.file]
    keys = Keys(job.settings.text_key, job.settings.id_key)
    rejected: list[Rejected] = []
    parts = [_nothing(job)]
    for batch in batches(read_piece(piece, source.kind, keys), rejected):
        part, unusable = framing.frame(piece.file, batch)
        rejected += unusable
        _check_ids(job, part)
        # The ids of a whole piece are held in as few bytes as they will have on disk.
        narrow = TokenizedDocuments(part.records, part.tokens.astype(job.dtype), part.sentences, part.ids)
        parts.append(narrow)
        counters += (len(part.records), int(part.records["bytes"].sum()), len(part.tokens))
    whole = TokenizedDocuments.joined(parts)
    del parts
    checksum = write_run(_path(job, piece.name, "run"), whole, job.dtype)
    done = Finished(
        file=piece.file,
        number=piece.number,
        lines=len(whole.records) + len(rejected),
        documents=len(whole.records),
        tokens=len(whole.tokens),
        sentences=len(whole.sentences),
        id_bytes=len(whole.ids),
        bytes=int(whole.records["bytes"].sum()),
        rejected=sorted(rejected, key=lambda line: line.line),
        digest=piece.digest,
        checksum=checksum,
    )
    # What has its record is done: the run came before.
    _note(_path(job, piece.name, "json"), asdict(done))
    if source.streamed:
        piece.path.unlink()
    return done


def _check_ids(job: Job, part: TokenizedDocuments) -> None:
    """An id that does not fit is an error, never a wrap."""
    if len(part.tokens) and not 0 <= int(part.tokens.min()) <= int(part.tokens.max()) < job.vocabulary_size:
        rule = f"gives ids outside 0 to {job.vocabulary_size - 1}."
        raise BadInput(Fault(job.tokenizer_folder, rule, "Use a tokenizer whose vocabulary holds its own ids."))


def _nothing(job: Job) -> TokenizedDocuments:
    return TokenizedDocuments(np.empty(0, RECORD), np.empty(0, job.dtype), np.empty(0, np.int32), np.empty(0, np.uint8))


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
