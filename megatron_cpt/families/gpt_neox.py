"""GPT-NeoX, and Pythia of its shape (arXiv:2204.06745, arXiv:2304.01373).

LayerNorm and biases everywhere, an MLP without a gate, GELU, rotary positions on a part of each head,
and, unless the config turns it off, attention and MLP side by side on the same input.
"""

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields, read_activation
from megatron_cpt.families.llama import check_turned
from megatron_cpt.families.rope import read_rope
from megatron_cpt.families.weights import (
    ColumnParallel,
    RowParallel,
    Rule,
    Tensor,
    VocabularyParallel,
    linear_rules,
    norm_rules,
)


def _read_gpt_neox(fields: ConfigFields) -> ModelShape:
    """The shape of a GPT-NeoX from its config.json; defaults are transformers' own (GPTNeoXConfig)."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    rope = read_rope(fields, "gpt_neox", 2048, "rotary_emb_base", "rotary_pct", share=0.25)
    shape = ModelShape(
        family="gpt_neox",
        layers=fields.integer("num_hidden_layers"),
        hidden=hidden,
        ffn_hidden=fields.integer("intermediate_size"),
        heads=heads,
        query_groups=heads,
        head_dim=max(hidden // heads, 1),
        vocabulary=fields.integer("vocab_size"),
        max_positions=rope.positions,
        norm_epsilon=fields.positive("layer_norm_eps", 1e-5),
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        rotary_share=rope.share,
        tied_embeddings=fields.boolean("tie_word_embeddings", False),
        normalization="LayerNorm",
        activation=read_activation(fields, "gelu"),
        gated_mlp=False,
        query_key_value_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        parallel_residual=fields.boolean("use_parallel_residual", True),
    )
    if hidden % heads:
        rule = f"must be a multiple of num_attention_heads ({heads})."
        fields.fault("hidden_size", hidden, rule, "Mend config.json.")
    check_turned(fields, shape, "rotary_pct")
    fields.require("attention_bias", [True], True)
    fields.take("classifier_dropout")  # of a classifier that is no part of a language model
    return shape


def _gpt_neox_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """The name table of a GPT-NeoX; its query_key_value is laid out as Megatron-Core's linear_qkv."""
    ours, layer = "decoder.layers.{layer}.", "gpt_neox.layers.{layer}"
    embedding = Tensor("gpt_neox.embed_in.weight", ("vocabulary", "hidden"))
    output = embedding if shape.tied_embeddings else Tensor("embed_out.weight", ("vocabulary", "hidden"))
    projections: tuple[tuple[type[Rule], str, str, str, str], ...] = (
        (
            ColumnParallel,
            "self_attention.linear_qkv",
            f"{layer}.attention.query_key_value",
            "query_key_value_width",
            "hidden",
        ),
        (RowParallel, "self_attention.linear_proj", f"{layer}.attention.dense", "hidden", "query_width"),
        (ColumnParallel, "mlp.linear_fc1", f"{layer}.mlp.dense_h_to_4h", "ffn_hidden", "hidden"),
        (RowParallel, "mlp.linear_fc2", f"{layer}.mlp.dense_4h_to_h", "hidden", "ffn_hidden"),
    )
    norms = (
        ("input_layernorm", "self_attention.linear_qkv", "input_layernorm"),
        ("pre_mlp_layernorm", "mlp.linear_fc1", "post_attention_layernorm"),
    )
    return (
        VocabularyParallel(("embedding.word_embeddings.weight",), (embedding,)),
        *(
            rule
            for name, linear, theirs in norms
            for rule in norm_rules(f"{layer}.{theirs}", f"{ours}{name}.", f"{ours}{linear}.layer_norm_", biased=True)
        ),
        *(
            rule
            for kind, name, theirs, rows, columns in projections
            for rule in linear_rules(kind, name, [(theirs, rows)], columns, biased=True)
        ),
        *norm_rules("gpt_neox.final_layer_norm", "decoder.final_layernorm.", biased=True),
        VocabularyParallel(("output_layer.weight",), (output,), exported=not shape.tied_embeddings),
    )


GPT_NEOX = Family(
    model_type="gpt_neox",
    read=_read_gpt_neox,
    weights=_gpt_neox_weights,
    # Older folders keep the causal mask, its fill value and the rotary frequencies.
    ignored_tensors=(
        "gpt_neox.layers.*.attention.bias",
        "gpt_neox.layers.*.attention.masked_bias",
        "gpt_neox.layers.*.attention.rotary_emb.inv_freq",
    ),
)
