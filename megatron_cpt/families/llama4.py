"""Llama 4: Scout, Maverick, and dense models of the same kind.

Layers with rotary positions attend within chunks of a sequence and turn neighbouring dimensions of a head together.
With `use_qk_norm` their queries and keys are divided by their root mean square. Every fourth layer has no rotary
positions (NoPE, arXiv:2501.18795): it sees the whole sequence, and its queries grow with their position
(arXiv:2501.19399). Experts: one for each token, by the sigmoid of its router's logit, which multiplies what the expert
reads; and one more that every token meets. Published folders hold those of a layer in one tensor, each matrix turned.
In a Maverick every other layer has a dense MLP.
"""

from collections.abc import Sequence
from dataclasses import replace

from megatron_cpt.families.family import (
    Family,
    ModelShape,
    expert_stacks,
    expert_weights,
    read_chosen,
    shared_expert_weights,
)
from megatron_cpt.families.fields import ConfigFields, read_layer_types
from megatron_cpt.families.llama import LayerNames, llama_weights, read_llama_like
from megatron_cpt.families.rope import read_rope
from megatron_cpt.families.weights import Rule

_BLOCK = "feed_forward"
_NAMES = LayerNames(gate=f"{_BLOCK}.gate_proj", up=f"{_BLOCK}.up_proj", down=f"{_BLOCK}.down_proj")


def _read_llama4(fields: ConfigFields) -> ModelShape:
    """The shape of a Llama 4 from its config.json; defaults are transformers' own (Llama4TextConfig)."""
    rope = read_rope(fields, "llama4_text", 131_072, base=500_000.0)
    shape = read_llama_like(
        fields, "llama4_text", 131_072, key_value_heads=8, head_dim=128, norm_epsilon=1e-5, rope=rope
    )
    width = shape.ffn_hidden
    shape = replace(
        shape,
        rotary_interleaved=True,
        query_key_l2_norm=fields.boolean("use_qk_norm", True),
        ffn_hidden=fields.integer("intermediate_size_mlp", 16_384),
    )
    if shape.turned_factor != 1:
        # Where queries and keys are divided by their size, transformers does so after it has multiplied by this.
        rule = "a Llama 4 with a factor of what is turned is not supported."
        remedy = "State attention_factor: 1.0, or use another kind of scaling."
        fields.fault("attention_factor of the RoPE scaling", shape.turned_factor, rule, remedy)
    return _with_experts(fields, _with_temperature(fields, _with_chunks(fields, shape)), width)


def _with_chunks(fields: ConfigFields, shape: ModelShape) -> ModelShape:
    """The shape with the layers that attend in chunks, and those without rotary positions."""
    chunk = fields.optional_integer("attention_chunk_size", 8192)
    if chunk is None:
        rule = "a Llama 4 attends in chunks; transformers runs none without."
        fields.fault("attention_chunk_size", None, rule, "State one: 8192 in those of Meta.")
    interval = fields.integer("no_rope_layer_interval", 4)
    # An empty list is none, in transformers and in published folders.
    turned = fields.take("no_rope_layers") or [int((layer + 1) % interval > 0) for layer in range(shape.layers)]
    kinds = read_layer_types(fields, shape.layers, ("full_attention", "chunked_attention"))
    if not _marks_layers(turned, shape.layers, longer=kinds is not None):
        rule = f"must have 1 (rotary positions) or 0 (none) for each of {shape.layers} layers."
        fields.fault("no_rope_layers", turned, rule, "Mend config.json.")
        return shape
    with_rope = frozenset(layer for layer in range(shape.layers) if turned[layer])
    return replace(
        shape,
        unturned_layers=frozenset(range(shape.layers)) - with_rope,
        local_chunk=chunk,
        local_layers=with_rope if kinds is None else kinds,
    )


def _marks_layers(marks: object, layers: int, longer: bool) -> bool:
    """Whether marks are a list of 0 and 1 for each layer, or for more of them where that is allowed."""
    if not isinstance(marks, list) or not all(type(mark) is int and mark in (0, 1) for mark in marks):
        return False
    return len(marks) >= layers if longer else len(marks) == layers


def _with_temperature(fields: ConfigFields, shape: ModelShape) -> ModelShape:
    """The shape with the factor of queries in layers without rotary positions."""
    tuned = fields.take("attn_temperature_tuning", True)
    if not isinstance(tuned, bool):
        rule = "must be true or false; transformers 5 does not load any other."
        fields.fault("attn_temperature_tuning", tuned, rule, "State true where older folders have 4, and false for 0.")
    return replace(
        shape,
        temperature_beta=fields.not_negative("attn_scale", 0.1) * (tuned is True),
        temperature_positions=fields.integer("floor_scale", 8192),
        temperature_first=1,
        temperature_layers=shape.unturned_layers,
    )


def _with_experts(fields: ConfigFields, shape: ModelShape, width: int) -> ModelShape:
    """The shape with experts in the layers that have some, if any.

    Args:
        width: inside one expert, and inside the one that every token meets.
    """
    sparse = _read_sparse_layers(fields, shape.layers)
    fields.require("router_jitter_noise", [0, 0.0], 0.0)
    fields.take("output_router_logits")  # what transformers returns beside the logits
    balance = fields.not_negative("router_aux_loss_coef", 0.001)
    if not sparse:  # transformers builds no experts, however many there are said to be
        for name in ("num_local_experts", "num_experts_per_tok"):
            fields.take(name)
        return shape
    experts = fields.integer("num_local_experts", 16)
    chosen = read_chosen(fields, experts, 1)
    if 1 < chosen <= experts:
        rule = "Megatron-Core multiplies what experts read where a token is sent to one of them alone."
        fields.fault("num_experts_per_tok", chosen, rule, "Use a model with 1: all published ones of this family.")
    return replace(
        shape,
        experts=experts,
        experts_per_token=chosen,
        expert_ffn_hidden=width,
        shared_expert_ffn_hidden=width,
        dense_layers=frozenset(range(shape.layers)).difference(sparse),
        router_score="sigmoid",
        router_scales_inputs=True,
        router_balance=balance,
    )


def _read_sparse_layers(fields: ConfigFields, layers: int) -> Sequence[int]:
    """Layers with experts: those of `moe_layers`, else every `interleave_moe_layer_step`-th."""
    step, named = fields.take("interleave_moe_layer_step", 1), fields.take("moe_layers")
    if named is None:
        if type(step) is int and step >= 1:
            return range(step - 1, layers, step)
        rule = "must be a whole number of at least 1 where moe_layers names no layers."
        fields.fault("interleave_moe_layer_step", step, rule, "Mend config.json.")
    elif isinstance(named, list) and all(type(layer) is int and 0 <= layer < layers for layer in named):
        return named
    else:
        rule = f"must be a list of layers, counted from 0, of which there are {layers}."
        fields.fault("moe_layers", named, rule, "Mend config.json.")
    return ()


def _weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and the experts where there are any."""
    if not shape.experts:
        return llama_weights(shape, _NAMES)
    return (
        *llama_weights(shape, _NAMES),
        *expert_weights(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj", router="router"),
        *shared_expert_weights(_BLOCK, "shared_expert"),
    )


LLAMA4 = Family(
    model_type="llama4_text",
    read=_read_llama4,
    weights=_weights,
    stacks=expert_stacks(_BLOCK, transposed=True, is_only_form=True),
)
