"""Where the processes that write a checkpoint leave what they have to tell the rank that forked them.

Megatron-Core starts a process for it that outlives a killed rank, that a scheduler's signal to all processes of a job
ends, and with it the save that the signal asked for, and that imports torch to understand what it only keeps. This one
does none of that.
"""

import multiprocessing
import pickle
from multiprocessing.managers import SyncManager
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_cpt.runs.lifeline import serve_parent, stop_signals_held


class Results:
    """A queue that survives the process that puts something into it."""

    def __init__(self) -> None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        with stop_signals_held():
            manager.start(initializer=serve_parent)
        self._queue = manager.Queue()  # holds the manager, too

    def put(self, value: Any) -> None:
        """Leaves a value: bytes, for the process that keeps it."""
        self._queue.put(pickle.dumps(value))

    def get_nowait(self) -> Any:
        """The value left first. Raises queue.Empty where there is none."""
        return pickle.loads(self._queue.get_nowait())  # from a process that this one forked


def keep_results() -> None:
    """Has Megatron-Core's writers leave their results here, from the first save of this process on."""
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = Results()
