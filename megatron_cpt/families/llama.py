"""Llama: RMSNorm before attention and MLP, rotary positions, grouped queries, gated SiLU MLP, no biases.

Llama 1, 2, 3 and 3.x (with their RoPE scaling), and models of the same shape under `model_type: llama`,
such as TinyLlama and OpenLLaMA (arXiv:2302.13971, arXiv:2407.21783).
"""

from typing import Any

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.weights import (
    GatedUp,
    QueryKeyValue,
    Replicated,
    RowParallel,
    Rule,
    Tensor,
    VocabularyParallel,
)

# The one rescaling that Megatron-Core's RotaryEmbedding knows, with these numbers built in.
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_llama(fields: ConfigFields) -> ModelShape:
    """The shape of a Llama from its config.json; defaults are transformers' own (LlamaConfig)."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    query_groups = fields.integer("num_key_value_heads", heads)
    max_positions = fields.integer("max_position_embeddings", 2048)
    rope_base, rope_scaling = read_rope(fields)
    shape = ModelShape(
        family="llama",
        layers=fields.integer("num_hidden_layers"),
        hidden=hidden,
        ffn_hidden=fields.integer("intermediate_size"),
        heads=heads,
        query_groups=query_groups,
        head_dim=fields.integer("head_dim", max(hidden // heads, 1)),
        vocabulary=fields.integer("vocab_size"),
        max_positions=max_positions,
        norm_epsilon=fields.positive("rms_norm_eps", 1e-6),
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        tied_embeddings=fields.boolean("tie_word_embeddings", False),
        dtype=fields.take("dtype", fields.take("torch_dtype")),
    )
    if heads % query_groups:
        rule = f"must divide num_attention_heads ({heads})."
        fields.fault("num_key_value_heads", query_groups, rule, "Mend config.json.")
    if shape.head_dim % 2:
        fields.fault("head_dim", shape.head_dim, "must be even for rotary positions.", "Mend config.json.")
    fields.require("hidden_act", ["silu", "swish"], "silu")
    fields.require("attention_bias", [False], False)
    fields.require("mlp_bias", [False], False)
    return shape


def read_rope(fields: ConfigFields) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of the rotary positions, as transformers 5 (`rope_parameters`) or 4 writes them."""
    outer_base = fields.positive("rope_theta", 10_000.0)
    older, newer = fields.take("rope_scaling", {}), fields.take("rope_parameters", {})
    if older and newer:
        rule = "rope_scaling and rope_parameters are both given, and say it twice."
        fields.fault("rope_scaling", older, rule, "Take rope_scaling out of config.json.")
    name, given = ("rope_parameters", newer) if newer else ("rope_scaling", older)
    if not isinstance(given, dict):
        fields.fault(name, given, "must be an object.", "Mend config.json.")
        return outer_base, None
    inner = ConfigFields(f"{fields.path}: {name}", given)
    base = inner.positive("rope_theta", outer_base)
    legacy_kind = inner.take("type", "default")
    kind = inner.take("rope_type", legacy_kind)
    inner.require("partial_rotary_factor", [1, 1.0], 1.0)
    scaling = _read_scaling(inner, kind)
    if not inner.faults:  # the fields of a kind that is refused need no faults of their own
        inner.refuse_left("llama")
    fields.faults += inner.faults
    return base, scaling


def _read_scaling(fields: ConfigFields, kind: str) -> dict[str, Any] | None:
    if kind == "default":
        return None
    if kind != "llama3":
        fields.fault(
            "rope_type",
            kind,
            "only 'default' and 'llama3' can be computed by Megatron-Core's GPTModel.",
            "Use a model without this kind of RoPE scaling.",
        )
        return None
    for name, built_in in LLAMA3_SCALING.items():
        fields.require(name, [built_in], None)
    return {"rope_type": "llama3", "factor": fields.positive("factor", 8.0), **LLAMA3_SCALING}


def llama_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """The name table of a Llama; a tied one has no output layer of its own."""
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
        ),
        RowParallel(
            ("decoder.layers.{layer}.mlp.linear_fc2.weight",),
            (Tensor(f"{mlp}.down_proj.weight", ("hidden", "ffn_hidden")),),
        ),
        Replicated(("decoder.final_layernorm.weight",), (Tensor("model.norm.weight", ("hidden",)),)),
        VocabularyParallel(("output_layer.weight",), (output,), exported=not shape.tied_embeddings),
    )


LLAMA = Family(
    model_type="llama",
    read=read_llama,
    weights=llama_weights,
    # Folders of old keep the rotary frequencies, which the config implies.
    ignored_tensors=("model.layers.*.self_attn.rotary_emb.inv_freq",),
)
