"""GPT-OSS (arXiv:2508.10925): experts with biases and a bounded gate, and heads with a sink.

Each head has a learnt score that takes part in its softmax and belongs to no token. Every other layer has a window.
The gate is x sigmoid(1.702 x), and what it multiplies is one more than its projection; both are bounded before.
Folders hold the weights of all experts of a layer in one tensor. Releases have them in MXFP4.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape, expert_stacks, expert_weights, read_chosen
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like, with_layer_types
from megatron_cpt.families.weights import ColumnParallel, Rule, Tensor


def _read_gpt_oss(fields: ConfigFields) -> ModelShape:
    """The shape of a GPT-OSS from its config.json; defaults are transformers' own (GptOssConfig)."""
    yarn = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
    if not fields.has("rope_scaling"):
        fields.assume("rope_parameters", yarn)
    shape = read_llama_like(
        fields,
        "gpt_oss",
        max_positions=131_072,
        key_value_heads=8,
        head_dim=64,
        norm_epsilon=1e-5,
        rope_base=150_000.0,
        attention_bias=True,
    )
    # The numbers of transformers' code, which the published folders do not state.
    fields.require("swiglu_alpha", [1.702], 1.702)
    window = fields.optional_integer("sliding_window", 128)
    if window is None:
        rule = "a GPT-OSS has windows; transformers does not load one without."
        fields.fault("sliding_window", None, rule, "State one: 128 in those of OpenAI.")
    experts = fields.integer("num_local_experts", fields.take("num_experts", 128))
    chosen = read_chosen(fields, experts, 4)
    if chosen == 1:
        # Megatron-Core has no way to give one chosen expert the whole weight.
        fields.fault("num_experts_per_tok", 1, "a GPT-OSS sends a token to at least two.", "Use another model.")
    fields.take("output_router_logits")  # what transformers returns beside the logits
    shape = replace(
        shape,
        activation="quick_gelu",
        gate_limit=fields.positive("swiglu_limit", 7.0),
        gated_offset=1.0,
        mlp_bias=True,
        attention_sinks=True,
        local_window=window,
        experts=experts,
        experts_per_token=chosen,
        expert_ffn_hidden=shape.ffn_hidden,
        router_balance=fields.not_negative("router_aux_loss_coef", 0.001),
    )
    return with_layer_types(fields, shape, frozenset(range(0, shape.layers, 2)))


def _weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, the sinks, and the experts."""
    sinks = ColumnParallel(
        ("decoder.layers.{layer}.self_attention.core_attention.softmax_offset",),
        (Tensor("model.layers.{layer}.self_attn.sinks", ("heads",)),),
    )
    experts = expert_weights("mlp", "gate_proj", "up_proj", "down_proj", router="router", biased=True)
    return (*llama_weights(shape), sinks, *experts)


GPT_OSS = Family(
    model_type="gpt_oss",
    read=_read_gpt_oss,
    weights=_weights,
    stacks=expert_stacks("mlp", transposed=True, alternate=True, biased=True, is_only_form=True),
)
