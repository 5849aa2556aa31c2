"""How far the workers are: a bar with documents, text and tokens a second, and the time left."""

import mmap
import time
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

SECONDS = 0.5
"""Between two states of the bar."""


class _Bar(tqdm):
    """A bar without the thread that watches over bars: workers are forked beside it."""

    monitor_interval = 0


class Progress:
    """Counters in memory that forked workers share, and the bar that shows their sums.

    `size` is the bytes of text in the input, about; 0 if nothing is known of it.
    """

    def __init__(self, name: str, workers: int, size: int, shown: bool) -> None:
        self._memory = mmap.mmap(-1, workers * 3 * 8)
        self._counts = np.frombuffer(self._memory, np.int64).reshape(workers, 3)
        self._skipped = 0
        self._looked = time.monotonic()
        self._bar = _Bar(total=size or None, unit="B", unit_scale=True, disable=not shown, desc=name)

    def counters(self, worker: int) -> npt.NDArray[np.int64]:
        """A worker's own: documents, bytes of text, tokens."""
        row: npt.NDArray[np.int64] = self._counts[worker]
        return row

    def skip(self, size: int) -> None:
        """Bytes of text that need not be done again."""
        self._skipped += size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._advance()
        self._bar.close()

    def look(self) -> None:
        """Shows how far they are, if that was last shown a while ago."""
        if time.monotonic() - self._looked >= SECONDS:
            self._looked = time.monotonic()
            self._advance()

    def _advance(self) -> None:
        documents, text, tokens = self._counts.sum(0).tolist()
        elapsed = self._bar.format_dict["elapsed"]
        if elapsed:
            rates = f"{documents / elapsed:,.0f} documents/s, {tokens / elapsed:,.0f} tokens/s"
            self._bar.set_postfix_str(f"{documents:,} documents, {rates}", refresh=False)
        self._bar.initial = self._skipped
        self._bar.update(text + self._skipped - self._bar.n)
