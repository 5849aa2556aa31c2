"""Which pieces of the inputs are filed in PREFIX.pieces, and which are still to be done."""

import sys
from collections.abc import Iterable, Iterator, Sequence

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.inputs import STANDARD_INPUT
from megatron_cpt.preparation.job import Job
from megatron_cpt.preparation.lines import decompressed
from megatron_cpt.preparation.pieces import Piece, Span, unpacked
from megatron_cpt.preparation.piecework import Finished, end_stream, finished, pieces_of_stream, read_finished
from megatron_cpt.preparation.progress import Progress


def unfiled(job: Job, found: Iterable[Span], bar: Progress) -> Iterator[Piece]:
    """The pieces that are not filed yet."""
    for span in found:
        if not span.streamed:
            pieces: Iterable[Piece] = [span.piece]
        elif _known(job, span.piece.file):
            bar.skip(span.size)
            continue
        else:
            pieces = _unpacked(job, span.piece.file)
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


def _unpacked(job: Job, file: int) -> Iterator[Piece]:
    source = job.inputs[file]
    standard = source.path == STANDARD_INPUT
    number = 0
    with (
        sys.stdin.buffer if standard else source.path.open("rb") as raw,
        decompressed(raw, job.sources[file].path, source.compression) as stream,
    ):
        for piece in unpacked(stream, file, source.kind == "text", standard, job.workspace, job.piece_size):
            number += 1
            yield piece
    end_stream(job, file, number)


def _streamed(job: Job, file: int, check: bool) -> list[Finished] | None:
    """The pieces of a stream that was read to its end, if all are filed."""
    count = pieces_of_stream(job, file)
    if count is None:
        return None
    pieces = [read_finished(job, file, number, check) for number in range(count)]
    there = [piece for piece in pieces if piece is not None]
    return there if len(there) == count else None


def filed(job: Job, found: Sequence[Span], check: bool) -> list[Finished]:
    """Every piece of the spans, in the order read. Raises BadInput where some are missing or, on a `check`, damaged."""
    pieces: list[Finished] = []
    missing: list[str] = []
    for span in found:
        file = span.piece.file
        if span.streamed:
            there = _streamed(job, file, check)
        else:
            piece = read_finished(job, file, span.piece.number, check)
            there = None if piece is None else [piece]
        if there is None:
            missing.append(job.sources[file].path)
        pieces += there or []
    if missing:
        raise BadInput(
            Fault(
                f"{len(missing):,} of {len(found):,} parts of the input",
                f"are not tokenized yet or damaged, the first of {missing[0]}, the last of {missing[-1]}.",
                "Run their shards again, then merge.",
            )
        )
    return pieces
