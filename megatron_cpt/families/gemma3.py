"""Gemma 3, its text part: Gemma 2 with normed queries and keys in place of soft caps, and five local layers of six.

(arXiv:2503.19786, section 2.) Local layers turn positions with a base of their own, which is never rescaled.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.gemma2 import gemma2_weights, read_local_layers
from megatron_cpt.families.llama import read_llama_like
from megatron_cpt.families.qwen3 import head_norms
from megatron_cpt.families.rope import Rope, read_rope
from megatron_cpt.families.weights import Rule

KINDS = ("full_attention", "sliding_attention")


def read_gemma3(fields: ConfigFields) -> ModelShape:
    """The shape of a Gemma 3 from its config.json; defaults are transformers' own (Gemma3TextConfig)."""
    fields.take("hidden_act")  # an older name, which transformers does not read
    fields.take("cache_implementation")  # of generation
    fields.require("hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh")
    fields.require("use_bidirectional_attention", [None, False], None)
    fields.require("attn_logit_softcapping", [None], None)  # transformers reads it, and computes without it
    rope, local_base = read_both_ropes(fields)
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
        local_layers=read_local_layers(fields, shape.layers, period),
        local_rope_base=local_base,
    )


def read_both_ropes(fields: ConfigFields) -> tuple[Rope, float]:
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


def gemma3_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Gemma 2's name table, and the norms of queries and keys."""
    return (*gemma2_weights(shape), *head_norms())


GEMMA3 = Family(model_type="gemma3_text", read=read_gemma3, weights=gemma3_weights)
