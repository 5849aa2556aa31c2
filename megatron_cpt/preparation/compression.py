"""Compressed files: which are, by their first bytes, and their plain content as a stream."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO, Literal, cast

import zstandard

from megatron_cpt.config.errors import IntegrityFault

Compression = Literal["gzip", "Zstandard", "bzip2", "xz"]
_MAGIC: dict[bytes, Compression] = {
    rb"\x1f\x8b": "gzip",
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": "Zstandard",  # a frame, or one to be skipped: pzstd begins so
    rb"BZh[1-9](\x31\x41\x59|\x17\x72\x45)": "bzip2",
    rb"\xfd7zXZ\x00": "xz",
}
MAGIC_BYTES = 7
"""First bytes of a file that tell how it is compressed."""
_LARGEST_WINDOW = 1 << 31
"""Bytes of text that Zstandard may look back, of `zstd --ultra --long=31`; its library alone allows 128 MB."""
_READ_BYTES = 8 << 10
"""Compressed bytes that are decompressed at a time. Zstandard expands at most 32,768-fold: 256 MB."""
_BROKEN = (EOFError, OSError, zlib.error, zstandard.ZstdError, lzma.LZMAError)


def compression_of(head: bytes) -> Compression | None:
    """How a file is compressed, by its first bytes."""
    return next((name for magic, name in _MAGIC.items() if re.match(magic, head, re.DOTALL)), None)


def first_bytes(head: bytes, compression: Compression | None, most: int) -> bytes:
    """What the beginning of a file begins with when decompressed, as far as it goes: `most` bytes, or a few more."""
    if compression is None:
        return head
    plain = b""
    with suppress(IntegrityFault), decompressed(io.BytesIO(head), "", compression) as stream:
        # What came before the head is cut off, not what a larger reading would give.
        while len(plain) < most and (more := cast(io.BufferedReader, stream).read1(most)):
            plain += more
    return plain


@contextmanager
def decompressed(raw: BinaryIO, name: str, compression: Compression | None) -> Iterator[BinaryIO]:
    """The plain content of a stream. Raises IntegrityFault where it is broken or cut short."""
    if compression is None:
        yield raw
        return
    openers: dict[Compression, Callable[[], object]] = {
        "gzip": partial(gzip.GzipFile, fileobj=raw, mode="rb"),
        "Zstandard": lambda: io.BufferedReader(_Zstandard(raw), 1 << 20),
        "bzip2": partial(bz2.BZ2File, raw),
        "xz": partial(lzma.LZMAFile, raw),
    }
    try:
        yield cast(BinaryIO, openers[compression]())
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # What the system says of a file, this one or one that is written from it: not of its content.
        raise IntegrityFault(f"{name}: is not a whole {compression} file ({error}). Copy it again.") from error


class _Zstandard(io.RawIOBase):
    """Frames of a Zstandard file, one behind the other, as one stream.

    The library's own stream reader stops at the first frame unless told otherwise, and ends a file that is
    cut short as if it were whole; here its end must be the end of a frame.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = self._new_frame()
        self._begun = False
        self._ahead = b""
        self._ready = memoryview(b"")

    @staticmethod
    def _new_frame() -> "zstandard.ZstdDecompressionObj":
        return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()

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
                self._frame = self._new_frame()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
