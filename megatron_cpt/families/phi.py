"""Phi-3 and Phi-4: a Llama whose queries, keys and values are one tensor, and gate and up another (arXiv:2404.14219).

The models with long contexts have LongRoPE; in Phi-4-mini it turns three quarters of each head (arXiv:2503.01743).
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields, every_layer
from megatron_cpt.families.llama import LayerNames, llama_weights, read_llama_like
from megatron_cpt.families.rope import LongRopeScaling, read_rope
from megatron_cpt.families.weights import Rule


def _read_phi3(fields: ConfigFields) -> ModelShape:
    """The shape of a Phi-3 from its config.json; defaults are transformers' own (Phi3Config)."""
    rope = read_rope(fields, "phi3", 4096, share_name="partial_rotary_factor", original_positions=4096)
    if rope.scaling is not None and not isinstance(rope.scaling, LongRopeScaling):
        rule = "transformers knows `longrope` alone for a Phi-3."
        kind = type(rope.scaling).__name__.removesuffix("Scaling").lower()
        fields.fault("rope_type", kind, rule, "Mend config.json.")
    shape = read_llama_like(fields, "phi3", 4096, norm_epsilon=1e-5, rope=rope)
    # Of code that comes with Phi-4-mini; these are its values.
    fields.require("full_attn_mod", [1], 1)
    fields.require("interpolate_factor", [1], 1)
    fields.require("lm_head_bias", [False], False)
    window = fields.optional_integer("sliding_window", None)
    return replace(shape, local_window=window, local_layers=every_layer(window, shape.layers))


def _phi3_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table with joined tensors."""
    return llama_weights(shape, LayerNames(query_key_value="self_attn.qkv_proj", gate_and_up="mlp.gate_up_proj"))


PHI3 = Family(model_type="phi3", read=_read_phi3, weights=_phi3_weights)
