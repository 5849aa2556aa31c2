"""Micro batches that a thread reads ahead, and what a GPU's run is told before torch is imported."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.data.loader import BatchReader, Slots, TrainingData
from megatron_cpt.runs.processes import flight_recorder_settings, gpu_settings, gpu_settings_line
from tests.corpus.datasets import write_dataset

CPU = torch.device("cpu")


class InOrder:
    """An order of one source, sequence after sequence."""

    def locate(self, indices: np.ndarray) -> Any:
        return SimpleNamespace(source=np.zeros(len(indices), np.int32), sequence=indices)


@pytest.fixture
def data(tmp_path: Path) -> TrainingData:
    stream = TokenStream([write_dataset(tmp_path / "data", [10_000])])
    return TrainingData(InOrder(), [stream], Slots(8, 2, 0, 1), 16, seed=1)  # type: ignore[arg-type]


def test_batches_are_those_that_are_read_when_asked_for(data: TrainingData) -> None:
    """A pipeline does not ask beyond the last micro batch of a step."""
    firsts = range(0, 48, 8)
    with BatchReader(data, CPU, firsts) as reader:
        for first in firsts:
            expected = list(data.global_batch(first, CPU))
            read = reader.global_batch(first)
            found = [next(read) for _ in expected]
            assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(found, expected, strict=True))
            assert first != 40 or next(read, None) is None
    assert not reader._thread.is_alive()


def test_an_error_of_reading_is_raised_where_the_batch_is_asked_for(data: TrainingData) -> None:
    class Torn(TrainingData):
        def global_batch(self, first_index: int, device: torch.device) -> Iterator[Any]:
            batches = super().global_batch(first_index, device)
            yield next(batches)
            if first_index == 8:
                raise OSError("the disk is gone")
            yield from batches

    torn = Torn(**vars(data))
    with BatchReader(torn, CPU, range(0, 48, 8)) as reader:
        first = reader.global_batch(0)
        assert len([next(first) for _ in range(4)]) == 4
        second = reader.global_batch(8)
        next(second)
        with pytest.raises(OSError, match="the disk is gone"):
            next(second)


def test_a_reader_that_nobody_asks_ends(data: TrainingData) -> None:
    with BatchReader(data, CPU, range(0, 4800, 8)) as reader:
        pass
    assert not reader._thread.is_alive()


def test_what_the_environment_says_is_kept() -> None:
    ours = {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
    }
    assert gpu_settings({}) == ours
    theirs = {"TORCH_FR_BUFFER_SIZE": "0", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    assert gpu_settings({"CUDA_DEVICE_MAX_CONNECTIONS": "32", "PYTORCH_ALLOC_CONF": "a:b"} | theirs) == {}
    files = {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "RUN/flight_recorder/rank_"}
    assert flight_recorder_settings({}, "RUN/flight_recorder/rank_") == files
    assert flight_recorder_settings({"TORCH_FR_DUMP_TEMP_FILE": "/local/rank_"}, "RUN/flight_recorder/rank_") == {}
    told = gpu_settings_line({"PATH": "x", "NCCL_DEBUG": "INFO"} | ours)
    assert told.startswith("CUDA_DEVICE_MAX_CONNECTIONS=1, NCCL_DEBUG=INFO, PYTORCH_CUDA_ALLOC_CONF=")
