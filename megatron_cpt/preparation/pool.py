"""Worker processes that take one task at a time and whose death is noticed at once; and their progress bar.

multiprocessing's pool waits for ever when a worker is killed, and its executor needs shared state as globals. These
workers are forked, so that tokenizer and settings are theirs without being sent. A worker that has grown is replaced:
libraries keep what they have seen (gigatoken keeps every different word, 90 bytes each).
"""

import mmap
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
from tqdm import tqdm

from megatron_cpt.config.errors import WorkerDied
from megatron_cpt.runs.processes import die_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")
TASKS_AHEAD = 2
"""Of each worker: one in work, one waiting. Bounds what is unpacked ahead."""
_LOOK_SECONDS = 0.5
"""Between two looks of the caller at how far the workers are."""
_CLEARING_SECONDS = 5.0
"""That workers have after an error to remove the files that they were writing; then they are killed."""
PATIENCE_SECONDS = 600.0
"""A worker that has a task and uses no processor for so long is given up: stopped, or waiting for a dead disk."""
MEMORY_SECONDS = 0.1
"""Between two looks of a worker at its memory, each of which takes a millisecond."""


_KEPT = "What other workers finished is kept: the same command goes on from there."


@dataclass
class _Worker(Generic[Task]):
    number: int
    process: BaseProcess
    connection: Connection
    tasks: deque[Task] = field(default_factory=deque)
    worked: float = 0.0
    """Seconds of a processor that it had used when that was last looked at."""
    moved: float = field(default_factory=time.monotonic)
    """When it was last seen to have used more, or answered."""


class Workers(Generic[Task, Result]):
    """So many processes that each do `work(number of the worker, task)`; they end with the block.

    One that has more than `most_bytes` of memory to itself is replaced by a fresh one between two tasks. One that has a
    task and does nothing for `patience` seconds is an error. No thread may run where they are used: it would not
    survive the fork.
    """

    def __init__(
        self, count: int, work: Callable[[int, Task], Result], most_bytes: int, patience: float = PATIENCE_SECONDS
    ) -> None:
        self._count = count
        self._work = work
        self._most_bytes = most_bytes
        self._patience = patience
        self._watched = time.monotonic()
        self._workers: list[_Worker[Task]] = []

    def __enter__(self) -> Self:
        for number in range(self._count):
            self._workers.append(_Worker(number, *self._started(number)))
        return self

    def _started(self, number: int) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        others = [ours, *(worker.connection for worker in self._workers if not worker.connection.closed)]
        process = context.Process(
            target=_serve, args=(number, self._work, self._most_bytes, theirs, others), daemon=True
        )
        process.start()
        theirs.close()
        return process, ours

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.connection.close()
            if error is not None:
                worker.process.terminate()
        deadline = time.monotonic() + (self._patience if error is None else _CLEARING_SECONDS)
        for worker in self._workers:
            self._joined(worker, deadline)

    def _joined(self, worker: _Worker[Task], deadline: float) -> None:
        """Waits for the end of a process that has nothing left to do, and kills one that does not come to it."""
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()

    def map(self, tasks: Iterable[Task], look: Callable[[], None]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, in the order in which they are done; a few tasks are taken ahead.

        `look` is called now and then. What `work` raises is raised here. Raises WorkerDied where a worker ended without
        an answer, or stands still.
        """
        coming = iter(tasks)
        while True:
            self._feed(coming)
            busy = [worker for worker in self._workers if worker.tasks]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], _LOOK_SECONDS)
            look()
            for worker in busy:
                if worker.connection in ready:
                    yield worker.tasks[0], self._answer(worker)
            self._watch()

    def _watch(self) -> None:
        """Raises WorkerDied where a worker that has a task has stood still for too long."""
        now = time.monotonic()
        if now - self._watched < self._patience / 8:
            return
        self._watched = now
        for worker in self._workers:
            try:
                process = psutil.Process(worker.process.pid)
                times, state = process.cpu_times(), process.status()
            except psutil.NoSuchProcess:
                continue  # its connection tells
            if not worker.tasks or times.user + times.system > worker.worked:
                worker.worked, worker.moved = times.user + times.system, now
            elif now - worker.moved > self._patience:
                raise WorkerDied(
                    f"worker {worker.process.pid} has done nothing for {now - worker.moved:.0f} s ({state}) while it "
                    f"had {worker.tasks[0]}. {_KEPT} Where a disk needs longer, raise --worker-timeout."
                )

    def _feed(self, coming: Iterator[Task]) -> None:
        """Gives the workers that have the least to do their next tasks."""
        for waiting in range(TASKS_AHEAD):
            for worker in self._workers:
                if len(worker.tasks) == waiting:
                    for task in coming:
                        worker.tasks.append(task)
                        self._send(worker, task)
                        break

    def _send(self, worker: _Worker[Task], task: Task) -> None:
        try:
            worker.connection.send(task)
        except OSError as error:
            raise self._death(worker) from error

    def _answer(self, worker: _Worker[Task]) -> Result:
        try:
            done, answer, is_full = worker.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death(worker) from error
        if not done:
            raise answer
        worker.tasks.popleft()
        worker.moved = time.monotonic()
        if is_full:
            self._replace(worker)
        result: Result = answer
        return result

    def _replace(self, worker: _Worker[Task]) -> None:
        """Puts a fresh process in the place of one that waits for its end; it gets the tasks that are not done."""
        worker.connection.close()
        self._joined(worker, time.monotonic() + self._patience)
        worker.process, worker.connection = self._started(worker.number)
        worker.worked, worker.moved = 0.0, time.monotonic()
        for task in worker.tasks:
            self._send(worker, task)

    def _death(self, worker: _Worker[Task]) -> WorkerDied:
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return WorkerDied(
            f"worker {worker.process.pid} {how} while it had {worker.tasks[0]}. {_KEPT} Signal 9 is often the system "
            "short of memory: use fewer --workers."
        )


def _serve(
    number: int,
    work: Callable[[int, Task], Result],
    most_bytes: int,
    connection: Connection,
    others: list[Connection],
) -> None:
    """A worker's life: tasks in, results out, until the other end is closed."""
    # Ctrl-C reaches every process of the terminal: the one that started this one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    die_with_parent()
    # Forked with them open, this process would keep the other workers' ends from closing.
    for other in others:
        other.close()
    looked = time.monotonic()
    is_full = False
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        if is_full:  # the one that comes next is sent this task again
            continue
        answer: Result | Exception
        try:
            done, answer = True, work(number, task)
        except Exception as error:
            done, answer = False, error
        if time.monotonic() - looked >= MEMORY_SECONDS:
            looked = time.monotonic()
            is_full = psutil.Process().memory_full_info().uss > most_bytes
        connection.send((done, answer, is_full))


def _end(number: int, frame: FrameType | None) -> None:
    """Ends a worker in such a way that the files it was writing are removed."""
    sys.exit(128 + number)


_SECONDS = 0.5
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
        if time.monotonic() - self._looked >= _SECONDS:
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
