"""What a run asks of this machine and it does not have: refused before the ranks meet."""

import os
from collections.abc import Iterator

import torch

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.layers import engine_has, transformer_engine_usable

# Fields of TransformerConfig that only Transformer Engine's modules obey. Megatron-Core's local layers would leave
# most of them out without a word.
_ENGINE_ONLY = (
    "fp8",
    "fp4",
    "moe_grouped_gemm",
    "apply_rope_fusion",
    "use_te_activation_func",
    "use_te_rng_tracker",
    "cp_comm_type",
    "softmax_type",
)


def machine_faults(config: RunConfig, shape: ModelShape) -> Iterator[Fault]:
    """More processes than GPUs; settings that only Transformer Engine's layers obey, where layers are not its own."""
    if torch.cuda.is_available():
        yield from crowding_faults(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
    if transformer_engine_usable() and engine_has(shape):
        return
    rule = "only Transformer Engine's layers have it, and it is not usable here (`megatron-cpt doctor` says why)."
    remedy = "Install transformer_engine on a machine with a GPU, or take this out."
    if not engine_has(shape):
        rule = f"only Transformer Engine's layers have it, and it has no layers of family {shape.family}."
        remedy = "Take this out."
    for name in _ENGINE_ONLY:
        value = config.megatron.transformer.get(name)
        if value not in (None, False, "vanilla"):
            yield Fault(f"megatron.transformer.{name} = {value!r}", rule, remedy)


def crowding_faults(processes: int, gpus: int) -> Iterator[Fault]:
    """More processes than GPUs on this machine, as torchrun counts them."""
    if processes > gpus:
        yield Fault(
            f"{processes} processes on a machine with {gpus} visible {'GPU' if gpus == 1 else 'GPUs'}",
            "each takes a GPU of its own.",
            f"Start {gpus} (--nproc, --nproc-per-node), ask for more GPUs, or hide them (CUDA_VISIBLE_DEVICES='').",
        )
