"""Llama's names with LayerNorm and an MLP without a gate: Nemotron and StarCoder2.

Nemotron, and Minitron of its shape: zero-centred norms, squared ReLU, half of each head turned (arXiv:2402.16819,
arXiv:2407.14679). StarCoder2: biases on every projection, GELU, a window in every layer (arXiv:2402.19173).
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields, every_layer
from megatron_cpt.families.llama import LayerNames, llama_weights, read_llama_like
from megatron_cpt.families.rope import read_rope
from megatron_cpt.families.weights import Rule


def _read_nemotron(fields: ConfigFields) -> ModelShape:
    """The shape of a Nemotron from its config.json; defaults are transformers' own (NemotronConfig)."""
    rope = read_rope(fields, "nemotron", 4096, share_name="partial_rotary_factor", share=0.5)
    shape = read_llama_like(
        fields, "nemotron", 4096, norm_epsilon=1e-5, norm_epsilon_name="norm_eps", activation="relu2", rope=rope
    )
    return replace(shape, normalization="LayerNorm", zero_centered_norms=True, gated_mlp=False)


NEMOTRON = Family(model_type="nemotron", read=_read_nemotron, weights=llama_weights)


def _read_starcoder2(fields: ConfigFields) -> ModelShape:
    """The shape of a StarCoder2 from its config.json; defaults are transformers' own (Starcoder2Config)."""
    for name in ("residual_dropout", "embedding_dropout"):
        fields.take(name)  # of training
    shape = read_llama_like(
        fields,
        "starcoder2",
        4096,
        key_value_heads=2,
        norm_epsilon=1e-5,
        norm_epsilon_name="norm_epsilon",
        tied_embeddings=True,
        activation="gelu_pytorch_tanh",
    )
    window, biased = fields.optional_integer("sliding_window", None), fields.boolean("use_bias", True)
    return replace(
        shape,
        normalization="LayerNorm",
        gated_mlp=False,
        query_key_value_bias=biased,
        attention_output_bias=biased,
        mlp_bias=biased,
        local_window=window,
        local_layers=every_layer(window, shape.layers),
    )


def _starcoder2_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table with other names in the MLP."""
    return llama_weights(shape, LayerNames(up="mlp.c_fc", down="mlp.c_proj"))


STARCODER2 = Family(model_type="starcoder2", read=_read_starcoder2, weights=_starcoder2_weights)
