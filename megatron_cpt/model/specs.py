"""Which modules a layer is made of: the best kernels at hand, and their names.

Transformer Engine's layer spec where it is installed and a GPU is there; else Megatron-Core's local
spec with scaled_dot_product_attention as its core attention.
"""

import copy
import importlib.util
from dataclasses import dataclass

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.attention import ScaledDotProductAttention
from megatron_cpt.model.layers import ParallelResidualLayer


@dataclass(frozen=True)
class Kernels:
    """The kernels that a run uses, as the log and `doctor` name them."""

    layers: str
    """Source of the layer spec."""
    attention: str
    """Core attention."""
    norm: str
    """Normalisation."""
    optimizer: str
    """Optimizer update."""


def transformer_engine_usable() -> bool:
    """Whether Transformer Engine is installed and has a GPU to run on."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def choose_kernels() -> Kernels:
    """The best kernels of this machine."""
    apex = torch.cuda.is_available() and importlib.util.find_spec("apex") is not None
    if transformer_engine_usable():
        return Kernels("Transformer Engine", "Transformer Engine", "Transformer Engine", "Transformer Engine FusedAdam")
    return Kernels(
        layers="Megatron-Core local",
        attention="torch scaled_dot_product_attention",
        norm="torch",
        optimizer="apex FusedAdam" if apex else "torch AdamW (fused)",
    )


def layer_spec(shape: ModelShape) -> ModuleSpec:
    """The spec of one transformer layer of a model of this shape."""
    if transformer_engine_usable():
        spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=shape.query_key_norm)
    else:
        local = get_gpt_layer_local_spec(normalization=shape.normalization, qk_layernorm=shape.query_key_norm)
        spec = copy.deepcopy(local)
        spec.submodules.self_attention.submodules.core_attention = ScaledDotProductAttention
    if shape.parallel_residual:
        spec.module = ParallelResidualLayer
    return spec
