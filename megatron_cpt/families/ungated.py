"""Llama's names with an MLP without a gate: Nemotron, StarCoder2 and Apertus.

Nemotron, and Minitron of its shape: zero-centred norms, squared ReLU, half of each head turned (arXiv:2402.16819,
arXiv:2407.14679). StarCoder2: LayerNorm, biases on every projection, GELU, a window in every layer (arXiv:2402.19173).
Apertus: xIELU, whose two parameters each layer learns, and a norm on each head's query and key (arXiv:2509.14233).
"""

from dataclasses import replace
from typing import Any

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields, every_layer
from megatron_cpt.families.llama import LayerNames, llama_weights, read_llama_like
from megatron_cpt.families.rope import read_rope
from megatron_cpt.families.weights import Replicated, Rule, Tensor


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


def _read_apertus(fields: ConfigFields) -> ModelShape:
    """The shape of an Apertus from its config.json; defaults are transformers' own (ApertusConfig)."""
    fields.require("hidden_act", ["xielu"], "xielu")
    if not fields.has("rope_scaling"):
        if fields.has("rope_theta") and not fields.has("rope_parameters"):
            # transformers 4 scales no positions, and 5 scales those of its own base.
            rule = "releases of transformers differ in what positions these are."
            fields.fault("rope_theta", fields.take("rope_theta"), rule, "State rope_parameters.")
        fields.assume("rope_parameters", _APERTUS_ROPE)
    shape = read_llama_like(fields, "apertus", 65_536, norm_epsilon=1e-5, rope_base=_APERTUS_ROPE["rope_theta"])
    return replace(shape, gated_mlp=False, activation="xielu", query_key_norm=True)


_APERTUS_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 12_000_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def _apertus_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table with other names of the norms, and the numbers of each layer's activation."""
    ours, theirs = "decoder.layers.{layer}.mlp.activation_func", "model.layers.{layer}.mlp.act_fn"
    fixed = [Tensor(f"{theirs}.{name}", (), constant) for name, constant in (("beta", 0.5), ("eps", -1e-6))]
    return (
        *llama_weights(shape, LayerNames(before_attention="attention_layernorm", before_mlp="feedforward_layernorm")),
        Replicated((f"{ours}.alpha_p",), (Tensor(f"{theirs}.alpha_p", ("one",)), *fixed)),
        Replicated((f"{ours}.alpha_n",), (Tensor(f"{theirs}.alpha_n", ("one",)),)),
    )


APERTUS = Family(model_type="apertus", read=_read_apertus, weights=_apertus_weights)
