"""Qwen2, Qwen3 and Qwen3 with experts.

Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values (arXiv:2407.10671, arXiv:2412.15115).
Qwen3: queries and keys are normed per head before rotation, no biases (arXiv:2505.09388).
Qwen3-MoE: a Qwen3 in whose layers, or in some of them, each token meets a few experts.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape, expert_weights, read_chosen
from megatron_cpt.families.fields import ConfigFields, read_layer_types
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.weights import QueryKeyValue, Replicated, Rule, Tensor


def _read_qwen3_moe(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen3-MoE from its config.json; defaults are transformers' own (Qwen3MoeConfig)."""
    shape = read_llama_like(fields, "qwen3_moe", max_positions=32_768, key_value_heads=4)
    # transformers 5 writes the number under Mixtral's name.
    experts = fields.integer("num_experts", fields.take("num_local_experts", 128))
    chosen = read_chosen(fields, experts, 8)
    normed = fields.boolean("norm_topk_prob", False)
    if normed and chosen == 1:
        # Megatron-Core has no way to give one chosen expert the whole weight.
        rule = "with one expert per token its weight would always be 1."
        fields.fault("norm_topk_prob", True, rule, "Set it to false, or use another model.")
    fields.take("output_router_logits")  # what transformers returns beside the logits
    return replace(
        _read_window(fields, shape),
        query_key_norm=True,
        experts=experts,
        experts_per_token=chosen,
        expert_ffn_hidden=fields.integer("moe_intermediate_size", 768),
        dense_layers=_read_dense_layers(fields, shape.layers),
        router_shares_sum_to_one=normed,
        router_balance=fields.not_negative("router_aux_loss_coef", 0.001),
    )


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


def _qwen3_moe_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Qwen3's name table, and the experts."""
    return (*_qwen3_weights(shape), *expert_weights("mlp", gate="gate_proj", up="up_proj", down="down_proj"))


QWEN3_MOE = Family(model_type="qwen3_moe", read=_read_qwen3_moe, weights=_qwen3_moe_weights)


def _read_qwen3(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen3 from its config.json; defaults are transformers' own (Qwen3Config)."""
    shape = read_llama_like(fields, "qwen3", max_positions=32_768, key_value_heads=32, head_dim=128)
    return _read_window(fields, replace(shape, query_key_norm=True))


def _qwen3_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and the norms of queries and keys."""
    return (*llama_weights(shape), *head_norms())


def head_norms() -> tuple[Rule, ...]:
    """The norms of queries and keys; all heads share one weight."""
    return tuple(
        Replicated(
            (f"decoder.layers.{{layer}}.self_attention.{letter}_layernorm.weight",),
            (Tensor(f"model.layers.{{layer}}.self_attn.{letter}_norm.weight", ("head_dim",)),),
        )
        for letter in ("q", "k")
    )


QWEN3 = Family(model_type="qwen3", read=_read_qwen3, weights=_qwen3_weights)


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


def _qwen2_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and the biases."""
    attention = "model.layers.{layer}.self_attn"
    return (
        *llama_weights(shape),
        QueryKeyValue(
            ("decoder.layers.{layer}.self_attention.linear_qkv.bias",),
            (
                Tensor(f"{attention}.q_proj.bias", ("query_width",)),
                Tensor(f"{attention}.k_proj.bias", ("key_value_width",)),
                Tensor(f"{attention}.v_proj.bias", ("key_value_width",)),
            ),
        ),
    )


QWEN2 = Family(model_type="qwen2", read=_read_qwen2, weights=_qwen2_weights)
