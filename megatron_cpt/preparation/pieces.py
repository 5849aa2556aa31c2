"""The pieces that inputs are cut into: each is tokenized by one worker, and shards are stretches of them.

A plain file is cut every so many bytes, a Parquet file into groups of rows, a dataset between documents. A compressed
file and standard input can only be read from the beginning: they are unpacked piece by piece into files that live until
their piece is finished. The cuts follow from file sizes alone, and no byte of the dataset depends on them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.preparation.input_kinds import DELIMITERS, STANDARD_INPUT, TABLES, Input, refuse_without_cells
from megatron_cpt.runs.folder import named_errors

SMALLEST_PIECE, _LARGEST_PIECE = 2 << 20, 64 << 20
"""Bytes of text."""
_PIECES = 1024
"""Of an input of 2 to 64 GB; smaller ones have fewer, larger ones more."""
_TEXT_OF_TOKEN = 4
"""Text bytes of a token, about."""
_COMPRESSION = 4
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
    """First byte, row, or document of `path`."""
    end: int
    """One behind the last. Of lines, those that begin in between belong to the piece."""
    base: int = 0
    """Place in the unpacked input of byte 0 of `path`; of a dataset, the token at which document `start` begins."""
    digest: str = ""
    """Hash of what was read from standard input."""
    origin: str = ""
    """The input that `path` was unpacked of."""

    @property
    def input(self) -> str:
        """The input, for people."""
        return self.origin or str(self.path)

    @property
    def name(self) -> str:
        """By which its results are named."""
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
    return min(_LARGEST_PIECE, max(SMALLEST_PIECE, sum(map(_text_size, inputs)) // _PIECES))


def _text_size(source: Input) -> int:
    """Bytes of text in an input, about; of standard input nothing is known."""
    if source.path == STANDARD_INPUT:
        return 0
    size = source.path.stat().st_size
    return size * _COMPRESSION if source.compression is not None or source.kind == "parquet" else size


def spans(inputs: Sequence[Input], size: int, text_key: str) -> list[Span]:
    """The inputs in spans, in the order read. Raises BadInput for a table without the column of the text."""
    found: list[Span] = []
    for file, source in enumerate(inputs):
        if source.kind in DELIMITERS:
            refuse_without_cells(source, text_key)
        if source.streamed:
            found.append(Span(Piece(file, 0, Path(str(source.path)), 0, 0), True, _text_size(source)))
            continue
        if source.kind == "indexed":
            found += _document_spans(file, source.local, size)
            continue
        if source.kind in TABLES:
            # Its library takes 50 MB of every process: only where there is a table.
            from megatron_cpt.preparation.table import row_spans  # noqa: PLC0415

            cuts = row_spans(source.local, text_key, size)
        else:
            length = source.path.stat().st_size
            step = size if source.kind in ("json_lines", "text_lines") else max(1, length)
            cuts = [
                (start, min(start + step, length), min(step, length - start))
                for start in range(0, max(1, length), step)
            ]
        found += [Span(Piece(file, n, source.local, a, b), False, text) for n, (a, b, text) in enumerate(cuts)]
    return found


def _document_spans(file: int, path: Path, size: int) -> list[Span]:
    """Stretches of documents of a dataset."""
    starts = IndexedDataset(path.with_suffix("")).document_starts
    step = max(1, size // _TEXT_OF_TOKEN)
    cuts = np.searchsorted(starts, np.arange(0, int(starts[-1]) + step, step), side="left")
    cuts = np.unique(np.append(cuts[cuts < len(starts)], [0, len(starts) - 1]))
    return [
        Span(
            Piece(file, number, path, first, end, base=int(starts[first])),
            False,
            int(starts[end] - starts[first]) * _TEXT_OF_TOKEN,
        )
        for number, (first, end) in enumerate(pairwise(cuts.tolist()))
    ]


def of_shard(found: Sequence[Span], shard: int, shards: int) -> list[Span]:
    """The spans of shard 1 to `shards`: neighbours, about as much text as every other shard has."""
    return [span for span, its in zip(found, shard_numbers(found, shards), strict=True) if its == shard]


def shard_numbers(found: Sequence[Span], shards: int) -> list[int]:
    """Which of so many shards, from 1, each span is of."""
    total = sum(span.size for span in found)
    numbers: list[int] = []
    before = 0
    for number, span in enumerate(found):
        middle = (before + span.size / 2) / total if total else (number + 0.5) / len(found)
        before += span.size
        numbers.append(min(shards, math.floor(middle * shards) + 1))
    return numbers


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


def lines_of(path: Path, start: int, end: int, longest: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line that begins in bytes start to end - 1 of a plain file, its end included, and where it begins.

    None stands for a line of more than `longest` bytes.
    """
    with path.open("rb", buffering=1 << 20) as file:
        position = _first_line(file, start, end)
        while position < end and (line := file.readline(longest + 1)):
            length = len(line)
            whole: bytes | None = line
            while length > longest and not line.endswith(b"\n"):
                whole = None
                line = file.readline(longest + 1)
                if not line:
                    break
                length += len(line)
            yield whole, position
            position += length


def _first_line(file: BinaryIO, start: int, end: int) -> int:
    """Goes to the first line that begins at `start` or behind it, or to somewhere from `end` on."""
    if start == 0:
        return 0
    position = start - 1
    file.seek(position)
    while position < end:
        part = file.readline(1 << 20)
        position += len(part)
        if not part or part.endswith(b"\n"):
            break
    return position
