"""The input files: what each one is, its lines with bounded memory, and the pieces it is cut into.

The first bytes of a file tell its format, and its name where they do not. A plain file is cut every so many bytes, a
Parquet file into groups of rows. A compressed file and standard input can only be read from the beginning: they are
unpacked piece by piece into files that live until their piece is finished. The cuts follow from file sizes alone, and
no byte of the dataset depends on them.
"""

import glob
import gzip
import io
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Literal, cast

import zstandard

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.runs.folder import named_errors

Compression = Literal["gzip", "Zstandard"]
_READ_BYTES = 8 << 10
"""Compressed bytes that are decompressed at a time. Zstandard expands at most 32,768-fold: 256 MB."""
_BROKEN = (EOFError, OSError, zlib.error, zstandard.ZstdError)


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


def compression_of(head: bytes) -> Compression | None:
    """How a file is compressed, by its first bytes."""
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    return "Zstandard" if head.startswith(zstandard.FRAME_HEADER) else None


def _first_bytes(head: bytes, compression: Compression | None) -> bytes:
    """What the beginning of a file begins with when decompressed. IntegrityFault: it is broken there already."""
    if compression is None:
        return head
    try:
        if compression == "gzip":
            return zlib.decompressobj(wbits=31).decompress(head[:_READ_BYTES])
        return zstandard.ZstdDecompressor().decompressobj().decompress(head[:_READ_BYTES])
    except _BROKEN as error:
        raise IntegrityFault(f"is not a whole {compression} file ({error})") from error


@contextmanager
def decompressed(raw: BinaryIO, name: str, compression: Compression | None) -> Iterator[BinaryIO]:
    """The plain content of a stream. Raises IntegrityFault where it is broken or cut short."""
    if compression is None:
        yield raw
        return
    stream = gzip.GzipFile(fileobj=raw, mode="rb") if compression == "gzip" else _buffered(raw)
    try:
        yield stream  # type: ignore[misc]
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # What the system says of a file, this one or one that is written from it: not of its content.
        raise IntegrityFault(f"{name}: is not a whole {compression} file ({error}). Copy it again.") from error


def _buffered(raw: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(_Zstandard(raw), 1 << 20)


class _Zstandard(io.RawIOBase):
    """Frames of a Zstandard file, one behind the other, as one stream.

    The library's own stream reader stops at the first frame unless told otherwise, and ends a file that is
    cut short as if it were whole; here its end must be the end of a frame.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._ahead = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            compressed = self._ahead or self._raw.read(_READ_BYTES)
            if not compressed:
                if self._begun:
                    raise EOFError("it ends inside a frame")
                return 0
            self._ready = memoryview(self._frame.decompress(compressed))
            self._begun, self._ahead = not self._frame.eof, b""
            if self._frame.eof:
                self._ahead = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


Kind = Literal["json_lines", "text", "text_lines", "parquet"]
"""JSON objects, one a line; a document a file; a document a line; rows of a table."""
KINDS: dict[str, Kind] = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json_lines",
    ".txt": "text",
    ".parquet": "parquet",
}
_COMPRESSED = (".gz", ".zst")
_SUFFIXES = (*KINDS, *(kind + ending for kind in KINDS if kind != ".parquet" for ending in _COMPRESSED))
STANDARD_INPUT = Path("-")
_PARQUET = b"PAR1"
_SAID = f"Give {', '.join(KINDS)} (all but parquet also {' or '.join(_COMPRESSED)}), or - for standard input."


@dataclass(frozen=True)
class Input:
    """One input file."""

    path: Path
    """Where it is; STANDARD_INPUT for the stream."""
    kind: Kind
    compression: Compression | None = None

    @property
    def streamed(self) -> bool:
        """Whether it can only be read from its beginning to its end."""
        return self.compression is not None or self.path == STANDARD_INPUT


def input_files(paths: Sequence[str], document_per_line: bool = False) -> list[Input]:
    """What paths, folders and globs name, in the order given, files of one folder or glob by name.

    `document_per_line` takes each line of a text file for a document. Raises BadInput listing each path that
    is missing, of an unknown kind, or named twice.
    """
    faults: list[Fault] = []
    inputs: list[Input] = []
    seen: set[Path] = set()
    for text in paths:
        found = _files_of(text)
        if not found:
            faults.append(Fault(text, "is not there, or holds no corpus file.", _SAID))
        for file in found:
            known = _described(file, document_per_line)
            if isinstance(known, Fault):
                faults.append(known)
            elif file.resolve() in seen:
                faults.append(Fault(str(file), "is named twice.", "Name each input once."))
            else:
                inputs.append(known)
            seen.add(file.resolve())
    if faults:
        raise BadInput(*faults)
    return inputs


def _files_of(text: str) -> list[Path]:
    path = Path(text)
    if path == STANDARD_INPUT or path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(_SUFFIXES))
    return [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]


def _described(path: Path, document_per_line: bool) -> Input | Fault:
    """What a file is, or why it cannot be read."""
    head = _head(path)
    compression = compression_of(head)
    kind = _kind(path, head, compression)
    if kind is None and path.name.endswith(_COMPRESSED):
        return Fault(str(path), "is not a whole gzip or Zstandard file.", "Copy it again.")
    if kind is None:
        return Fault(str(path), "is not a kind of file that is read.", _SAID)
    if kind == "json_lines" and _plain(head, compression).lstrip().startswith(b"["):
        remedy = "Write its items one a line, for example with `jq -c '.[]'`."
        return Fault(str(path), "is one JSON array, not JSON lines.", remedy)
    if kind == "parquet" and (path == STANDARD_INPUT or not head.startswith(_PARQUET)):
        rule = "is not a parquet file." if path != STANDARD_INPUT else "is parquet, which cannot be read as a stream."
        return Fault(str(path), rule, "Give the file itself, whole.")
    return Input(path, "text_lines" if kind == "text" and document_per_line else kind, compression)


def _kind(path: Path, head: bytes, compression: Compression | None) -> Kind | None:
    if head.startswith(_PARQUET):
        return "parquet"
    name = path.name.lower()
    if compression is not None:
        name = name.removesuffix(".gz").removesuffix(".zst")
    for ending, kind in KINDS.items():
        if name.endswith(ending):
            return kind
    if _plain(head, compression).lstrip().startswith(b"{"):
        return "json_lines"
    return "text" if path == STANDARD_INPUT else None


def _head(path: Path) -> bytes:
    """Some first bytes, left where they are."""
    if path == STANDARD_INPUT:
        return cast(BufferedReader, sys.stdin.buffer).peek()
    with path.open("rb") as file:
        return file.read(1 << 16)


def _plain(head: bytes, compression: Compression | None) -> bytes:
    try:
        return _first_bytes(head, compression)
    except IntegrityFault:
        return b""


SMALLEST_PIECE, _LARGEST_PIECE = 2 << 20, 64 << 20
"""Bytes of text."""
_PIECES = 1024
"""Of an input of 2 to 64 GB; smaller ones have fewer, larger ones more."""
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
    """First byte, or row, of `path`."""
    end: int
    """One behind the last. Of lines, those that begin in between belong to the piece."""
    base: int = 0
    """Place in the unpacked input of byte 0 of `path`."""
    digest: str = ""
    """Hash of what was read from standard input."""

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
        if source.streamed:
            found.append(Span(Piece(file, 0, source.path, 0, 0), True, _text_size(source)))
            continue
        if source.kind == "parquet":
            # Its library takes 50 MB of every process: only where there is a table.
            from megatron_cpt.preparation.parquet import row_spans  # noqa: PLC0415

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
