"""Qwen3-Next, and Qwen3.5's language models: gated delta nets in three layers of four, gated attention in the fourth.

A gated delta net (arXiv:2412.06464) has a state of one size in the place of keys and values of all tokens. Attention
multiplies what its heads give by the sigmoid of a projection (arXiv:2505.06708), has a norm on each head's query and
key, and turns a quarter of each head. Norms multiply by 1 + their weight, but those in a delta net.

Qwen3-Next: each layer has experts, and one more that every token meets, with a gate of its own, as in a Qwen2-MoE.
Qwen3.5: with such experts or without; what a delta net reads is in four tensors, by kind and not by key head. Its
positions have a time, a height and a width, all the same in text. Its published folders have the experts of a layer in
one tensor, those that transformers saves have each by itself.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape, expert_stacks, shared_expert_weights
from megatron_cpt.families.fields import ConfigFields, read_layer_types
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.qwen import qwen_moe_weights, read_qwen_experts
from megatron_cpt.families.rope import check_sections, read_rope
from megatron_cpt.families.weights import (
    ColumnParallel,
    DeltaConvolution,
    DeltaInputs,
    GroupedDeltaInputs,
    Replicated,
    RowParallel,
    Rule,
    Tensor,
)

_KINDS = ("full_attention", "linear_attention")


def _read_qwen3_next(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen3-Next from its config.json; defaults are transformers' own (Qwen3NextConfig)."""
    fields.assume("intermediate_size", 5632)
    fields.assume("norm_topk_prob", True)
    shape = _read_like_next(fields, "qwen3_next", key_value_heads=2)
    return _with_shared_expert(fields, read_qwen_experts(fields, shape, experts=512, width=512, chosen=10))


def _with_shared_expert(fields: ConfigFields, shape: ModelShape) -> ModelShape:
    """The shape with the expert that every token meets."""
    shared = fields.integer("shared_expert_intermediate_size", 512)
    return replace(shape, shared_expert_ffn_hidden=shared, shared_expert_gate=True)


def _read_like_next(fields: ConfigFields, family: str, key_value_heads: int) -> ModelShape:
    """What all have: delta nets, and the attention and norms of a Qwen3-Next.

    Args:
        key_value_heads: transformers' default of `num_key_value_heads`.
    """
    sections = family != "qwen3_next"
    rope = read_rope(fields, family, 32_768, share_name="partial_rotary_factor", share=0.25, has_sections=sections)
    shape = read_llama_like(fields, family, 32_768, key_value_heads, head_dim=256, rope=rope)
    check_sections(fields, rope, shape.head_dim, needed=False)
    interval = fields.integer("full_attention_interval", 4)
    marked = read_layer_types(fields, shape.layers, _KINDS)
    unmarked = frozenset(layer for layer in range(shape.layers) if (layer + 1) % interval)
    key_heads, value_heads = fields.integer("linear_num_key_heads", 16), fields.integer("linear_num_value_heads", 32)
    if value_heads % key_heads:
        rule = f"must be a multiple of linear_num_key_heads ({key_heads})."
        fields.fault("linear_num_value_heads", value_heads, rule, "Mend config.json.")
    if shape.activation != "silu":
        fields.fault("hidden_act", shape.activation, "a delta net has 'silu'.", "Use a model that has it so.")
    return replace(
        shape,
        query_key_norm=True,
        zero_centered_norms=True,
        attention_gate=True,
        delta_layers=unmarked if marked is None else marked,
        delta_key_heads=key_heads,
        delta_value_heads=value_heads,
        delta_key_dim=fields.integer("linear_key_head_dim", 128),
        delta_value_dim=fields.integer("linear_value_head_dim", 128),
        delta_kernel=fields.integer("linear_conv_kernel_dim", 4),
    )


def _qwen3_next_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Qwen3-MoE's name table, the expert that all tokens share, and delta nets."""
    theirs = "model.layers.{layer}.linear_attn"
    inputs = GroupedDeltaInputs(
        (f"{_DELTA_NET}.in_proj.weight",),
        (
            Tensor(f"{theirs}.in_proj_qkvz.weight", ("delta_gated_width", "hidden")),
            Tensor(f"{theirs}.in_proj_ba.weight", ("delta_rates", "hidden")),
        ),
        layers="delta",
    )
    return (*qwen_moe_weights(shape), *_shared_expert(), inputs, *_delta_weights())


def _shared_expert() -> tuple[Rule, ...]:
    """The expert that all tokens share, and its gate."""
    return shared_expert_weights("mlp", "shared_expert", "shared_expert_gate")


_DELTA_NET = "decoder.layers.{layer}.self_attention"


def _delta_weights() -> tuple[Rule, ...]:
    """The name table of a delta net, but for what reads hidden states."""

    def rule(kind: type[Rule], ours: str, theirs: str, *size: str) -> Rule:
        tensor = Tensor(f"model.layers.{{layer}}.linear_attn.{theirs}", size)
        return kind((f"{_DELTA_NET}.{ours}",), (tensor,), layers="delta")

    return (
        rule(DeltaConvolution, "conv1d.weight", "conv1d.weight", "delta_convolved_width", "one", "delta_kernel"),
        rule(ColumnParallel, "dt_bias", "dt_bias", "delta_value_heads"),
        rule(ColumnParallel, "A_log", "A_log", "delta_value_heads"),
        rule(Replicated, "out_norm.weight", "norm.weight", "delta_value_dim"),
        rule(RowParallel, "out_proj.weight", "out_proj.weight", "hidden", "delta_value_width"),
    )


QWEN3_NEXT = Family("qwen3_next", _read_qwen3_next, _qwen3_next_weights)


def _read_qwen3_5(fields: ConfigFields) -> ModelShape:
    """The shape of the language model of a Qwen3.5; defaults are transformers' own (Qwen3_5TextConfig)."""
    fields.assume("intermediate_size", 12_288)
    return _read_like_qwen3_5(fields, "qwen3_5_text", key_value_heads=4)


def _read_like_qwen3_5(fields: ConfigFields, family: str, key_value_heads: int) -> ModelShape:
    """That of one with experts or without.

    Args:
        key_value_heads: transformers' default of `num_key_value_heads`.
    """
    fields.require("attn_output_gate", [True], True)
    # Of tensors that are not trained (others.py), and of states in servers.
    for name in ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype"):
        fields.take(name)
    return _read_like_next(fields, family, key_value_heads)


def _read_qwen3_5_moe(fields: ConfigFields) -> ModelShape:
    """The shape of the language model of a Qwen3.5 with experts; defaults are transformers' own
    (Qwen3_5MoeTextConfig)."""
    fields.assume("intermediate_size", 512)  # of no layer
    shape = _read_like_qwen3_5(fields, "qwen3_5_moe_text", key_value_heads=2)
    shape = read_qwen_experts(fields, shape, experts=256, width=512, chosen=8, always_normed=True, in_all_layers=True)
    return _with_shared_expert(fields, shape)


def _qwen3_5_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and delta nets."""
    return (*llama_weights(shape), *_qwen3_5_delta_weights())


def _qwen3_5_moe_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Qwen3-MoE's name table, the expert that all tokens share, and delta nets."""
    return (*qwen_moe_weights(shape), *_shared_expert(), *_qwen3_5_delta_weights())


def _qwen3_5_delta_weights() -> tuple[Rule, ...]:
    """The name table of a delta net whose inputs are in four tensors."""
    parts = (
        ("in_proj_qkv", "delta_convolved_width"),
        ("in_proj_z", "delta_value_width"),
        ("in_proj_b", "delta_value_heads"),
        ("in_proj_a", "delta_value_heads"),
    )
    tensors = tuple(
        Tensor(f"model.layers.{{layer}}.linear_attn.{name}.weight", (rows, "hidden")) for name, rows in parts
    )
    inputs = DeltaInputs((f"{_DELTA_NET}.in_proj.weight",), tensors, layers="delta")
    return (inputs, *_delta_weights())


QWEN3_5 = Family("qwen3_5_text", _read_qwen3_5, _qwen3_5_weights)
QWEN3_5_MOE = Family("qwen3_5_moe_text", _read_qwen3_5_moe, _qwen3_5_moe_weights, stacks=expert_stacks("mlp"))
