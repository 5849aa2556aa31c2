"""A pool of live process groups, for tests that need ranks.

A bare torchrun start costs 5 to 9 seconds; these processes start once a session, forked from one that has imported
everything, and themselves fork one for each job. With GPUs there is no fork, which CUDA does not outlive: each process
imports for itself and does all its jobs. A job is a function of a test module, called on every rank with the same
arguments; it finds a fresh world and divides it as it needs. When a job fails or hangs, its processes are ended, and
the next job finds new ones.
"""

import gc
import itertools
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_cpt.parallel import groups
from megatron_cpt.runs.processes import die_with_parent

# Seconds that the other ranks have to say why a job failed, once one has said so.
GRACE = 5
GPUS = torch.cuda.is_available()
CONTEXT: Any = multiprocessing.get_context("spawn" if GPUS else "forkserver")
CONTEXT.set_forkserver_preload(["tests.train.runs", "transformers.models.llama.modeling_llama"])


def serve(rank: int, size: int, port: int, pipe: Connection, results: Any) -> None:
    """One rank: does what it is told to, each time in a process of its own.

    What a job leaves behind ends with its process: Megatron-Core's hooks on gradients hold a run's groups for ever, and
    each of these has threads that wake a hundred times a second.

    Args:
        port: of the store in which the ranks meet.
        results: the queue of Megatron-Core's checkpoint writer, which would start a process that imports everything
            for it.
    """
    torch.set_num_threads(1)
    filesystem_async._results_queue = results
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    for number in itertools.count():
        try:
            job, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        if GPUS:
            do(f"job {number}", job, arguments, pipe)
            groups.destroy()
            gc.collect()
            continue
        child = os.fork()
        if child == 0:
            die_with_parent()
            # torch renews its pool of threads at the first use after a fork; two threads at once find it half made
            # ("Invalid thread pool!"), and transformers loads with four.
            torch.set_num_threads(1)
            do(f"job {number}", job, arguments, pipe)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            return


def do(name: str, job: Callable[..., Any], arguments: dict[str, Any], pipe: Connection) -> None:
    """Calls a job in a world of its own, and sends what it returns, or its traceback.

    Pickled here: multiprocessing would send tensors as handles, which end with this process.
    """
    join(name)
    try:
        answer = pickle.dumps((True, job(**arguments)))
    except Exception as error:
        answer = pickle.dumps((False, f"rank {os.environ['RANK']}: {''.join(traceback.format_exception(error))}"))
    pipe.send_bytes(answer)


def join(name: str, timeout: timedelta = groups.TIMEOUT) -> None:
    """Joins the world of a job, or of a part of one after it has left another."""
    store = dist.TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
    groups.init_process_group(timeout, dist.PrefixStore(name, store))


class Ranks:
    """Live processes that form one world."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._store: Any = None
        self._manager: Any = None
        self._results: list[Any] = []

    def call(self, job: Callable[..., Any], /, timeout: float = 240, **arguments: Any) -> list[Any]:
        """What the job returns on each rank. A failure on any rank fails the test, with every traceback there is.

        The rank that answers first may only have heard of another's failure: the others have GRACE to say theirs.
        """
        self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((job, arguments)))
        waiting = dict(zip(self._pipes, range(self.size), strict=True))
        results: list[Any] = [None] * self.size
        failures: list[str] = []
        while waiting:
            patience = GRACE if failures else timeout
            ready = wait(list(waiting), patience)
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    fine, results[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    fine, results[rank] = False, f"rank {rank} died"
                if not fine:
                    failures.append(results[rank])
            if not ready:
                failures.append(f"no answer from ranks {sorted(waiting.values())} within {patience} s")
                break
        if failures:
            self.stop()
            raise AssertionError("\n".join(failures))
        return results

    def _start(self) -> None:
        if self._processes and all(process.is_alive() for process in self._processes):
            return
        self.stop()
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._manager = CONTEXT.Manager()
        self._results = [self._manager.Queue() for _ in range(self.size)]
        for rank in range(self.size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(
                target=serve, args=(rank, self.size, self._store.port, theirs, self._results[rank])
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

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
            self._manager = self._store = None
