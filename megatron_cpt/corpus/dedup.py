"""Which documents are exact copies of an earlier one, with memory for one part of the hashes.

1. Of each document its content hash, number and place go to the part on disk that the hash's top bits name.
2. Part by part, sorted by hash and number: all of a hash but the first are copies.
3. Copies are marked in one bit a document (a thousand million documents: 125 MB) and listed with their first.

Two texts are taken for copies where their 64-bit hashes agree: among a thousand million documents the
chance that any two different ones do is 3 %.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ENTRY = np.dtype([("content_hash", "<u8"), ("number", "<i8"), ("file", "<i4"), ("line", "<i8")])
"""Of each document: hash of its text, its number from 0 in the order read, where it stood."""
PARTS = 64
"""Files of entries: a thousand million documents are sorted 16 million (440 MB) at a time."""
_SHIFT = np.uint64(64 - (PARTS - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Copy:
    """A document that repeats an earlier one."""

    content_hash: int
    """Of both."""
    file: int
    """Number of its file among the inputs."""
    line: int
    """Its line, from 1."""
    first_file: int
    """File of the document it repeats."""
    first_line: int
    """Line of that document."""


class Copies:
    """Collects documents in the order read, then tells the copies among them.

    `add` all, read `find` to its end, then ask `among`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.documents = 0
        self._parts = [(folder / f"{number:02d}").open("w+b") for number in range(PARTS)]
        self._marks = np.zeros(0, np.uint8)

    def add(self, entries: npt.NDArray[np.void]) -> None:
        """Takes ENTRY[n], numbered from the documents added before."""
        parts = entries["content_hash"] >> _SHIFT
        for part in np.unique(parts):
            self._parts[int(part)].write(entries[parts == part].tobytes())
        self.documents += len(entries)

    def find(self) -> Iterator[Copy]:
        """Every copy, in the order of content hashes and, within one, of reading."""
        self._marks = np.zeros(self.documents // 8 + 1, np.uint8)
        for part in self._parts:
            part.seek(0)
            entries = np.frombuffer(part.read(), ENTRY)
            entries = entries[np.lexsort((entries["number"], entries["content_hash"]))]
            hashes = entries["content_hash"]
            repeats = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
            numbers = entries["number"][repeats]
            np.bitwise_or.at(self._marks, numbers >> 3, np.uint8(1) << (numbers & 7).astype(np.uint8))
            firsts = np.searchsorted(hashes, hashes[repeats])
            for copy, first in zip(entries[repeats], entries[firsts], strict=True):
                yield Copy(int(copy[0]), int(copy[2]), int(copy[3]), int(first[2]), int(first[3]))

    def among(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Whether the documents of such numbers, int64[n], are copies: bool[n]."""
        return (self._marks[numbers >> 3] >> (numbers & 7).astype(np.uint8) & 1).astype(np.bool_)

    def close(self) -> None:
        """Closes the files."""
        for part in self._parts:
            part.close()
