"""Gemma 2: norms before and after attention and MLP, soft-capped scores and logits, every other layer local.

(arXiv:2408.00118, section 2.) Embeddings are multiplied by the root of the width, norms by 1 + their weight.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.olmo2 import post_norms
from megatron_cpt.families.weights import Rule, Tensor
from megatron_cpt.families.windows import read_layer_types


def read_gemma2(fields: ConfigFields) -> ModelShape:
    """The shape of a Gemma 2 from its config.json; defaults are transformers' own (Gemma2Config)."""
    fields.take("hidden_act")  # an older name, which transformers does not read
    fields.take("cache_implementation")  # of generation
    fields.require("hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh")
    fields.require("use_bidirectional_attention", [None, False], None)
    shape = read_llama_like(fields, "gemma2", max_positions=8192, key_value_heads=4, head_dim=256, tied_embeddings=True)
    window = fields.optional_integer("sliding_window", 4096)
    scalar = fields.positive("query_pre_attn_scalar", 256)
    return replace(
        shape,
        activation="gelu_tanh",
        post_norm=True,
        zero_centered_norms=True,
        attention_scale=scalar**-0.5,
        attention_soft_cap=fields.optional_positive("attn_logit_softcapping", 50.0),
        logit_soft_cap=fields.optional_positive("final_logit_softcapping", 30.0),
        embedding_scale=float(shape.hidden) ** 0.5,
        local_window=window,
        local_layers=read_local_layers(fields, shape.layers, period=2) if window else frozenset(),
    )


def read_local_layers(fields: ConfigFields, layers: int, period: int) -> frozenset[int]:
    """The layers that `layer_types` names local; where it is not written, all but the last of every `period`."""
    marked = read_layer_types(fields, layers)
    return frozenset(layer for layer in range(layers) if (layer + 1) % period) if marked is None else marked


def gemma2_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, whose norm before the MLP has another name, and the norms after attention and MLP."""
    layer = "model.layers.{layer}"
    before_mlp = "decoder.layers.{layer}.pre_mlp_layernorm.weight"
    renamed = (Tensor(f"{layer}.pre_feedforward_layernorm.weight", ("hidden",)),)
    return (
        *(replace(rule, tensors=renamed) if rule.names[0] == before_mlp else rule for rule in llama_weights(shape)),
        *post_norms(f"{layer}.post_attention_layernorm", f"{layer}.post_feedforward_layernorm"),
    )


GEMMA2 = Family(model_type="gemma2", read=read_gemma2, weights=gemma2_weights)
