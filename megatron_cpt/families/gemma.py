"""Gemma 2 and Gemma 3 (text).

Gemma 2: norms before and after attention and MLP, soft-capped scores and logits, every other layer local.
Gemma 3: normed queries and keys in place of soft caps, five local layers of six (arXiv:2503.19786).
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields, read_layer_types
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.olmo import post_norms
from megatron_cpt.families.qwen import head_norms
from megatron_cpt.families.rope import Rope, read_rope
from megatron_cpt.families.weights import Rule, Tensor

KINDS = ("full_attention", "sliding_attention")


def _read_gemma3(fields: ConfigFields) -> ModelShape:
    """The shape of a Gemma 3 from its config.json; defaults are transformers' own (Gemma3TextConfig)."""
    fields.take("hidden_act")  # an older name, which transformers does not read
    fields.take("cache_implementation")  # of generation
    fields.require("hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh")
    fields.require("use_bidirectional_attention", [None, False], None)
    fields.require("attn_logit_softcapping", [None], None)  # transformers reads it, and computes without it
    rope, local_base = _read_both_ropes(fields)
    shape = read_llama_like(
        fields, "gemma3_text", max_positions=131_072, key_value_heads=4, head_dim=256, tied_embeddings=True, rope=rope
    )
    newer, older = fields.take("_sliding_window_pattern"), fields.optional_integer("sliding_window_pattern", 6)
    period = newer if isinstance(newer, int) else older or 6
    return replace(
        shape,
        activation="gelu_tanh",
        query_key_norm=True,
        post_norm=True,
        zero_centered_norms=True,
        attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
        logit_soft_cap=fields.optional_positive("final_logit_softcapping", None),
        embedding_scale=float(shape.hidden) ** 0.5,
        local_window=fields.optional_integer("sliding_window", 4096),
        local_layers=_read_local_layers(fields, shape.layers, period),
        local_rope_base=local_base,
    )


def _read_both_ropes(fields: ConfigFields) -> tuple[Rope, float]:
    """The rotary positions of global layers, and the base of local ones.

    transformers 5 writes them by kind of layer (`rope_parameters`), transformers 4 in fields of their own.
    """
    global_base, local_base = fields.positive("rope_theta", 1e6), fields.positive("rope_local_base_freq", 10_000.0)
    older, newer = fields.take("rope_scaling", {}), fields.take("rope_parameters", {})
    if not isinstance(newer, dict) or not set(newer) <= set(KINDS) or (older and newer):
        rule = f"must be an object with {' and '.join(KINDS)}, and stands in place of rope_scaling."
        fields.fault("rope_parameters", newer, rule, "Mend config.json.")
        newer = {}
    both = newer or {"full_attention": older}
    ropes = []
    for kind, base in zip(KINDS, (global_base, local_base), strict=True):
        inner = ConfigFields(f"{fields.path}: {kind}", {"rope_parameters": both.get(kind)})
        ropes.append(read_rope(inner, "gemma3_text", base=base))
        if kind == "sliding_attention" and ropes[-1].scaling:
            inner.fault("rope_parameters", both[kind], "local layers are never rescaled.", "Mend config.json.")
        fields.faults += inner.faults
    return ropes[0], ropes[1].base


def _gemma3_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Gemma 2's name table, and the norms of queries and keys."""
    return (*_gemma2_weights(shape), *head_norms())


GEMMA3 = Family(model_type="gemma3_text", read=_read_gemma3, weights=_gemma3_weights)


def _read_gemma2(fields: ConfigFields) -> ModelShape:
    """The shape of a Gemma 2 from its config.json; defaults are transformers' own (Gemma2Config)."""
    fields.take("hidden_act")  # an older name, which transformers does not read
    fields.take("cache_implementation")  # of generation
    fields.require("hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh")
    fields.require("use_bidirectional_attention", [None, False], None)
    shape = read_llama_like(fields, "gemma2", max_positions=8192, key_value_heads=4, head_dim=256, tied_embeddings=True)
    window = fields.optional_integer("sliding_window", 4096)
    scalar = fields.positive("query_pre_attn_scalar", 256)
    return replace(
        shape,
        activation="gelu_tanh",
        post_norm=True,
        zero_centered_norms=True,
        attention_scale=scalar**-0.5,
        attention_soft_cap=fields.optional_positive("attn_logit_softcapping", 50.0),
        logit_soft_cap=fields.optional_positive("final_logit_softcapping", 30.0),
        embedding_scale=float(shape.hidden) ** 0.5,
        local_window=window,
        local_layers=_read_local_layers(fields, shape.layers, period=2) if window else frozenset(),
    )


def _read_local_layers(fields: ConfigFields, layers: int, period: int) -> frozenset[int]:
    """The layers that `layer_types` names local; where it is not written, all but the last of every `period`."""
    marked = read_layer_types(fields, layers)
    return frozenset(layer for layer in range(layers) if (layer + 1) % period) if marked is None else marked


def _gemma2_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, whose norm before the MLP has another name, and the norms after attention and MLP."""
    layer = "model.layers.{layer}"
    before_mlp = "decoder.layers.{layer}.pre_mlp_layernorm.weight"
    renamed = (Tensor(f"{layer}.pre_feedforward_layernorm.weight", ("hidden",)),)
    return (
        *(replace(rule, tensors=renamed) if rule.names[0] == before_mlp else rule for rule in llama_weights(shape)),
        *post_norms(f"{layer}.post_attention_layernorm", f"{layer}.post_feedforward_layernorm"),
    )


GEMMA2 = Family(model_type="gemma2", read=_read_gemma2, weights=_gemma2_weights)
