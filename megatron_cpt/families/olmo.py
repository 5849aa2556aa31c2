"""OLMo 2, OLMo 3, OLMoE and EXAONE 4.

OLMo 2: a Llama whose norms stand after attention and MLP, and norm all heads of queries and keys together
(arXiv:2501.00656, section 3.2). OLMo 3: with windows in three layers of four, where positions are never rescaled.
OLMoE: a Llama with these norms of queries and keys, and experts (arXiv:2409.02060). EXAONE 4: an OLMo 2 that norms each
head by itself; where some layers have a window, the others have no positions (arXiv:2507.11407).
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape, expert_weights, with_experts
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like, with_layer_types
from megatron_cpt.families.rope import read_ropes_by_kind
from megatron_cpt.families.weights import Rule


def _read_olmo2(fields: ConfigFields) -> ModelShape:
    """The shape of an OLMo 2 from its config.json; defaults are transformers' own (Olmo2Config)."""
    shape = read_llama_like(fields, "olmo2", max_positions=2048, norm_epsilon=1e-5)
    return replace(shape, pre_norm=False, post_norm=True, all_heads_norm=True)


OLMO2 = Family(model_type="olmo2", read=_read_olmo2, weights=llama_weights)


def _read_olmo3(fields: ConfigFields) -> ModelShape:
    """The shape of an OLMo 3 from its config.json; defaults are transformers' own (Olmo3Config)."""
    base = fields.positive("rope_theta", 500_000.0)
    rope, local_base = read_ropes_by_kind(fields, "olmo3", 2048, base, local_base=500_000.0)
    if base != local_base == 500_000.0:
        # transformers 5 gives it to the layers that see the whole sequence alone, transformers 4 to all.
        rule = "releases of transformers differ in whether local layers have this base too."
        fields.fault("rope_theta", base, rule, "State rope_theta in rope_parameters, by kind of layer.")
    shape = read_llama_like(fields, "olmo3", max_positions=2048, norm_epsilon=1e-5, rope=rope)
    window = fields.optional_integer("sliding_window", 4096)
    if window is None:
        rule = "an OLMo 3 has windows; transformers does not load one without."
        fields.fault("sliding_window", None, rule, "State one, or make it an `olmo2` (model_type).")
    shape = replace(
        shape,
        pre_norm=False,
        post_norm=True,
        all_heads_norm=True,
        local_window=window,
        local_rope_base=None if rope.scaling is None and local_base == rope.base else local_base,
    )
    return with_layer_types(fields, shape, frozenset(layer for layer in range(shape.layers) if (layer + 1) % 4))


OLMO3 = Family(model_type="olmo3", read=_read_olmo3, weights=llama_weights)


def _read_olmoe(fields: ConfigFields) -> ModelShape:
    """The shape of an OLMoE from its config.json; defaults are transformers' own (OlmoeConfig)."""
    shape = read_llama_like(fields, "olmoe", max_positions=4096, norm_epsilon=1e-5)
    experts = fields.integer("num_experts", fields.take("num_local_experts", 64))
    fields.require("clip_qkv", [None], None)
    shape = with_experts(fields, shape, experts, shape.ffn_hidden, chosen=8, balance=0.01)
    return replace(shape, all_heads_norm=True)


def _olmoe_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table with norms of queries and keys, and the experts."""
    return (*llama_weights(shape), *expert_weights("mlp", gate="gate_proj", up="up_proj", down="down_proj"))


OLMOE = Family(model_type="olmoe", read=_read_olmoe, weights=_olmoe_weights)


def _read_exaone4(fields: ConfigFields) -> ModelShape:
    """The shape of an EXAONE 4 from its config.json; defaults are transformers' own (Exaone4Config)."""
    shape = read_llama_like(fields, "exaone4", max_positions=2048, key_value_heads=32, norm_epsilon=1e-5)
    window = fields.optional_integer("sliding_window", 4096)
    pattern = fields.take("sliding_window_pattern", 4)  # a period, or one as it is read: LLLG
    period = len(pattern) if isinstance(pattern, str) else pattern
    if not fields.has("layer_types") and (window is None or isinstance(pattern, str)):
        rule = "transformers makes no layer_types of it."
        fields.fault("sliding_window_pattern", pattern, rule, "State layer_types, full_attention or sliding_attention.")
    if window is None:
        period = 1  # transformers writes 0
    if type(period) is not int or period < 1:
        fields.fault("sliding_window_pattern", pattern, "must be a period such as 4 or LLLG.", "Mend config.json.")
        return shape
    shape = replace(shape, pre_norm=False, post_norm=True, query_key_norm=True, local_window=window)
    shape = with_layer_types(fields, shape, frozenset(layer for layer in range(shape.layers) if (layer + 1) % period))
    whole = frozenset(range(shape.layers)) - shape.local_layers
    shape = replace(shape, unturned_layers=whole if window else frozenset())
    if shape.unturned_layers and shape.turned_factor != 1:
        rule = "is not known beside layers without positions in a model that norms queries and keys."
        fields.fault("attention_factor of the RoPE scaling", shape.turned_factor, rule, "Use a model without it.")
    return shape


EXAONE4 = Family(model_type="exaone4", read=_read_exaone4, weights=llama_weights)
