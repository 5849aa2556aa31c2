import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from megatron_cpt.config.errors import BadInput, Fault, WorkerDied
from megatron_cpt.preparation import pool as workers
from megatron_cpt.preparation.pool import TASKS_AHEAD, Workers
from megatron_cpt.runs.folder import renamed_file

ENOUGH = 1 << 40
"""Memory that no worker reaches."""


def look() -> None:
    """Nobody watches."""


def square(worker: int, number: int) -> int:
    return number * number


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("tasks", [0, 1, 50])
def test_every_task_is_done_once(count: int, tasks: int) -> None:
    with Workers(count, square, ENOUGH) as pool:
        assert sorted(pool.map(range(tasks), look)) == [(number, number * number) for number in range(tasks)]


def test_only_a_few_tasks_are_taken_ahead() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    with Workers(2, square, ENOUGH) as pool:
        for done, _ in enumerate(pool.map(tasks(), look), start=1):
            assert taken <= done + 2 * TASKS_AHEAD


def refuse(worker: int, number: int) -> int:
    raise BadInput(Fault("a", "is b.", "Use c."), Fault("d", "is e.", "Use f."))


def test_an_error_of_a_worker_is_raised_as_it_is() -> None:
    with pytest.raises(BadInput) as caught, Workers(2, refuse, ENOUGH) as pool:
        list(pool.map(range(5), look))
    assert [fault.value for fault in caught.value.faults] == ["a", "d"]


def die(worker: int, number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number


def test_a_killed_worker_ends_everything_at_once() -> None:
    before = set(psutil.Process().children())
    start = time.monotonic()
    with pytest.raises(WorkerDied, match="was killed by signal 9 while it had 3"), Workers(3, die, ENOUGH) as pool:
        list(pool.map(range(100), look))
    assert time.monotonic() - start < 10
    assert set(psutil.Process().children()) == before


def write_or_refuse(folder: Path, worker: int, number: int) -> None:
    """The first task is refused while the second one is being written."""
    if number == 0:
        while not list(folder.iterdir()):
            time.sleep(0.01)
        raise BadInput(Fault("a", "is b.", "Use c."))
    with renamed_file(folder / "result"):
        time.sleep(60)


def test_an_error_leaves_nothing_of_what_other_workers_were_writing(tmp_path: Path) -> None:
    with pytest.raises(BadInput), Workers(2, partial(write_or_refuse, tmp_path), ENOUGH) as pool:
        list(pool.map(range(2), look))
    assert not list(tmp_path.iterdir())


KEPT: list[bytearray] = []
"""What a worker never gives back."""


def keep(worker: int, number: int) -> tuple[int, int, int]:
    KEPT.append(bytearray(b"x" * (20 << 20)))
    return os.getpid(), len(KEPT), number


def test_a_worker_that_has_grown_is_replaced_and_no_task_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MEMORY_SECONDS", 0)
    looks = []
    with Workers(2, keep, 50 << 20) as pool:
        results = [result for _, result in pool.map(range(24), lambda: looks.append(True))]
    assert sorted(number for _, _, number in results) == list(range(24))
    assert max(kept for _, kept, _ in results) <= 3  # 60 MB
    assert len({process for process, _, _ in results}) >= 8
    assert looks
