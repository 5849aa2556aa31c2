"""GPT-NeoX, and Pythia of its shape (arXiv:2204.06745, arXiv:2304.01373).

LayerNorm and biases everywhere, an MLP without a gate, GELU, rotary positions on a part of each head,
and, unless the config turns it off, attention and MLP side by side on the same input.
"""

from typing import Literal

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.rope import YarnScaling, read_rope
from megatron_cpt.families.weights import ColumnParallel, Replicated, RowParallel, Rule, Tensor, VocabularyParallel

# transformers' names of activations; three of them are one approximation.
_ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _read_gpt_neox(fields: ConfigFields) -> ModelShape:
    """The shape of a GPT-NeoX from its config.json; defaults are transformers' own (GPTNeoXConfig)."""
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    rope = read_rope(fields, "gpt_neox", "rotary_emb_base", "rotary_pct", share=0.25)
    activation = fields.take("hidden_act", "gelu")
    if activation not in list(_ACTIVATIONS):  # a list: JSON may hold what no dictionary can be asked for
        known = " or ".join(map(repr, _ACTIVATIONS))
        fields.fault("hidden_act", activation, f"only {known} is supported.", "Use a model that has it so.")
    shape = ModelShape(
        family="gpt_neox",
        layers=fields.integer("num_hidden_layers"),
        hidden=hidden,
        ffn_hidden=fields.integer("intermediate_size"),
        heads=heads,
        query_groups=heads,
        head_dim=max(hidden // heads, 1),
        vocabulary=fields.integer("vocab_size"),
        max_positions=fields.integer("max_position_embeddings", 2048),
        norm_epsilon=fields.positive("layer_norm_eps", 1e-5),
        rope_base=rope.base,
        rope_scaling=rope.scaling,
        rotary_share=rope.share,
        tied_embeddings=fields.boolean("tie_word_embeddings", False),
        normalization="LayerNorm",
        activation=_ACTIVATIONS.get(str(activation), "gelu"),
        gated_mlp=False,
        linear_bias=True,
        parallel_residual=fields.boolean("use_parallel_residual", True),
    )
    if hidden % heads:
        rule = f"must be a multiple of num_attention_heads ({heads})."
        fields.fault("hidden_size", hidden, rule, "Mend config.json.")
    turned = int(shape.head_dim * rope.share)
    if rope.share > 1 or turned < 2 or turned % 2:
        rule = f"must turn an even number of the {shape.head_dim} dimensions of a head."
        fields.fault("rotary_pct", rope.share, rule, "Mend config.json.")
    if isinstance(rope.scaling, YarnScaling) and turned < shape.head_dim:
        rule = "YaRN multiplies what is turned, and here a part of each head is not."
        fields.fault("rope_type", "yarn", rule, "Use a model without this kind of RoPE scaling.")
    fields.require("attention_bias", [True], True)
    fields.take("classifier_dropout")  # of a classifier that is no part of a language model
    return shape


def _gpt_neox_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """The name table of a GPT-NeoX; its query_key_value is laid out as Megatron-Core's linear_qkv."""
    layer = "gpt_neox.layers.{layer}"
    embedding = Tensor("gpt_neox.embed_in.weight", ("vocabulary", "hidden"))
    output = embedding if shape.tied_embeddings else Tensor("embed_out.weight", ("vocabulary", "hidden"))
    return (
        VocabularyParallel(("embedding.word_embeddings.weight",), (embedding,)),
        *_norm("input_layernorm", "self_attention.linear_qkv", f"{layer}.input_layernorm"),
        *_column(
            "self_attention.linear_qkv", f"{layer}.attention.query_key_value", ("query_key_value_width", "hidden")
        ),
        *_row("self_attention.linear_proj", f"{layer}.attention.dense", ("hidden", "query_width")),
        *_norm("pre_mlp_layernorm", "mlp.linear_fc1", f"{layer}.post_attention_layernorm"),
        *_column("mlp.linear_fc1", f"{layer}.mlp.dense_h_to_4h", ("ffn_hidden", "hidden")),
        *_row("mlp.linear_fc2", f"{layer}.mlp.dense_4h_to_h", ("hidden", "ffn_hidden")),
        *(
            Replicated(
                (f"decoder.final_layernorm.{part}",), (Tensor(f"gpt_neox.final_layer_norm.{part}", ("hidden",)),)
            )
            for part in ("weight", "bias")
        ),
        VocabularyParallel(("output_layer.weight",), (output,), exported=not shape.tied_embeddings),
    )


def _norm(name: str, next_linear: str, theirs: str) -> tuple[Rule, ...]:
    # Transformer Engine keeps a norm's weights in the linear layer that follows.
    ours = "decoder.layers.{layer}."
    return tuple(
        Replicated(
            (f"{ours}{name}.{part}", f"{ours}{next_linear}.layer_norm_{part}"),
            (Tensor(f"{theirs}.{part}", ("hidden",)),),
        )
        for part in ("weight", "bias")
    )


def _column(name: str, theirs: str, size: tuple[str, str]) -> tuple[Rule, ...]:
    return (
        ColumnParallel((f"decoder.layers.{{layer}}.{name}.weight",), (Tensor(f"{theirs}.weight", size),)),
        ColumnParallel((f"decoder.layers.{{layer}}.{name}.bias",), (Tensor(f"{theirs}.bias", size[:1]),)),
    )


def _row(name: str, theirs: str, size: tuple[str, str]) -> tuple[Rule, ...]:
    # The bias is added once, after the ranks' products are summed.
    return (
        RowParallel((f"decoder.layers.{{layer}}.{name}.weight",), (Tensor(f"{theirs}.weight", size),)),
        Replicated((f"decoder.layers.{{layer}}.{name}.bias",), (Tensor(f"{theirs}.bias", size[:1]),)),
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
