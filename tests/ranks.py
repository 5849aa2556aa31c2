"""A pool of live process groups, for tests that need ranks.

A bare torchrun start costs 5 to 9 seconds; these processes start once a session, import everything once
and join one gloo world. A job is a function of a test module, called on every rank with the same
arguments; it divides the world as it needs. When a job fails or hangs, its processes are ended, and the
next job finds new ones.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any


def serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    """One rank: joins the world, then calls what it is told to."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    # The environment must stand before torch is imported.
    from megatron_cpt.parallel import groups  # noqa: PLC0415

    groups.join_world()
    while True:
        try:
            job, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, job(**arguments)))
        except Exception as error:
            pipe.send((False, f"rank {rank}: {''.join(traceback.format_exception(error))}"))


class Ranks:
    """Live processes that form one world."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def call(self, job: Callable[..., Any], /, timeout: float = 240, **arguments: Any) -> list[Any]:
        """What the job returns on each rank. A failure on any rank fails the test, with its traceback."""
        self._start()
        for pipe in self._pipes:
            pipe.send((job, arguments))
        waiting = dict(zip(self._pipes, range(self.size), strict=True))
        results: list[Any] = [None] * self.size
        while waiting:
            ready = wait(list(waiting), timeout)
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    fine, results[rank] = pipe.recv()
                except EOFError:
                    fine, results[rank] = False, f"rank {rank} died"
                if not fine:
                    self.stop()
                    raise AssertionError(results[rank])
            if not ready:
                self.stop()
                raise AssertionError(f"no answer from ranks {sorted(waiting.values())} within {timeout} s")
        return results

    def _start(self) -> None:
        if self._processes and all(process.is_alive() for process in self._processes):
            return
        self.stop()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        spawn = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(rank, self.size, port, theirs))
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def stop(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []
