"""Which documents are left out, and why: a byte each, in a file that the system may hold in memory or not."""

import os
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megatron_cpt.preparation.sorted_run import SortedRun
from megatron_cpt.runs.durable import named_errors


class Reason(IntEnum):
    """Why a document is left out."""

    NONE = 0
    """It stays."""
    COPY = 1
    """An exact copy of another."""
    CONTAMINATED = 2
    """It overlaps an evaluation item."""
    NEAR_DUPLICATE = 3
    """Nearly another, which stays."""


class Marks:
    """A mark for each document of some runs; the file goes with the block."""

    def __init__(self, path: Path, runs: Sequence[SortedRun]) -> None:
        self._path = path
        self._first = np.cumsum([0, *(run.documents for run in runs)])

    def __enter__(self) -> Self:
        count = max(1, int(self._first[-1]))
        with named_errors(self._path), self._path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, count)  # A full disk is an error here, and a signal at a mark.
        self._marks = np.memmap(self._path, np.uint8, mode="r+", shape=(count,))
        return self

    def __exit__(self, *error: object) -> None:
        del self._marks
        self._path.unlink()

    def mark(self, run: int, position: int, reason: Reason) -> None:
        """Leaves a document of a run out."""
        self._marks[self._first[run] + position] = reason

    def reason(self, run: int, position: int) -> Reason:
        """Why a document is left out, or NONE."""
        return Reason(self._marks[self._first[run] + position])

    def left_out(self, run: int, first: int, end: int) -> npt.NDArray[np.bool_]:
        """Whether the documents of a stretch of a run are left out: bool[end - first]."""
        start = self._first[run]
        return np.array(self._marks[start + first : start + end], np.bool_)

    def left_out_at(self, run: int, positions: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Whether some documents of a run are left out: bool[positions]."""
        return np.array(self._marks[self._first[run] + positions.astype(np.int64)], np.bool_)
