"""Which documents are left out, and why: a byte each, in a file that the system may hold in memory or not."""

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megatron_cpt.preparation.sorted_run import SortedRun


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
        self._marks = np.memmap(self._path, np.uint8, mode="w+", shape=(max(1, int(self._first[-1])),))
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
