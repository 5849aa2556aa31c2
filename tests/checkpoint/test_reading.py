"""What a rank reads of a Hugging Face folder, and what it holds while it reads."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from torch import Tensor
from torch.nn import Module

from megatron_cpt.checkpoint.dcp import build_standalone
from megatron_cpt.checkpoint.hf_folder import HFTensors
from megatron_cpt.checkpoint.hf_weights import load_hf_weights
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model, wrap_for_training
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import write_model
from tests.families.folders import MODELS, SMALL
from tests.ranks import Ranks

MB = 1_000_000


def bytes_read(folder: Path, tensor: int, pipeline: int) -> tuple[int, int]:
    """A job: bytes that this rank reads, and bytes of its part of the model, both without padding."""
    groups.init_model_parallel(ParallelSettings(tensor=tensor, pipeline=pipeline))
    shape = read_shape(folder)
    model = build_standalone(shape, "fp32")
    read: list[int] = []
    with patch.object(HFTensors, "read", counting(read)):
        load_hf_weights(model, shape, folder)
    return sum(read), sum(value.nbytes for chunk in model for value in chunk.parameters())


def counting(read: list[int]) -> Callable[..., Tensor]:
    """The method that reads, which takes note of the bytes of each tensor."""
    original = HFTensors.read

    def counted(self: HFTensors, *arguments: Any) -> Tensor:
        found = original(self, *arguments)
        read.append(found.nbytes)
        return found

    return counted


@pytest.mark.parametrize("layout", [(2, 1), (1, 2)])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3"])
def test_a_rank_reads_what_it_owns_and_no_more(
    two_ranks: Ranks, tmp_path: Path, kind: str, layout: tuple[int, int]
) -> None:
    folder = write_model(tmp_path / "hf", MODELS[kind] | {"vocab_size": 102})
    for read, owned in two_ranks.call(bytes_read, folder=folder, tensor=layout[0], pipeline=layout[1]):
        assert read == owned


def bytes_of_replicas(folder: Path, expert: int) -> tuple[int, int, int, list[bytes]]:
    """A job: a run's start on two replicas. Bytes that this rank reads, those of its experts and of all its parameters,
    and, once the model is wrapped for training, the bytes of each parameter."""
    parallel = ParallelSettings(expert=expert)
    groups.init_model_parallel(parallel)
    shape = read_shape(folder)
    options = ModelOptions(sequence_length=32, parallel=parallel)
    groups.seed_everything(groups.rank())  # else the replicas are alike before anything is read
    model = build_model(shape, options)
    read: list[int] = []
    with patch.object(HFTensors, "read", counting(read)):
        load_hf_weights(model, shape, folder, by_one_replica=True)
    sizes = {name: value.nbytes for name, value in model[0].named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    wrapped = wrap_for_training(model, options)
    return sum(read), experts, sum(sizes.values()), [value.numpy().tobytes() for value in parameters(wrapped, experts)]


def parameters(model: Sequence[Module], experts: int) -> list[Tensor]:
    """The parameters that both replicas hold."""
    named = [pair for chunk in model for pair in chunk.named_parameters()]
    return [value.detach() for name, value in named if not (experts and ".experts." in name)]


@pytest.mark.parametrize(("kind", "expert"), [("llama", 1), ("qwen3_moe", 2)])
def test_the_first_replica_reads_and_the_others_hear(two_ranks: Ranks, tmp_path: Path, kind: str, expert: int) -> None:
    """Experts that are divided over the replicas have one replica each, which reads them."""
    folder = write_model(tmp_path / "hf", MODELS[kind] | {"vocab_size": 128})
    first, second = two_ranks.call(bytes_of_replicas, folder=folder, expert=expert)
    assert first[0] == first[2]
    assert second[0] == (second[1] if expert > 1 else 0)
    assert first[3] == second[3]


def memory_of_reading(folder: Path) -> tuple[int, int, int]:
    """A job: bytes held above the built model while it is filled, those of the largest slice, those of the model."""
    groups.init_model_parallel(ParallelSettings(tensor=2))
    shape = read_shape(folder)
    model = build_standalone(shape, "fp32")
    sizes = [value.nbytes for chunk in model for value in chunk.parameters()]
    before, peak, done = own_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], own_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    load_hf_weights(model, shape, folder)
    done.set()
    watcher.join()
    return peak[0], max(sizes), sum(sizes)


def own_bytes() -> int:
    """Bytes in memory that belong to this process alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_reading_holds_one_slice_above_the_model(two_ranks: Ranks, tmp_path: Path) -> None:
    sizes = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}
    folder = write_model(tmp_path / "hf", SMALL | sizes | {"head_dim": 64})
    for held, largest, model in two_ranks.call(memory_of_reading, folder=folder):
        assert model > 30 * MB
        assert held < largest + 4 * MB
