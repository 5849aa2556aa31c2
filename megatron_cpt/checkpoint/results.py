"""Where the processes that write a checkpoint leave what they have to tell the rank that forked them.

Megatron-Core starts a process for it that outlives a killed rank, and that a scheduler's signal to all processes of a
job ends, and with it the save that the signal asked for. This one does neither.
"""

import multiprocessing
from multiprocessing.managers import SyncManager

from megatron.core.dist_checkpointing.strategies import filesystem_async

from megatron_cpt.runs.lifeline import serve_parent, stop_signals_held


def keep_results() -> None:
    """Has Megatron-Core's writers leave their results here, from the first save of this process on."""
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        with stop_signals_held():
            manager.start(initializer=serve_parent)
        filesystem_async._results_queue = manager.Queue()  # holds the manager, too
