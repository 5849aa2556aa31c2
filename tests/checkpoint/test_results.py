"""What a writing process leaves outlasts it, and a signal to stop."""

import os
import queue
import signal

import psutil
import pytest
import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_cpt.checkpoint.save import keep_results

LEFT = {0: [MetadataIndex("weight", torch.Size((0, 2)))]}


def test_a_result_outlasts_the_process_that_left_it_and_signals_to_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filesystem_async, "_results_queue", None)
    before = set(psutil.Process().children())
    keep_results()
    results = filesystem_async._results_queue
    child = os.fork()
    if child == 0:
        results.put(LEFT)
        os._exit(0)
    os.waitpid(child, 0)
    helpers = set(psutil.Process().children()) - before
    assert helpers
    for helper in helpers:
        helper.send_signal(signal.SIGTERM)
        helper.send_signal(signal.SIGUSR1)
    assert results.get_nowait() == LEFT
    with pytest.raises(queue.Empty):
        results.get_nowait()
