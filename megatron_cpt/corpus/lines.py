"""The lines of a file, plain, gzipped or Zstandard, with memory bounded whatever the file holds."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from megatron_cpt.config.errors import IntegrityFault

COMPRESSED = (".gz", ".zst")
"""Endings of the compressed kinds."""
READ_BYTES = 8 << 10
"""Compressed bytes that are decompressed at a time. Zstandard expands at most 32,768-fold: 256 MB."""


def read_lines(path: Path, longest: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line, its end included, with the bytes of the file read so far; None for one over `longest` bytes.

    Bytes of a compressed file are its compressed ones. Raises IntegrityFault where a compressed file is
    broken or cut short.
    """
    with path.open("rb") as raw, _decompressed(raw, path) as stream:
        position = 0
        while line := stream.readline(longest + 1):
            length = len(line)
            whole: bytes | None = line
            while length > longest and not line.endswith(b"\n"):
                whole = None
                line = stream.readline(longest + 1)
                if not line:
                    break
                length += len(line)
            position = position + length if stream is raw else raw.tell()
            yield whole, position


@contextmanager
def _decompressed(raw: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    if not path.name.endswith(COMPRESSED):
        yield raw
        return
    gzipped = path.name.endswith(".gz")
    stream = gzip.GzipFile(fileobj=raw, mode="rb") if gzipped else io.BufferedReader(_Zstandard(raw), 1 << 20)
    try:
        yield stream  # type: ignore[misc]
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        kind = "gzip" if gzipped else "Zstandard"
        raise IntegrityFault(f"{path}: is not a whole {kind} file ({error}). Copy it again.") from error


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
