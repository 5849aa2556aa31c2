"""Mixtral: a Mistral whose MLPs are eight experts, two of them for each token (arXiv:2401.04088)."""

from dataclasses import replace

from megatron_cpt.families.experts import expert_weights, read_chosen
from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.weights import Rule
from megatron_cpt.families.windows import every_layer


def read_mixtral(fields: ConfigFields) -> ModelShape:
    """The shape of a Mixtral from its config.json; defaults are transformers' own (MixtralConfig)."""
    window = fields.optional_integer("sliding_window", None)
    shape = read_llama_like(
        fields, "mixtral", max_positions=131_072, key_value_heads=8, norm_epsilon=1e-5, rope_base=1e6
    )
    experts = fields.integer("num_local_experts", fields.take("num_experts", 8))
    chosen = read_chosen(fields, experts, 2)
    if chosen == 1:
        # Megatron-Core has no way to give one chosen expert the whole weight.
        fields.fault("num_experts_per_tok", 1, "a Mixtral sends a token to at least two.", "Use another model.")
    fields.require("router_jitter_noise", [0, 0.0], 0.0)
    fields.take("output_router_logits")  # what transformers returns beside the logits
    return replace(
        shape,
        local_window=window,
        local_layers=every_layer(window, shape.layers),
        experts=experts,
        experts_per_token=chosen,
        expert_ffn_hidden=shape.ffn_hidden,
        router_balance=fields.not_negative("router_aux_loss_coef", 0.001),
    )


def mixtral_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and the experts."""
    return (*llama_weights(shape), *expert_weights("block_sparse_moe", gate="w1", up="w3", down="w2"))


MIXTRAL = Family(model_type="mixtral", read=read_mixtral, weights=mixtral_weights)
