"""Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values (arXiv:2407.10671, arXiv:2412.15115).

Qwen1.5 has the same `model_type` and is the same.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.weights import QueryKeyValue, Rule, Tensor
from megatron_cpt.families.windows import read_layer_types


def read_qwen2(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen2 from its config.json; defaults are transformers' own (Qwen2Config)."""
    shape = read_llama_like(fields, "qwen2", max_positions=32_768, key_value_heads=32)
    fields.require("use_mrope", [False], False)
    return read_window(fields, replace(shape, query_key_value_bias=True))


def read_window(fields: ConfigFields, shape: ModelShape) -> ModelShape:
    """The shape with the window of the layers that have one.

    `sliding_window` counts only with `use_sliding_window`, and then in the layers that `layer_types`
    marks; without it, in those from `max_window_layers` on.
    """
    window = fields.optional_integer("sliding_window", 4096)
    first = fields.take("max_window_layers", 28)
    marked = read_layer_types(fields, shape.layers)
    if not fields.boolean("use_sliding_window", False):
        if marked:
            rule = "not every layer has full attention, although use_sliding_window is off."
            fields.fault("layer_types", sorted(marked), rule, "Mend config.json.")
        return shape
    if not (isinstance(first, int) and first >= 0):
        fields.fault("max_window_layers", first, "must be a whole number of at least 0.", "Mend config.json.")
        return shape
    local = frozenset(range(first, shape.layers)) if marked is None else marked
    return replace(shape, local_window=window, local_layers=local) if window and local else shape


def qwen2_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and the biases."""
    attention = "model.layers.{layer}.self_attn"
    return (
        *llama_weights(shape),
        QueryKeyValue(
            ("decoder.layers.{layer}.self_attention.linear_qkv.bias",),
            (
                Tensor(f"{attention}.q_proj.bias", ("query_width",)),
                Tensor(f"{attention}.k_proj.bias", ("key_value_width",)),
                Tensor(f"{attention}.v_proj.bias", ("key_value_width",)),
            ),
        ),
    )


QWEN2 = Family(model_type="qwen2", read=read_qwen2, weights=qwen2_weights)
