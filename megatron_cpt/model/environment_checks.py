"""What a run asks of this machine and it does not have."""

import os
from collections.abc import Iterator

import torch

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.passed_fields import engine_only_fields
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.layers import transformer_engine_usable


def gpu_faults() -> Iterator[Fault]:
    """More processes than GPUs. Asked before a process takes its GPU."""
    if torch.cuda.is_available():
        yield from crowding_faults(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())


def engine_faults(config: RunConfig, shape: ModelShape) -> Iterator[Fault]:
    """Settings that only Transformer Engine's layers obey, where it is not usable."""
    if transformer_engine_usable() or not shape.has_engine_layers:
        return
    for name, value in engine_only_fields(config.megatron).items():
        yield Fault(
            f"megatron.transformer.{name} = {value!r}",
            "only Transformer Engine's layers have it, and it is not usable here (`megatron-cpt doctor` says why).",
            "Install transformer_engine on a machine with a GPU, or take this out.",
        )


def crowding_faults(processes: int, gpus: int) -> Iterator[Fault]:
    """More processes than GPUs on this machine, as torchrun counts them."""
    if processes > gpus:
        yield Fault(
            f"{processes} processes on a machine with {gpus} visible {'GPU' if gpus == 1 else 'GPUs'}",
            "each takes a GPU of its own.",
            f"Start {gpus} (--nproc, --nproc-per-node), ask for more GPUs, or hide them (CUDA_VISIBLE_DEVICES='').",
        )
