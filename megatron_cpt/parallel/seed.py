"""Random states: seeding, and what a checkpoint keeps of them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from megatron.core import tensor_parallel

from megatron_cpt.parallel import groups

RandomState = dict[str, torch.Tensor]


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch alike on all ranks that hold the same parameters.

    Pipeline stages get different seeds, as in Megatron-LM (a stage draws its own layers), and
    tensor-parallel ranks share one, with Megatron's tracker of per-rank states beside it. Two layouts
    therefore draw different random weights: layouts are compared from one shared checkpoint.
    """
    stage_seed = seed + 100 * groups.pipeline_rank()
    random.seed(stage_seed)
    np.random.seed(stage_seed)
    torch.manual_seed(stage_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(stage_seed, force_reset_rng=True)


def random_state() -> RandomState:
    """The states that training draws from, as tensors: torch's on CPU and GPU and those of Megatron's tracker."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    tracker = tensor_parallel.get_cuda_rng_tracker().get_states()
    return state | {f"tracker.{name}": value for name, value in tracker.items()}


def restore_random_state(state: RandomState) -> None:
    """Puts states back that random_state gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    prefix = "tracker."
    tensor_parallel.get_cuda_rng_tracker().set_states(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Whatever the block seeds or draws, in Python, numpy or torch, the states after it are those before it."""
    python, numpy, torch_states = random.getstate(), np.random.get_state(), random_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        restore_random_state(torch_states)
