"""Granite 3, and Granite 4 where all of its layers have attention and no experts.

A Llama with constant factors: of the embeddings, of the attention scores, of what attention and MLP add to the residual
stream, and of the logits (arXiv:2505.02595 has them too). Granite 4 has gate and up in one tensor, under other names.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import LayerNames, llama_weights, read_llama_like
from megatron_cpt.families.weights import Rule


def _read_granite(fields: ConfigFields) -> ModelShape:
    """The shape of a Granite 3 from its config.json; defaults are transformers' own (GraniteConfig)."""
    return _with_factors(fields, read_llama_like(fields, "granite", max_positions=2048))


def _with_factors(fields: ConfigFields, shape: ModelShape) -> ModelShape:
    return replace(
        shape,
        embedding_scale=fields.positive("embedding_multiplier", 1.0),
        attention_scale=fields.positive("attention_multiplier", 1.0),
        residual_scale=fields.positive("residual_multiplier", 1.0),
        logit_divisor=fields.positive("logits_scaling", 1.0),
    )


GRANITE = Family(model_type="granite", read=_read_granite, weights=llama_weights)


def _read_granite4(fields: ConfigFields) -> ModelShape:
    """The shape of a Granite 4 without Mamba and experts; defaults are transformers' own (GraniteMoeHybridConfig)."""
    fields.assume("intermediate_size", 11008)  # of experts, which it does not have
    shape = _with_factors(fields, read_llama_like(fields, "granitemoehybrid", max_positions=2048))
    if experts := fields.take("num_local_experts", 8):
        rule = "a Granite 4 with experts is not supported."
        fields.fault("num_local_experts", experts, rule, "Use one without: granite-4.0-350m, granite-4.0-1b.")
    kinds = fields.take("layer_types", ["mamba"])
    if not (isinstance(kinds, list) and len(kinds) == shape.layers and set(kinds) <= {"attention", "full_attention"}):
        rule = f"must be `attention` in each of {shape.layers} layers: Mamba's are not supported."
        fields.fault("layer_types", kinds, rule, "Use a Granite 4 without: granite-4.0-350m, granite-4.0-1b.")
    turned = fields.take("position_embedding_type") == "rope"
    for name in _OF_MAMBA_AND_EXPERTS:
        fields.take(name)
    return replace(
        shape,
        ffn_hidden=fields.integer("shared_intermediate_size", 1024),
        unturned_layers=frozenset() if turned else frozenset(range(shape.layers)),
    )


_OF_MAMBA_AND_EXPERTS = (
    *(f"mamba_{name}" for name in ("n_heads", "n_groups", "d_state", "d_head", "d_conv", "expand", "chunk_size")),
    *("mamba_conv_bias", "mamba_proj_bias", "time_step_limit"),
    *("num_experts_per_tok", "output_router_logits", "router_aux_loss_coef"),
)


def _granite4_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table with other names in the MLP."""
    return llama_weights(shape, LayerNames(gate_and_up="shared_mlp.input_linear", down="shared_mlp.output_linear"))


GRANITE4 = Family(model_type="granitemoehybrid", read=_read_granite4, weights=_granite4_weights)
