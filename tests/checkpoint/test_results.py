"""What a writing process leaves outlasts it, a signal to stop, and costs no second torch."""

import os
import queue
import signal
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_cpt.checkpoint.results import Results

LEFT = {0: [MetadataIndex("weight", torch.Size((0, 2)))]}


def test_a_result_outlasts_the_process_that_left_it_and_signals_to_all_processes() -> None:
    before = set(psutil.Process().children())
    results = Results()
    child = os.fork()
    if child == 0:
        results.put(LEFT)
        os._exit(0)
    os.waitpid(child, 0)
    helpers = set(psutil.Process().children()) - before
    for helper in helpers:
        helper.send_signal(signal.SIGTERM)
        helper.send_signal(signal.SIGUSR1)
    assert results.get_nowait() == LEFT
    with pytest.raises(queue.Empty):
        results.get_nowait()
    assert helpers
    assert not any("libtorch" in Path(f"/proc/{helper.pid}/maps").read_text() for helper in helpers)
