"""Processes that work on one task at a time and whose death is noticed at once.

The standard pool of processes waits for ever when one of them is killed; its executor needs what the workers
share as globals. Here the workers are forked, so that tokenizer and settings are theirs without being sent.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Generic, Self, TypeVar

from megatron_cpt.config.errors import WorkerDied
from megatron_cpt.runs.lifeline import die_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")
TASKS_AHEAD = 2
"""Of each worker: one in work, one waiting. Bounds what is unpacked ahead."""


@dataclass
class _Worker(Generic[Task]):
    process: BaseProcess
    connection: Connection
    tasks: deque[Task] = field(default_factory=deque)


class Workers(Generic[Task, Result]):
    """So many processes that each do `work(number of the worker, task)`; they end with the block."""

    def __init__(self, count: int, work: Callable[[int, Task], Result]) -> None:
        self._count = count
        self._work = work
        self._workers: list[_Worker[Task]] = []

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("fork")
        for number in range(self._count):
            ours, theirs = context.Pipe()
            others = [ours, *(worker.connection for worker in self._workers)]
            process = context.Process(target=_serve, args=(number, self._work, theirs, others), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.connection.close()
            if error is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, in the order in which they are done; a few tasks are taken ahead.

        What `work` raises is raised here. Raises WorkerDied where a worker ended without an answer.
        """
        coming = iter(tasks)
        while True:
            self._feed(coming)
            busy = [worker for worker in self._workers if worker.tasks]
            if not busy:
                return
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection in ready:
                    yield worker.tasks[0], self._answer(worker)

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
            done, answer = worker.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death(worker) from error
        if not done:
            raise answer
        worker.tasks.popleft()
        result: Result = answer
        return result

    def _death(self, worker: _Worker[Task]) -> WorkerDied:
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return WorkerDied(
            f"worker {worker.process.pid} {how} while it had {worker.tasks[0]}. What other workers finished is kept: "
            "the same command goes on from there. Signal 9 is often the system short of memory: use fewer --workers."
        )


def _serve(number: int, work: Callable[[int, Task], Result], connection: Connection, others: list[Connection]) -> None:
    """A worker's life: tasks in, results out, until the other end is closed."""
    die_with_parent()
    # Forked with them open, this process would keep the other workers' ends from closing.
    for other in others:
        other.close()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        answer: tuple[bool, Result | Exception]
        try:
            answer = (True, work(number, task))
        except Exception as error:
            answer = (False, error)
        connection.send(answer)
