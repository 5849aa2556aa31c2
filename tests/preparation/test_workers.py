import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from megatron_cpt.config.errors import BadInput, Fault, WorkerDied
from megatron_cpt.preparation.workers import TASKS_AHEAD, Workers


def square(worker: int, number: int) -> int:
    return number * number


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("tasks", [0, 1, 50])
def test_every_task_is_done_once(workers: int, tasks: int) -> None:
    with Workers(workers, square) as pool:
        assert sorted(pool.map(range(tasks))) == [(number, number * number) for number in range(tasks)]


def test_only_a_few_tasks_are_taken_ahead() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    with Workers(2, square) as pool:
        for done, _ in enumerate(pool.map(tasks()), start=1):
            assert taken <= done + 2 * TASKS_AHEAD


def refuse(worker: int, number: int) -> int:
    raise BadInput(Fault("a", "is b.", "Use c."), Fault("d", "is e.", "Use f."))


def test_an_error_of_a_worker_is_raised_as_it_is() -> None:
    with pytest.raises(BadInput) as caught, Workers(2, refuse) as pool:
        list(pool.map(range(5)))
    assert [fault.value for fault in caught.value.faults] == ["a", "d"]


def die(worker: int, number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number


def test_a_killed_worker_ends_everything_at_once() -> None:
    before = set(psutil.Process().children())
    start = time.monotonic()
    with pytest.raises(WorkerDied, match="was killed by signal 9 while it had 3"), Workers(3, die) as pool:
        list(pool.map(range(100)))
    assert time.monotonic() - start < 10
    assert set(psutil.Process().children()) == before
