"""How far the workers are: a bar with documents, text and tokens a second, and the time left."""

import mmap
from threading import Event, Thread
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

SECONDS = 0.5
"""Between two looks."""


class Progress:
    """Counters in memory that forked workers share, and the bar that shows their sums.

    `size` is the bytes of text in the input, about; 0 if nothing is known of it.
    """

    def __init__(self, name: str, workers: int, size: int, shown: bool) -> None:
        self._name, self._size, self._shown = name, size, shown
        self._memory = mmap.mmap(-1, workers * 3 * 8)
        self._counts = np.frombuffer(self._memory, np.int64).reshape(workers, 3)
        self._skipped = 0
        self._ended = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def counters(self, worker: int) -> npt.NDArray[np.int64]:
        """A worker's own: documents, bytes of text, tokens."""
        row: npt.NDArray[np.int64] = self._counts[worker]
        return row

    def skip(self, size: int) -> None:
        """Bytes of text that need not be done again."""
        self._skipped += size

    def __enter__(self) -> Self:
        return self

    def show(self) -> None:
        """Begins to look. To be called once the workers are there: a thread does not survive a fork."""
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        total = self._size or None
        with tqdm(total=total, unit="B", unit_scale=True, disable=not self._shown, desc=self._name) as bar:
            while not self._ended.wait(SECONDS):
                self._advance(bar)
            self._advance(bar)

    def _advance(self, bar: tqdm) -> None:
        documents, text, tokens = self._counts.sum(0).tolist()
        elapsed = bar.format_dict["elapsed"]
        if elapsed:
            rates = f"{documents / elapsed:,.0f} documents/s, {tokens / elapsed:,.0f} tokens/s"
            bar.set_postfix_str(f"{documents:,} documents, {rates}", refresh=False)
        bar.initial = self._skipped
        bar.update(text + self._skipped - bar.n)
