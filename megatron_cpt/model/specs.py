"""Which modules a layer is made of: the best kernels at hand.

Transformer Engine's layer spec where it is installed and a GPU is there; else Megatron-Core's local
spec with scaled_dot_product_attention as its core attention.
"""

import copy
import importlib.util
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    LayerNormImpl,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.attention import ScaledDotProductAttention, SoftCappedAttention
from megatron_cpt.model.layers import ParallelResidualLayer, PostNormLayer
from megatron_cpt.model.norm import Norm
from megatron_cpt.model.own_norms import AllKeysRMSNorm, AllQueriesRMSNorm, ZeroCenteredRMSNorm
from megatron_cpt.model.window import WindowedAttention


def transformer_engine_usable() -> bool:
    """Whether Transformer Engine is installed and has a GPU to run on."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def block_spec(
    shape: ModelShape, config: TransformerConfig, virtual_stage: int | None = None, shares_documents: bool = False
) -> TransformerBlockSubmodules:
    """Specs of the layers of this rank, or of its chunk `virtual_stage`, and the final norm.

    Args:
        shares_documents: whether ranks share sequences whose documents are kept apart.
    """
    first = get_transformer_layer_offset(config, vp_stage=virtual_stage)
    count = get_num_layers_to_build(config, vp_stage=virtual_stage)
    return TransformerBlockSubmodules(
        layer_specs=[layer_spec(shape, layer, shares_documents) for layer in range(first, first + count)],
        layer_norm=norm_of(shape),
    )


def layer_spec(shape: ModelShape, layer: int = 0, shares_documents: bool = False) -> ModuleSpec:
    """The spec of a transformer layer of a model of this shape, by the layer's number in the whole model, from 0."""
    experts = shape.experts if layer in shape.sparse_layers else None
    if transformer_engine_usable() and not has_own_parts(shape):
        spec = get_gpt_layer_with_transformer_engine_spec(
            num_experts=experts, moe_grouped_gemm=True, qk_layernorm=shape.query_key_norm
        )
        if shares_documents:
            spec = copy.deepcopy(spec)
            spec.submodules.self_attention.submodules.core_attention = core_attention(shape, layer)
    else:
        local = get_gpt_layer_local_spec(
            num_experts=experts, normalization=shape.normalization, qk_layernorm=shape.query_key_norm
        )
        spec = copy.deepcopy(local)
        attention = spec.submodules.self_attention.submodules
        attention.core_attention = core_attention(shape, layer)
        if shape.query_key_norm:
            attention.q_layernorm = attention.k_layernorm = Norm
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = Norm
        if experts:
            # The norm before experts is never fused with them: its name in a checkpoint is its own, as it is in
            # Transformer Engine's spec.
            spec.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.")
    if shape.parallel_residual:
        spec.module = ParallelResidualLayer
    if has_own_parts(shape):
        put_own_parts(spec, shape, layer)
    return spec


def has_own_parts(shape: ModelShape) -> bool:
    """Whether layers have norms or attention that the spec of this machine lacks.

    Transformer Engine has windows (window_fields), Megatron-Core's local spec has none.
    """
    windows = bool(shape.local_layers) and not transformer_engine_usable()
    capped = shape.attention_soft_cap is not None
    return shape.post_norm or shape.all_heads_norm or shape.zero_centered_norms or capped or windows


def window_fields(shape: ModelShape) -> dict[str, Any]:
    """What TransformerConfig is told of layers that see a window: tokens before and after a position."""
    if not shape.local_layers or shape.local_window is None:
        return {}
    return {
        "window_size": (shape.local_window - 1, 0),
        "window_attn_skip_freq": [int(layer in shape.local_layers) for layer in range(shape.layers)],
    }


def put_own_parts(spec: ModuleSpec, shape: ModelShape, layer: int) -> None:
    """Puts them into Megatron-Core's local spec of a layer."""
    norm = norm_of(shape) if shape.pre_norm else IdentityOp
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = norm
    if shape.post_norm:
        spec.module = PostNormLayer
        two_bases = shape.local_rope_base is not None
        spec.params = {"post_norm": norm_of(shape), "is_local": layer in shape.local_layers if two_bases else None}
    attention = spec.submodules.self_attention.submodules
    if shape.query_key_norm:
        attention.q_layernorm = attention.k_layernorm = norm_of(shape)
    if shape.all_heads_norm:
        # Classes, not specs with parameters: Megatron-Core 0.19 calls them itself.
        attention.q_layernorm, attention.k_layernorm = AllQueriesRMSNorm, AllKeysRMSNorm


def core_attention(shape: ModelShape, layer: int) -> type[ScaledDotProductAttention] | ModuleSpec:
    """Our core attention of a layer: with a soft cap or a window if it has one."""
    window = shape.local_window if layer in shape.local_layers else None
    # Gemma 3 has no soft cap, but with the other kernel a logit of its test under tensor parallelism lies 1.07e-5 from
    # transformers', beyond the 1e-5 that all families are held to.
    if shape.attention_soft_cap is not None or shape.local_rope_base is not None:
        return ModuleSpec(SoftCappedAttention, params={"soft_cap": shape.attention_soft_cap, "window": window})
    if window is not None:
        return ModuleSpec(WindowedAttention, params={"window": window})
    return ScaledDotProductAttention


def norm_of(shape: ModelShape) -> Any:
    """The norm at the end, and of layers that have parts of ours."""
    if shape.zero_centered_norms:
        return ZeroCenteredRMSNorm
    return LayerNormImpl if transformer_engine_usable() else Norm
