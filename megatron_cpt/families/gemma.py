"""Gemma, Gemma 2 and Gemma 3 (text).

Gemma: a Llama with scaled embeddings, zero-centred norms and GELU (arXiv:2403.08295).
Gemma 2: norms before and after attention and MLP, soft-capped scores and logits, every other layer local.
Gemma 3: normed queries and keys in place of soft caps, five local layers of six (arXiv:2503.19786).
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import LayerNames, llama_weights, read_llama_like, with_layer_types
from megatron_cpt.families.rope import Rope, read_ropes_by_kind
from megatron_cpt.families.weights import Rule


def _with_local_layers(fields: ConfigFields, shape: ModelShape, period: int) -> ModelShape:
    """The shape with the layers that `layer_types` marks; where it is not written, all but the last of a period."""
    return with_layer_types(fields, shape, frozenset(layer for layer in range(shape.layers) if (layer + 1) % period))


def _gemma2_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, with norms after attention and MLP, whose norm before the MLP has another name."""
    return llama_weights(shape, LayerNames(before_mlp="pre_feedforward_layernorm"))


def _read_gemma3(fields: ConfigFields) -> ModelShape:
    """The shape of a Gemma 3 from its config.json; defaults are transformers' own (Gemma3TextConfig)."""
    fields.take("hidden_act")  # an older name, which transformers does not read
    fields.take("cache_implementation")  # of generation
    fields.require("hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh")
    fields.require("use_bidirectional_attention", [None, False], None)
    fields.require("attn_logit_softcapping", [None], None)  # transformers reads it, and computes without it
    base, local_base = fields.positive("rope_theta", 1e6), fields.positive("rope_local_base_freq", 10_000.0)
    rope, local_base = read_ropes_by_kind(fields, "gemma3_text", 131_072, base, local_base)
    shape = _read_gemma_like(fields, "gemma3_text", 131_072, key_value_heads=4, rope=rope)
    newer, older = fields.take("_sliding_window_pattern"), fields.optional_integer("sliding_window_pattern", 6)
    period = newer if isinstance(newer, int) else older or 6
    shape = replace(
        shape,
        query_key_norm=True,
        post_norm=True,
        attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
        logit_soft_cap=fields.optional_positive("final_logit_softcapping", None),
        local_window=fields.optional_integer("sliding_window", 4096),
        local_rope_base=local_base,
    )
    return _with_local_layers(fields, shape, period)


GEMMA3 = Family(model_type="gemma3_text", read=_read_gemma3, weights=_gemma2_weights)


def _read_gemma2(fields: ConfigFields) -> ModelShape:
    """The shape of a Gemma 2 from its config.json; defaults are transformers' own (Gemma2Config)."""
    fields.take("hidden_act")  # an older name, which transformers does not read
    fields.take("cache_implementation")  # of generation
    fields.require("hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh")
    fields.require("use_bidirectional_attention", [None, False], None)
    shape = _read_gemma_like(fields, "gemma2", 8192, key_value_heads=4)
    scalar = fields.positive("query_pre_attn_scalar", 256)
    shape = replace(
        shape,
        post_norm=True,
        attention_scale=scalar**-0.5,
        attention_soft_cap=fields.optional_positive("attn_logit_softcapping", 50.0),
        logit_soft_cap=fields.optional_positive("final_logit_softcapping", 30.0),
        local_window=fields.optional_integer("sliding_window", 4096),
    )
    return _with_local_layers(fields, shape, period=2)


GEMMA2 = Family(model_type="gemma2", read=_read_gemma2, weights=_gemma2_weights)


def _read_gemma(fields: ConfigFields) -> ModelShape:
    """The shape of a Gemma from its config.json; defaults are transformers' own (GemmaConfig)."""
    # transformers takes the older name for the approximation too, and does not read the other field.
    fields.require("hidden_act", ["gelu", "gelu_pytorch_tanh"], "gelu_pytorch_tanh")
    fields.require("hidden_activation", [None, "gelu_pytorch_tanh"], None)
    fields.require("use_bidirectional_attention", [None, False], None)
    return _read_gemma_like(fields, "gemma", 8192, key_value_heads=16)


def _read_gemma_like(
    fields: ConfigFields, family: str, max_positions: int, key_value_heads: int, rope: Rope | None = None
) -> ModelShape:
    """What all Gemmas have: a Llama with scaled embeddings, norms that multiply by 1 + their weight, and GELU."""
    shape = read_llama_like(
        fields,
        family,
        max_positions,
        key_value_heads,
        head_dim=256,
        tied_embeddings=True,
        activation="gelu_pytorch_tanh",
        rope=rope,
    )
    return replace(shape, zero_centered_norms=True, embedding_scale=float(shape.hidden) ** 0.5)


GEMMA = Family(model_type="gemma", read=_read_gemma, weights=llama_weights)
