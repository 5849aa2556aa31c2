"""A pool of live process groups, for tests that need ranks.

A bare torchrun start costs 5 to 9 seconds; these processes start once a session. Where there is no GPU they are
forked from one process that has imported everything; CUDA outlives no fork, so that with GPUs each imports for itself.
A job is a function of a test module, called on every rank with the same arguments; it finds a fresh world and
divides it as it needs. When a job fails or hangs, its processes are ended, and the next job finds new ones.
"""

import gc
import itertools
import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_cpt.parallel import groups

CONTEXT: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
CONTEXT.set_forkserver_preload(["tests.train.runs"])


def serve(rank: int, size: int, pipe: Connection, results: Any) -> None:
    """One rank: calls what it is told to, each time in a world of its own.

    Rank 0 tells the port that the system gave to its store; the others are told it.

    Args:
        results: the queue of Megatron-Core's checkpoint writer, which would start a process that imports everything
            for it.
    """
    torch.set_num_threads(1)
    filesystem_async._results_queue = results
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
        pipe.send(store.port)
    else:
        store = dist.TCPStore("127.0.0.1", pipe.recv(), size)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "OMP_NUM_THREADS": "1",
    }
    gc.freeze()  # what the libraries hold is not to be looked through after every job
    for number in itertools.count():
        try:
            job, arguments = pipe.recv()
        except EOFError:
            return
        backend = "nccl" if groups.device().type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore(f"job {number}", store), rank=rank, world_size=size)
        try:
            answer = (True, job(**arguments))
        except Exception as error:
            answer = (False, f"rank {rank}: {''.join(traceback.format_exception(error))}")
        # A layout makes some twenty groups, each with threads: without this they would add up over a session.
        groups.leave_world()
        gc.collect()
        pipe.send(answer)


class Ranks:
    """Live processes that form one world."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._manager: Any = None
        self._results: list[Any] = []

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

    def threads(self) -> list[int]:
        """Threads of each process."""
        return [psutil.Process(process.pid).num_threads() for process in self._processes]

    def _start(self) -> None:
        if self._processes and all(process.is_alive() for process in self._processes):
            return
        self.stop()
        self._manager = CONTEXT.Manager()
        self._results = [self._manager.Queue() for _ in range(self.size)]
        for rank in range(self.size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=serve, args=(rank, self.size, theirs, self._results[rank]))
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        port = self._pipes[0].recv()
        for pipe in self._pipes[1:]:
            pipe.send(port)

    def stop(self) -> None:
        """Ends the processes: those that listen end well, and with them what they started; the others are killed."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            process.kill()
            process.join()
        self._processes, self._pipes, self._results = [], [], []
        if self._manager is not None:
            self._manager.shutdown()
            self._manager = None
