"""The inputs cut into pieces: what one worker does at a time, and what a run that was killed need not do again.

A plain file is cut at every so many bytes, a parquet file into groups of rows. A compressed file and standard
input can only be read from the beginning: they are unpacked, piece by piece, into files that live until their
piece is done. How the inputs are cut follows from their sizes alone, and no byte of the dataset from the cut.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from megatron_cpt.preparation.inputs import STANDARD_INPUT, Input
from megatron_cpt.runs.durable import named_errors

SMALLEST_PIECE, LARGEST_PIECE = 2 << 20, 64 << 20
"""Bytes of text."""
PIECES = 1024
"""Of an input of 2 to 64 GB; smaller ones have fewer, larger ones more."""
COMPRESSION = 4
"""Text bytes of a compressed byte, about."""
BLOCK = 1 << 20
"""Bytes that are unpacked at a time."""


@dataclass(frozen=True)
class Piece:
    """A part of an input that is tokenized by one worker."""

    file: int
    """Number of the file among the inputs."""
    number: int
    """Number of the piece within the file."""
    path: Path
    """What is read: the input itself, or what was unpacked of it."""
    start: int
    """First byte, or row, of `path`."""
    end: int
    """One behind the last. Of lines, those that begin in between belong to the piece."""
    base: int = 0
    """Place in the unpacked input of byte 0 of `path`."""
    digest: str = ""
    """Hash of what was read from standard input."""

    @property
    def name(self) -> str:
        """By which its results are filed."""
        return piece_name(self.file, self.number)


@dataclass(frozen=True)
class Span:
    """A stretch of the inputs that one shard takes whole: a piece, or a stream with all its pieces."""

    piece: Piece
    streamed: bool
    size: int
    """Bytes of text, about."""


def piece_name(file: int, number: int) -> str:
    """Of the piece of a file."""
    return f"{file:06d}-{number:06d}"


def piece_size(inputs: Sequence[Input]) -> int:
    """Bytes of a piece."""
    return min(LARGEST_PIECE, max(SMALLEST_PIECE, sum(map(text_size, inputs)) // PIECES))


def text_size(source: Input) -> int:
    """Bytes of text in an input, about; of standard input nothing is known."""
    if source.path == STANDARD_INPUT:
        return 0
    size = source.path.stat().st_size
    return size * COMPRESSION if source.compression is not None or source.kind == "parquet" else size


def spans(inputs: Sequence[Input], size: int, text_key: str) -> list[Span]:
    """The inputs in spans, in the order read. Raises BadInput for a table without the column of the text."""
    found: list[Span] = []
    for file, source in enumerate(inputs):
        if source.streamed:
            found.append(Span(Piece(file, 0, source.path, 0, 0), True, text_size(source)))
            continue
        if source.kind == "parquet":
            # Its library takes 50 MB of every process: only where there is a table.
            from megatron_cpt.preparation.table import row_spans  # noqa: PLC0415

            cuts = row_spans(source.path, text_key, size)
        else:
            length = source.path.stat().st_size
            step = size if source.kind in ("json_lines", "text_lines") else max(1, length)
            cuts = [
                (start, min(start + step, length), min(step, length - start))
                for start in range(0, max(1, length), step)
            ]
        found += [Span(Piece(file, n, source.path, a, b), False, text) for n, (a, b, text) in enumerate(cuts)]
    return found


def of_shard(found: Sequence[Span], shard: int, shards: int) -> list[Span]:
    """The spans of shard 1 to `shards`: neighbours, about as much text as every other shard has."""
    total = sum(span.size for span in found)
    taken: list[Span] = []
    before = 0
    for number, span in enumerate(found):
        middle = (before + span.size / 2) / total if total else (number + 0.5) / len(found)
        before += span.size
        if min(shards, math.floor(middle * shards) + 1) == shard:
            taken.append(span)
    return taken


def unpacked(stream: BinaryIO, file: int, whole: bool, hashed: bool, folder: Path, size: int) -> Iterator[Piece]:
    """The pieces of a stream, cut behind a line end, each in a file of its own; all in one if it is kept `whole`."""
    number = base = 0
    block = stream.read(BLOCK)
    while block:
        path = folder / f"{piece_name(file, number)}.input"
        length, digest = 0, blake2b(digest_size=16)
        with named_errors(path), path.open("wb") as out:
            while block:
                cut = 0 if whole or length + len(block) < size else block.rfind(b"\n") + 1
                part, rest = (block[:cut], block[cut:]) if cut else (block, b"")
                out.write(part)
                length += len(part)
                if hashed:
                    digest.update(part)
                block = rest or stream.read(BLOCK)
                if cut:
                    break
        yield Piece(file, number, path, 0, length, base, digest.hexdigest() if hashed else "")
        number, base = number + 1, base + length
