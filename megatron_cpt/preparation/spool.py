"""The token ids of a piece while it is tokenized: in memory while they are few, in a scratch file once they are many.

So a worker's memory does not grow with its piece, nor the memory of all with the number of workers.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megatron_cpt.runs.durable import named_errors

MEMORY_BYTES = 4 << 20
"""Of token ids that are held in memory, and of those that are put in order at a time."""


class TokenSpool:
    """Ids of documents in the order read, to be had in another.

    The scratch file is in `folder`, without a name, so that it goes with the block or the process.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self._folder = folder
        self._dtype = dtype
        self._held: list[npt.NDArray[Any]] = []
        self._held_bytes = 0
        self._file_bytes = 0
        self._file: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)

    @property
    def count(self) -> int:
        """Ids in all."""
        return (self._file_bytes + self._held_bytes) // self._dtype.itemsize

    def add(self, tokens: npt.NDArray[Any]) -> None:
        """Appends ids that fit the dtype (the caller's check)."""
        self._held.append(tokens.astype(self._dtype))
        self._held_bytes += self._held[-1].nbytes
        if self._held_bytes > MEMORY_BYTES:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file, path = mkstemp(dir=self._folder)
            os.unlink(path)
        content = self._held_content()
        with named_errors(self._folder):
            while content:
                content = content[os.write(self._file, content) :]
        self._file_bytes += self._held_bytes
        self._held, self._held_bytes = [], 0

    def _held_content(self) -> memoryview:
        return np.concatenate([np.empty(0, self._dtype), *self._held]).view(np.uint8).data

    def in_order(self, lengths: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The ids of all documents, some at a time, in another order: the old number of each.

        `lengths`, int64[documents], are the ids of each in the order read.
        """
        if self._file is not None:
            self._spill()
        held = self._held_content()
        ends = np.cumsum(lengths) * self._dtype.itemsize
        starts = ends - lengths * self._dtype.itemsize
        stretch: list[bytes | memoryview] = []
        size = 0
        for start, end in zip(starts[order].tolist(), ends[order].tolist(), strict=True):
            stretch.append(held[start:end] if self._file is None else _read(self._file, start, end))
            size += end - start
            if size > MEMORY_BYTES:
                yield b"".join(stretch)
                stretch, size = [], 0
        yield b"".join(stretch)


def _read(file: int, start: int, end: int) -> bytes:
    """Bytes of a file; one call may give fewer than asked."""
    content = os.pread(file, end - start, start)
    while len(content) < end - start:
        more = os.pread(file, end - start - len(content), start + len(content))
        assert more, "the scratch file is as long as what was written"
        content += more
    return content
