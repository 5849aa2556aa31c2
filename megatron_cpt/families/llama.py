"""Llama, and what is a Llama but for a few fields: Mistral, Ministral, Ministral 3, Mixtral, Seed-OSS, SmolLM3.

Llama: RMSNorm before attention and MLP, rotary positions, grouped queries, gated SiLU MLP, no biases.
Mistral: a Llama with sliding-window attention (arXiv:2310.06825); Ministral: with windows in some layers; Ministral 3:
with YaRN, and queries that grow with their position beyond the original ones, as in Llama 4.
Mixtral: a Mistral whose MLPs are eight experts, two for each token (arXiv:2401.04088).
Seed-OSS: a Llama with biases on queries, keys and values.
SmolLM3: a Llama without rotary positions in every fourth layer (arXiv:2501.18795).
"""

from dataclasses import dataclass, replace

from megatron_cpt.families.family import Family, ModelShape, expert_weights, read_chosen
from megatron_cpt.families.fields import ConfigFields, every_layer, read_activation, read_layer_types
from megatron_cpt.families.rope import DynamicScaling, LongRopeScaling, Rope, read_rope
from megatron_cpt.families.weights import (
    ColumnParallel,
    GatedQueryKeyValue,
    GatedUp,
    JoinedGatedUp,
    JoinedQueryKeyValue,
    QueryKeyValue,
    RowParallel,
    Rule,
    Tensor,
    VocabularyParallel,
    linear_rules,
    norm_rules,
)


def _read_mixtral(fields: ConfigFields) -> ModelShape:
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


def _mixtral_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and the experts."""
    return (*llama_weights(shape), *expert_weights("block_sparse_moe", gate="w1", up="w3", down="w2"))


MIXTRAL = Family(model_type="mixtral", read=_read_mixtral, weights=_mixtral_weights)


def _read_llama(fields: ConfigFields) -> ModelShape:
    """The shape of a Llama from its config.json; defaults are transformers' own (LlamaConfig)."""
    return read_llama_like(fields, "llama", max_positions=2048)


def read_llama_like(
    fields: ConfigFields,
    family: str,
    max_positions: int,
    key_value_heads: int | None = None,
    head_dim: int | None = None,
    norm_epsilon: float = 1e-6,
    norm_epsilon_name: str = "rms_norm_eps",
    rope_base: float = 10_000.0,
    tied_embeddings: bool = False,
    attention_bias: bool = False,
    activation: str = "silu",
    rope: Rope | None = None,
) -> ModelShape:
    """The shape of a family whose config.json has a Llama's fields, and perhaps more.

    Args:
        family: its `model_type`.
        max_positions: transformers' default of `max_position_embeddings` in this family.
        key_value_heads: its default of `num_key_value_heads`; None: as many as query heads.
        head_dim: its default of `head_dim`; None: the width divided by the query heads.
        norm_epsilon_name: its name of `rms_norm_eps`.
        norm_epsilon, rope_base, tied_embeddings, attention_bias, activation: its defaults of `rms_norm_eps`,
            `rope_theta`, `tie_word_embeddings`, `attention_bias` and `hidden_act`.
        rope: its rotary positions, where it writes them in a way of its own.
    """
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    query_groups = fields.optional_integer("num_key_value_heads", key_value_heads) or heads
    rope = rope or read_rope(fields, family, max_positions, base=rope_base)
    biased = fields.boolean("attention_bias", attention_bias)
    shape = ModelShape(
        family=family,
        layers=fields.integer("num_hidden_layers"),
        hidden=hidden,
        ffn_hidden=fields.integer("intermediate_size"),
        heads=heads,
        query_groups=query_groups,
        head_dim=fields.optional_integer("head_dim", head_dim) or max(hidden // heads, 1),
        vocabulary=fields.integer("vocab_size"),
        max_positions=rope.positions,
        norm_epsilon=fields.positive(norm_epsilon_name, norm_epsilon),
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        rotary_share=rope.share,
        tied_embeddings=fields.boolean("tie_word_embeddings", tied_embeddings),
        activation=read_activation(fields, activation),
        query_key_value_bias=biased,
        attention_output_bias=biased,
        mlp_bias=fields.boolean("mlp_bias", False),
    )
    if heads % query_groups:
        rule = f"must divide num_attention_heads ({heads})."
        fields.fault("num_key_value_heads", query_groups, rule, "Mend config.json.")
    check_turned(fields, shape)
    return shape


def check_turned(fields: ConfigFields, shape: ModelShape, share_name: str = "partial_rotary_factor") -> None:
    """Notes a fault where rotary positions do not turn pairs of dimensions, or are scaled for another number of them.

    Args:
        share_name: the field that states the part of a head that is turned.
    """
    if shape.rotary_share == 1 and shape.head_dim % 2:
        fields.fault("head_dim", shape.head_dim, "must be even for rotary positions.", "Mend config.json.")
    elif shape.rotary_share > 1 or shape.turned_width < 2 or shape.turned_width % 2:
        rule = f"must turn an even number of the {shape.head_dim} dimensions of a head."
        fields.fault(share_name, shape.rotary_share, rule, "Mend config.json.")
    if isinstance(shape.rope_scaling, DynamicScaling) and shape.turned_width == 2:
        rule = "dynamic scaling needs more than 2 dimensions of a head that are turned."
        fields.fault(share_name, shape.rotary_share, rule, "Mend config.json.")
    if isinstance(scaling := shape.rope_scaling, LongRopeScaling):
        pairs = shape.turned_width // 2
        for name, factors in (("short_factor", scaling.short), ("long_factor", scaling.long)):
            if factors and len(factors) != pairs:
                rule = f"must have one number for each of {pairs} pairs of dimensions that are turned."
                fields.fault(name, f"{len(factors)} numbers", rule, "Mend config.json.")


@dataclass(frozen=True, kw_only=True)
class LayerNames:
    """What Hugging Face calls the parts of a layer. The defaults are a Llama's, and an OLMo's norms."""

    before_attention: str = "input_layernorm"
    """The norm before attention, if there is one."""
    after_attention: str = "post_attention_layernorm"
    """The norm after it, if there is one."""
    before_mlp: str = "post_attention_layernorm"
    """The norm before the MLP, if there is one."""
    after_mlp: str = "post_feedforward_layernorm"
    """The norm after it, if there is one."""
    query_key_value: str | None = None
    """Queries, keys and values, where they are one tensor."""
    gate: str = "mlp.gate_proj"
    """The gate of the MLP, if there is one."""
    up: str = "mlp.up_proj"
    """The MLP's first matrix."""
    gate_and_up: str | None = None
    """Both, where they are one tensor."""
    down: str = "mlp.down_proj"
    """The MLP's last matrix."""


def llama_weights(shape: ModelShape, names: LayerNames | None = None) -> tuple[Rule, ...]:
    """The name table of a Llama, and of families that name the same weights so; the shape says which there are.

    The MLP is that of dense layers; experts are named in family.py. A tied model has no output layer.
    """
    names = names or LayerNames()
    embedding = Tensor("model.embed_tokens.weight", ("vocabulary", "hidden"))
    output = embedding if shape.tied_embeddings else Tensor("lm_head.weight", ("vocabulary", "hidden"))
    with_bias = shape.normalization == "LayerNorm"
    return (
        VocabularyParallel(("embedding.word_embeddings.weight",), (embedding,)),
        *_norms(shape, names),
        *_attention(shape, names),
        *_mlp(shape, names),
        *norm_rules("model.norm", "decoder.final_layernorm.", biased=with_bias),
        VocabularyParallel(("output_layer.weight",), (output,), exported=not shape.tied_embeddings),
    )


def _norms(shape: ModelShape, names: LayerNames) -> tuple[Rule, ...]:
    """The norms of a layer: before and after attention and MLP, and of queries and keys."""
    ours, theirs, biased = "decoder.layers.{layer}.", "model.layers.{layer}.", shape.normalization == "LayerNorm"
    rules: tuple[Rule, ...] = ()
    if shape.pre_norm:
        for name, linear, before in (
            ("input_layernorm", "self_attention.linear_qkv", names.before_attention),
            ("pre_mlp_layernorm", "mlp.linear_fc1", names.before_mlp),
        ):
            rules += norm_rules(theirs + before, f"{ours}{name}.", f"{ours}{linear}.layer_norm_", biased=biased)
    if shape.post_norm:
        rules += norm_rules(theirs + names.after_attention, f"{ours}post_attention_layernorm.", biased=biased)
        rules += norm_rules(theirs + names.after_mlp, f"{ours}post_mlp_layernorm.", biased=biased)
    for letter, width in (("q", "query_width"), ("k", "key_value_width")):
        name, norm = f"{ours}self_attention.{letter}_layernorm.", f"{theirs}self_attn.{letter}_norm"
        if shape.query_key_norm:  # all heads share one weight
            rules += norm_rules(norm, name, size="head_dim", layers="attention")
        elif shape.all_heads_norm:
            rules += (ColumnParallel((f"{name}weight",), (Tensor(f"{norm}.weight", (width,)),)),)
    return rules


def _attention(shape: ModelShape, names: LayerNames) -> tuple[Rule, ...]:
    """The projections of attention."""
    if shape.latent_attention:
        return _latent_attention(shape)
    layer = "model.layers.{layer}"
    widths = (("q_proj", "query_width"), ("k_proj", "key_value_width"), ("v_proj", "key_value_width"))
    kind: type[Rule] = QueryKeyValue
    if shape.attention_gate:
        kind, widths = GatedQueryKeyValue, (("q_proj", "query_and_gate_width"), *widths[1:])
    matrices = [(f"{layer}.self_attn.{name}", rows) for name, rows in widths]
    if names.query_key_value is not None:
        kind, matrices = JoinedQueryKeyValue, [(f"{layer}.{names.query_key_value}", "query_key_value_width")]
    output = [(f"{layer}.self_attn.o_proj", "hidden")]
    biases = shape.query_key_value_bias, shape.attention_output_bias
    return (
        *linear_rules(kind, "self_attention.linear_qkv", matrices, "hidden", biases[0], "attention"),
        *linear_rules(RowParallel, "self_attention.linear_proj", output, "query_width", biases[1], "attention"),
    )


def _latent_attention(shape: ModelShape) -> tuple[Rule, ...]:
    """The projections of latent attention, and the norms of the latent vectors."""
    ours, theirs = "self_attention", "model.layers.{layer}.self_attn"

    def matrix(name: str, linear: str, rows: str, columns: str, kind: type[Rule] = ColumnParallel) -> tuple[Rule, ...]:
        return linear_rules(kind, f"{ours}.{linear}", [(f"{theirs}.{name}", rows)], columns)

    def norm(name: str, of: str, size: str) -> tuple[Rule, ...]:
        return norm_rules(f"{theirs}.{name}", f"decoder.layers.{{layer}}.{ours}.{of}.", size=size)

    queries = matrix("q_proj", "linear_q_proj", "query_width", "hidden")
    if shape.query_latent:
        queries = (
            *matrix("q_a_proj", "linear_q_down_proj", "query_latent", "hidden"),
            *norm("q_a_layernorm", "q_layernorm", "query_latent"),
            *matrix("q_b_proj", "linear_q_up_proj", "query_width", "query_latent"),
        )
    return (
        *queries,
        *matrix("kv_a_proj_with_mqa", "linear_kv_down_proj", "latent_and_shared_key", "hidden"),
        *norm("kv_a_layernorm", "kv_layernorm", "key_value_latent"),
        *matrix("kv_b_proj", "linear_kv_up_proj", "own_key_and_value_width", "key_value_latent"),
        *matrix("o_proj", "linear_proj", "hidden", "value_width", RowParallel),
    )


def _mlp(shape: ModelShape, names: LayerNames) -> tuple[Rule, ...]:
    """The projections of a dense MLP."""
    theirs = "model.layers.{layer}."
    kind: type[Rule] = ColumnParallel
    up = [(theirs + names.up, "ffn_hidden")]
    if names.gate_and_up is not None:
        kind, up = JoinedGatedUp, [(theirs + names.gate_and_up, "gate_and_up")]
    elif shape.gated_mlp:
        kind, up = GatedUp, [(theirs + names.gate, "ffn_hidden"), *up]
    down = [(theirs + names.down, "hidden")]
    return (
        *linear_rules(kind, "mlp.linear_fc1", up, "hidden", shape.mlp_bias, layers="dense"),
        *linear_rules(RowParallel, "mlp.linear_fc2", down, "ffn_hidden", shape.mlp_bias, layers="dense"),
    )


LLAMA = Family(
    model_type="llama",
    read=_read_llama,
    weights=llama_weights,
    # Folders of old keep the rotary frequencies, which the config implies.
    ignored_tensors=("model.layers.*.self_attn.rotary_emb.inv_freq",),
)


def _read_mistral(fields: ConfigFields) -> ModelShape:
    """The shape of a Mistral from its config.json; defaults are transformers' own (MistralConfig).

    A window that is not mentioned is one of 4,096 tokens; `null` is none.
    """
    window = fields.optional_integer("sliding_window", 4096)
    shape = read_llama_like(fields, "mistral", max_positions=131_072, key_value_heads=8)
    return replace(shape, local_window=window, local_layers=every_layer(window, shape.layers))


MISTRAL = Family(model_type="mistral", read=_read_mistral, weights=llama_weights)


def _read_ministral(fields: ConfigFields) -> ModelShape:
    """The shape of a Ministral from its config.json; defaults are transformers' own (MinistralConfig)."""
    if not fields.has("head_dim"):
        fields.fault("head_dim", None, "transformers needs it in a Ministral.", "State it: 128 in those of Mistral AI.")
    shape = replace(_read_mistral(fields), family="ministral")
    if shape.local_window is None:
        rule = "a Ministral has windows; transformers does not load one without."
        fields.fault("sliding_window", None, rule, "State one, or make it a `mistral` (model_type).")
    return with_layer_types(fields, shape, shape.local_layers)


def with_layer_types(fields: ConfigFields, shape: ModelShape, unmarked: frozenset[int]) -> ModelShape:
    """The shape with the local layers that `layer_types` marks.

    Args:
        shape: with the window that local layers have; None: no layer may have one.
        unmarked: the local layers where the field is not there.
    """
    marked = read_layer_types(fields, shape.layers)
    if marked and shape.local_window is None:
        rule = "layers have a window, and sliding_window does not say how long it is."
        fields.fault("layer_types", "sliding_attention", rule, "Mend config.json.")
    local = unmarked if marked is None else marked
    return replace(shape, local_layers=local if shape.local_window else frozenset())


MINISTRAL = Family(model_type="ministral", read=_read_ministral, weights=llama_weights)


def _read_ministral3(fields: ConfigFields) -> ModelShape:
    """The shape of a Ministral 3 from its config.json; defaults are transformers' own (Ministral3Config)."""
    if not fields.has("rope_scaling"):
        fields.assume("rope_parameters", _MINISTRAL3_ROPE)
    window = fields.optional_integer("sliding_window", None)
    rope = read_rope(fields, "ministral3", 262_144, base=1e6, grows_queries=True)
    shape = read_llama_like(
        fields, "ministral3", 262_144, key_value_heads=8, head_dim=128, norm_epsilon=1e-5, rope=rope
    )
    return replace(
        shape,
        local_window=window,
        local_layers=every_layer(window, shape.layers),
        temperature_beta=rope.temperature_beta,
        temperature_positions=rope.temperature_positions,
    )


_MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
MINISTRAL3 = Family(model_type="ministral3", read=_read_ministral3, weights=llama_weights)


def _read_seed_oss(fields: ConfigFields) -> ModelShape:
    """The shape of a Seed-OSS from its config.json; defaults are transformers' own (SeedOssConfig)."""
    fields.take("residual_dropout")  # of training
    shape = read_llama_like(
        fields, "seed_oss", max_positions=524_288, key_value_heads=8, head_dim=128, attention_bias=True
    )
    return replace(shape, attention_output_bias=fields.boolean("attention_out_bias", False))


SEED_OSS = Family(model_type="seed_oss", read=_read_seed_oss, weights=llama_weights)


def _read_smollm3(fields: ConfigFields) -> ModelShape:
    """The shape of a SmolLM3 from its config.json; defaults are transformers' own (SmolLM3Config)."""
    shape = read_llama_like(
        fields, "smollm3", max_positions=32_768, key_value_heads=4, rope_base=2e6, tied_embeddings=True
    )
    interval = fields.integer("no_rope_layer_interval", 4)
    turned = fields.take("no_rope_layers", [int((layer + 1) % interval > 0) for layer in range(shape.layers)])
    if not (isinstance(turned, list) and len(turned) >= shape.layers and all(mark in (0, 1) for mark in turned)):
        rule = f"must have 1 (rotary positions) or 0 (none) for each of {shape.layers} layers."
        fields.fault("no_rope_layers", turned, rule, "Mend config.json.")
        return shape
    unturned = frozenset(layer for layer in range(shape.layers) if not turned[layer])
    window = fields.optional_integer("sliding_window", None)
    # Only where layer_types is not written does use_sliding_window count.
    windowed = unturned if fields.boolean("use_sliding_window", False) else frozenset()
    return with_layer_types(fields, replace(shape, unturned_layers=unturned, local_window=window), windowed)


SMOLLM3 = Family(model_type="smollm3", read=_read_smollm3, weights=llama_weights)
