"""Qwen2, Qwen3, both with experts, and the language models of those that see.

Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values (arXiv:2407.10671, arXiv:2412.15115).
Qwen3: queries and keys are normed per head before rotation, no biases (arXiv:2505.09388).
Qwen2-MoE, Qwen3-MoE: in all layers or in some each token meets a few experts; in a Qwen2-MoE all tokens meet one more.
Qwen2-VL, Qwen2.5-VL, Qwen3-VL: a Qwen2 or a Qwen3 whose positions have a time, a height and a width, all the same in
text (arXiv:2409.12191, arXiv:2502.13923). Folders of a Qwen3-VL with experts have those of a layer in one tensor.
"""

from dataclasses import replace
from functools import partial

from megatron_cpt.families.family import (
    Family,
    ModelShape,
    expert_stacks,
    expert_weights,
    shared_expert_weights,
    with_experts,
)
from megatron_cpt.families.fields import ConfigFields, read_layer_types
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.rope import check_sections, read_rope
from megatron_cpt.families.weights import Rule


def _read_qwen3_moe(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen3-MoE from its config.json; defaults are transformers' own (Qwen3MoeConfig)."""
    shape = read_llama_like(fields, "qwen3_moe", max_positions=32_768, key_value_heads=4)
    shape = read_qwen_experts(fields, shape, experts=128, width=768, chosen=8)
    return replace(_read_window(fields, shape), query_key_norm=True)


def read_qwen_experts(
    fields: ConfigFields,
    shape: ModelShape,
    experts: int,
    width: int,
    chosen: int,
    always_normed: bool = False,
    in_all_layers: bool = False,
) -> ModelShape:
    """The shape with its experts.

    Args:
        experts, width, chosen: transformers' defaults of `num_experts`, `moe_intermediate_size` and
            `num_experts_per_tok`.
        always_normed: as with_experts has it.
        in_all_layers: whether transformers reads of no layers without.
    """
    # transformers 5 writes the number under Mixtral's name.
    experts = fields.integer("num_experts", fields.take("num_local_experts", experts))
    width = fields.integer("moe_intermediate_size", width)
    shape = with_experts(fields, shape, experts, width, chosen, always_normed=always_normed)
    return shape if in_all_layers else replace(shape, dense_layers=_read_dense_layers(fields, shape.layers))


def _read_dense_layers(fields: ConfigFields, layers: int) -> frozenset[int]:
    """Layers without experts: those of `mlp_only_layers`, and all but each `decoder_sparse_step`-th."""
    step = fields.integer("decoder_sparse_step", 1)
    named = fields.take("mlp_only_layers", [])
    if not (isinstance(named, list) and all(type(layer) is int and layer >= 0 for layer in named)):
        fields.fault("mlp_only_layers", named, "must be a list of layers, counted from 0.", "Mend config.json.")
        return frozenset()
    dense = frozenset(layer for layer in range(layers) if layer in named or (layer + 1) % step)
    if len(dense) == layers:
        rule = "no layer would have experts."
        fields.fault("mlp_only_layers", named, rule, "Mend config.json, or use a Qwen3 without experts.")
    return dense


def qwen_moe_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Qwen's name table, and the experts."""
    return (*llama_weights(shape), *expert_weights("mlp", gate="gate_proj", up="up_proj", down="down_proj"))


QWEN3_MOE = Family(model_type="qwen3_moe", read=_read_qwen3_moe, weights=qwen_moe_weights)


def _read_qwen2_moe(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen2-MoE from its config.json; defaults are transformers' own (Qwen2MoeConfig)."""
    shape = read_llama_like(fields, "qwen2_moe", max_positions=32_768, key_value_heads=16)
    shape = read_qwen_experts(fields, shape, experts=60, width=1408, chosen=4)
    if fields.boolean("use_sliding_window", False):
        rule = "windows of a Qwen2-MoE are not supported."
        fields.fault("use_sliding_window", True, rule, "Use a model that has no windows.")
    for name in ("sliding_window", "max_window_layers"):
        fields.take(name)
    if read_layer_types(fields, shape.layers):
        rule = "not every layer has full attention, although use_sliding_window is off."
        fields.fault("layer_types", "sliding_attention", rule, "Mend config.json.")
    return replace(
        shape,
        query_key_value_bias=fields.boolean("qkv_bias", True),
        shared_expert_ffn_hidden=fields.integer("shared_expert_intermediate_size", 5632),
        shared_expert_gate=True,
    )


def _qwen2_moe_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Qwen3-MoE's name table, and the expert that all tokens share."""
    return (*qwen_moe_weights(shape), *shared_expert_weights("mlp", "shared_expert", "shared_expert_gate"))


QWEN2_MOE = Family(model_type="qwen2_moe", read=_read_qwen2_moe, weights=_qwen2_moe_weights)


def _read_qwen3(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen3 from its config.json; defaults are transformers' own (Qwen3Config)."""
    shape = read_llama_like(fields, "qwen3", max_positions=32_768, key_value_heads=32, head_dim=128)
    return _read_window(fields, replace(shape, query_key_norm=True))


QWEN3 = Family(model_type="qwen3", read=_read_qwen3, weights=llama_weights)


def _read_qwen2(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen2 from its config.json; defaults are transformers' own (Qwen2Config)."""
    shape = read_llama_like(fields, "qwen2", max_positions=32_768, key_value_heads=32)
    fields.require("use_mrope", [False], False)
    return _read_window(fields, replace(shape, query_key_value_bias=True))


def _read_window(fields: ConfigFields, shape: ModelShape) -> ModelShape:
    """The shape with the window of the layers that have one.

    `sliding_window` counts only with `use_sliding_window`, and then in the layers that `layer_types`
    marks; without it, in those from `max_window_layers` on.
    """
    window = fields.optional_integer("sliding_window", 4096)
    first = fields.take("max_window_layers", 28)
    marked = read_layer_types(fields, shape.layers)
    if not fields.boolean("use_sliding_window", False):
        if marked:
            rule = "not every layer has full attention, although use_sliding_window is off."
            fields.fault("layer_types", sorted(marked), rule, "Mend config.json.")
        return shape
    if not (isinstance(first, int) and first >= 0):
        fields.fault("max_window_layers", first, "must be a whole number of at least 0.", "Mend config.json.")
        return shape
    local = frozenset(range(first, shape.layers)) if marked is None else marked
    return replace(shape, local_window=window, local_layers=local) if window and local else shape


QWEN2 = Family(model_type="qwen2", read=_read_qwen2, weights=llama_weights)


def _read_qwen2_vl(fields: ConfigFields, family: str) -> ModelShape:
    """The shape of the language model of a Qwen2 that sees; defaults are transformers' own (Qwen2VLTextConfig)."""
    rope = read_rope(fields, family, 32_768, base=1_000_000.0, has_sections=True)
    shape = read_llama_like(fields, family, 32_768, key_value_heads=8, norm_epsilon=1e-5, rope=rope)
    check_sections(fields, rope, shape.head_dim, needed=True)
    return _read_window(fields, replace(shape, query_key_value_bias=True))


def _read_qwen3_vl(fields: ConfigFields) -> ModelShape:
    """The shape of the language model of a Qwen3-VL; defaults are transformers' own (Qwen3VLTextConfig)."""
    return _read_like_qwen3_vl(fields, "qwen3_vl_text", key_value_heads=32, head_dim=128, tied=False)


def _read_like_qwen3_vl(
    fields: ConfigFields, family: str, key_value_heads: int, head_dim: int | None, tied: bool
) -> ModelShape:
    """That of one with experts or without.

    Args:
        key_value_heads, head_dim, tied: as read_llama_like has them.
    """
    rope = read_rope(fields, family, 128_000, base=500_000.0, has_sections=True)
    shape = read_llama_like(fields, family, 128_000, key_value_heads, head_dim, tied_embeddings=tied, rope=rope)
    check_sections(fields, rope, shape.head_dim, needed=False)
    return replace(shape, query_key_norm=True)


def _read_qwen3_vl_moe(fields: ConfigFields) -> ModelShape:
    """The shape of the language model of a Qwen3-VL with experts; defaults are transformers' own
    (Qwen3VLMoeTextConfig)."""
    shape = _read_like_qwen3_vl(fields, "qwen3_vl_moe_text", key_value_heads=16, head_dim=None, tied=True)
    return read_qwen_experts(fields, shape, experts=60, width=1408, chosen=4, always_normed=True)


QWEN2_VL, QWEN2_5_VL = (
    Family(model_type=name, read=partial(_read_qwen2_vl, family=name), weights=llama_weights)
    for name in ("qwen2_vl_text", "qwen2_5_vl_text")
)
QWEN3_VL = Family(model_type="qwen3_vl_text", read=_read_qwen3_vl, weights=llama_weights)
QWEN3_VL_MOE = Family(
    model_type="qwen3_vl_moe_text",
    read=_read_qwen3_vl_moe,
    weights=qwen_moe_weights,
    # transformers 5 turns them.
    stacks=expert_stacks("mlp", transposed=True, either_way=True),
)
