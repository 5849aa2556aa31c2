"""Llama, Mistral and Mixtral.

Llama: RMSNorm before attention and MLP, rotary positions, grouped queries, gated SiLU MLP, no biases.
Mistral: a Llama with sliding-window attention (arXiv:2310.06825).
Mixtral: a Mistral whose MLPs are eight experts, two for each token (arXiv:2401.04088).
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape, expert_weights, read_chosen
from megatron_cpt.families.fields import ConfigFields, every_layer
from megatron_cpt.families.rope import Rope, YarnScaling, read_rope
from megatron_cpt.families.weights import (
    GatedUp,
    QueryKeyValue,
    Replicated,
    RowParallel,
    Rule,
    Tensor,
    VocabularyParallel,
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
    rope_base: float = 10_000.0,
    tied_embeddings: bool = False,
    rope: Rope | None = None,
) -> ModelShape:
    """The shape of a family whose config.json has a Llama's fields, and perhaps more.

    Args:
        family: its `model_type`.
        max_positions: transformers' default of `max_position_embeddings` in this family.
        key_value_heads: its default of `num_key_value_heads`; None: as many as query heads.
        head_dim: its default of `head_dim`; None: the width divided by the query heads.
        norm_epsilon, rope_base, tied_embeddings: its defaults of `rms_norm_eps`, `rope_theta` and
            `tie_word_embeddings`.
        rope: its rotary positions, where it writes them in a way of its own.
    """
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    query_groups = fields.optional_integer("num_key_value_heads", key_value_heads) or heads
    rope = rope or read_rope(fields, family, base=rope_base)
    shape = ModelShape(
        family=family,
        layers=fields.integer("num_hidden_layers"),
        hidden=hidden,
        ffn_hidden=fields.integer("intermediate_size"),
        heads=heads,
        query_groups=query_groups,
        head_dim=fields.optional_integer("head_dim", head_dim) or max(hidden // heads, 1),
        vocabulary=fields.integer("vocab_size"),
        max_positions=_read_positions(fields, rope, max_positions),
        norm_epsilon=fields.positive("rms_norm_eps", norm_epsilon),
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        tied_embeddings=fields.boolean("tie_word_embeddings", tied_embeddings),
    )
    if heads % query_groups:
        rule = f"must divide num_attention_heads ({heads})."
        fields.fault("num_key_value_heads", query_groups, rule, "Mend config.json.")
    if shape.head_dim % 2:
        fields.fault("head_dim", shape.head_dim, "must be even for rotary positions.", "Mend config.json.")
    fields.require("hidden_act", ["silu", "swish"], "silu")
    # Megatron-Core has no bias on the projection of attention's output without one on the MLP.
    fields.require("attention_bias", [False], False)
    fields.require("mlp_bias", [False], False)
    return shape


def _read_positions(fields: ConfigFields, rope: Rope, default: int) -> int:
    """`max_position_embeddings`, or what YaRN made of the original positions: folders state the one or the other."""
    stated = fields.integer("max_position_embeddings", default)
    return max(stated, rope.scaling.positions) if isinstance(rope.scaling, YarnScaling) else stated


def llama_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """The name table of a Llama, and of families that name the same weights so; a tied one has no output layer.

    The MLP is that of dense layers; experts are named in family.py.
    """
    layer, attention, mlp = (
        "model.layers.{layer}",
        "model.layers.{layer}.self_attn",
        "model.layers.{layer}.mlp",
    )
    embedding = Tensor("model.embed_tokens.weight", ("vocabulary", "hidden"))
    output = embedding if shape.tied_embeddings else Tensor("lm_head.weight", ("vocabulary", "hidden"))
    return (
        VocabularyParallel(("embedding.word_embeddings.weight",), (embedding,)),
        Replicated(
            (
                "decoder.layers.{layer}.input_layernorm.weight",
                "decoder.layers.{layer}.self_attention.linear_qkv.layer_norm_weight",
            ),
            (Tensor(f"{layer}.input_layernorm.weight", ("hidden",)),),
        ),
        QueryKeyValue(
            ("decoder.layers.{layer}.self_attention.linear_qkv.weight",),
            (
                Tensor(f"{attention}.q_proj.weight", ("query_width", "hidden")),
                Tensor(f"{attention}.k_proj.weight", ("key_value_width", "hidden")),
                Tensor(f"{attention}.v_proj.weight", ("key_value_width", "hidden")),
            ),
        ),
        RowParallel(
            ("decoder.layers.{layer}.self_attention.linear_proj.weight",),
            (Tensor(f"{attention}.o_proj.weight", ("hidden", "query_width")),),
        ),
        Replicated(
            (
                "decoder.layers.{layer}.pre_mlp_layernorm.weight",
                "decoder.layers.{layer}.mlp.linear_fc1.layer_norm_weight",
            ),
            (Tensor(f"{layer}.post_attention_layernorm.weight", ("hidden",)),),
        ),
        GatedUp(
            ("decoder.layers.{layer}.mlp.linear_fc1.weight",),
            (
                Tensor(f"{mlp}.gate_proj.weight", ("ffn_hidden", "hidden")),
                Tensor(f"{mlp}.up_proj.weight", ("ffn_hidden", "hidden")),
            ),
            layers="dense",
        ),
        RowParallel(
            ("decoder.layers.{layer}.mlp.linear_fc2.weight",),
            (Tensor(f"{mlp}.down_proj.weight", ("hidden", "ffn_hidden")),),
            layers="dense",
        ),
        Replicated(("decoder.final_layernorm.weight",), (Tensor("model.norm.weight", ("hidden",)),)),
        VocabularyParallel(("output_layer.weight",), (output,), exported=not shape.tied_embeddings),
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
