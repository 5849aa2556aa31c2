"""Lines of a stretch of a file, and compressed streams, with memory bounded whatever the file holds."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import zstandard

from megatron_cpt.config.errors import IntegrityFault

Compression = Literal["gzip", "Zstandard"]
READ_BYTES = 8 << 10
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


def first_bytes(head: bytes, compression: Compression | None) -> bytes:
    """What the beginning of a file begins with when decompressed. IntegrityFault: it is broken there already."""
    if compression is None:
        return head
    try:
        if compression == "gzip":
            return zlib.decompressobj(wbits=31).decompress(head[:READ_BYTES])
        return zstandard.ZstdDecompressor().decompressobj().decompress(head[:READ_BYTES])
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
            compressed = self._ahead or self._raw.read(READ_BYTES)
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
