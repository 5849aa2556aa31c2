"""Qwen3 with experts (arXiv:2505.09388): a Qwen3 in whose layers, or in some of them, each token meets a few experts.

An expert is narrower than a dense MLP of the same model would be.
"""

from dataclasses import replace

from megatron_cpt.families.experts import expert_weights, read_chosen
from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import read_llama_like
from megatron_cpt.families.qwen2 import read_window
from megatron_cpt.families.qwen3 import qwen3_weights
from megatron_cpt.families.weights import Rule


def read_qwen3_moe(fields: ConfigFields) -> ModelShape:
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
        read_window(fields, shape),
        query_key_norm=True,
        experts=experts,
        experts_per_token=chosen,
        expert_ffn_hidden=fields.integer("moe_intermediate_size", 768),
        dense_layers=read_dense_layers(fields, shape.layers),
        router_shares_sum_to_one=normed,
        router_balance=fields.not_negative("router_aux_loss_coef", 0.001),
    )


def read_dense_layers(fields: ConfigFields, layers: int) -> frozenset[int]:
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


def qwen3_moe_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Qwen3's name table, and the experts."""
    return (*qwen3_weights(shape), *expert_weights("mlp", gate="gate_proj", up="up_proj", down="down_proj"))


QWEN3_MOE = Family(model_type="qwen3_moe", read=read_qwen3_moe, weights=qwen3_moe_weights)
