"""DeepSeek-V2 and V3, and GLM-4.5, whose experts are those of a V3.

DeepSeek-V2 (arXiv:2405.04434): latent attention; experts by their share among all, and shared experts that each token
meets, which are one wider expert. The first layers have dense MLPs. DeepSeek-V3 (arXiv:2412.19437): experts are chosen
by sigmoids and a bias that balances them. Kimi K2 has its shape (arXiv:2507.20534). GLM-4.5 (arXiv:2508.06471): a
Llama's attention, part of each head turned, and a V3's experts.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape, expert_weights, read_chosen, shared_expert_weights
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.rope import YarnScaling, read_rope, yarn_attention_factor
from megatron_cpt.families.weights import Replicated, Rule, Tensor


def _read_deepseek_v3(fields: ConfigFields) -> ModelShape:
    """The shape of a DeepSeek-V3 from its config.json; defaults are transformers' own (DeepseekV3Config)."""
    fields.require("rope_interleave", [True], True)
    fields.require("scoring_func", ["sigmoid"], "sigmoid")
    fields.require("topk_method", ["noaux_tc"], "noaux_tc")
    shape = _read_latent(fields, "deepseek_v3", max_positions=4096)
    for name in ("aux_loss_alpha", "seq_aux"):
        fields.take(name)  # its bias balances experts
    shape = _with_sigmoid_router(fields, shape, experts=256, width=2048, scale=2.5, groups=(8, 4))
    return _with_shared_experts(fields, shape, shared=1, dense=3)


def _read_deepseek_v2(fields: ConfigFields) -> ModelShape:
    """The shape of a DeepSeek-V2 from its config.json; defaults are transformers' own (DeepseekV2Config)."""
    fields.require("scoring_func", ["softmax"], "softmax")
    fields.require("norm_topk_prob", [False], False)
    shape = _read_latent(fields, "deepseek_v2", max_positions=2048)
    method = fields.take("topk_method", "greedy")
    for name in ("n_group", "topk_group"):
        fields.take(name)  # of another method
    if method != "greedy":
        rule = "transformers judges a group of experts by its best one, Megatron-Core by more."
        fields.fault("topk_method", method, rule, "Use a model whose method is greedy: DeepSeek-V2-Lite.")
    fields.take("output_router_logits")  # what transformers returns beside the logits
    experts = fields.integer("n_routed_experts", 64)
    shape = replace(
        shape,
        experts=experts,
        experts_per_token=read_chosen(fields, experts, None),
        expert_ffn_hidden=fields.integer("moe_intermediate_size", 1407),
        router_shares_sum_to_one=False,
        router_scale=fields.positive("routed_scaling_factor", 1.0),
        router_balance=fields.not_negative("aux_loss_alpha", 0.0),
        router_balance_in_sequences=fields.take("seq_aux", True) is True,
    )
    return _with_shared_experts(fields, shape, shared=2, dense=0)


def _read_latent(fields: ConfigFields, family: str, max_positions: int) -> ModelShape:
    """The shape of a model with latent attention, but for its experts."""
    for name in ("head_dim", "qk_head_dim"):
        fields.take(name)  # transformers computes them
    fields.require("attention_bias", [False], False)
    for name in ("ep_size", "moe_layer_freq"):
        fields.require(name, [1], 1)
    latent, query = fields.integer("kv_lora_rank", 512), fields.optional_integer("q_lora_rank", 1536)
    shared, plain = fields.integer("qk_rope_head_dim", 64), fields.integer("qk_nope_head_dim", 128)
    value = fields.integer("v_head_dim", 128)
    # Heads share no keys, whatever is stated; where nothing is, a V3 has 128.
    fields.assume("num_key_value_heads", 128 if family == "deepseek_v3" else None)
    fields.assume("head_dim", shared)
    shape = read_llama_like(fields, family, max_positions)
    if shape.query_groups != shape.heads:
        rule = f"must be num_attention_heads ({shape.heads}): each head has keys of its own."
        fields.fault("num_key_value_heads", shape.query_groups, rule, "Mend config.json.")
    shape = replace(
        shape,
        head_dim=plain + shared,
        key_value_latent=latent,
        query_latent=query or 0,
        value_head_dim=value,
        shared_key_dim=shared,
    )
    scaling = shape.rope_scaling
    if isinstance(scaling, YarnScaling) and scaling.all_dimensions:
        factor = yarn_attention_factor(scaling.factor, scaling.all_dimensions)
        shape = replace(shape, attention_scale=shape.head_dim**-0.5 * factor * factor)
    return shape


def _read_glm4_moe(fields: ConfigFields) -> ModelShape:
    """The shape of a GLM-4.5 from its config.json; defaults are transformers' own (Glm4MoeConfig)."""
    rope = read_rope(fields, "glm4_moe", 131_072, share_name="partial_rotary_factor", share=0.5)
    shape = read_llama_like(fields, "glm4_moe", 131_072, key_value_heads=8, norm_epsilon=1e-5, rope=rope)
    shape = replace(shape, attention_output_bias=False, query_key_norm=fields.boolean("use_qk_norm", False))
    shape = _with_sigmoid_router(fields, shape, experts=128, width=1408, scale=1.0, groups=(1, 1))
    return _with_shared_experts(fields, shape, shared=1, dense=1)


def _with_sigmoid_router(
    fields: ConfigFields, shape: ModelShape, experts: int, width: int, scale: float, groups: tuple[int, int]
) -> ModelShape:
    """The shape with experts that are chosen by sigmoids and a bias.

    Args:
        experts, width, scale, groups: transformers' defaults of `n_routed_experts`, `moe_intermediate_size`,
            `routed_scaling_factor`, and of `n_group` and `topk_group`.
    """
    experts = fields.integer("n_routed_experts", experts)
    chosen = read_chosen(fields, experts, 8)
    if chosen == 1:
        # Megatron-Core has no way to give one chosen expert the whole weight.
        fields.fault("num_experts_per_tok", 1, "a token must be sent to at least two.", "Use another model.")
    fields.require("norm_topk_prob", [True], True)
    fields.take("output_router_logits")  # what transformers returns beside the logits
    shape = replace(
        shape,
        experts=experts,
        experts_per_token=chosen,
        expert_ffn_hidden=fields.integer("moe_intermediate_size", width),
        router_score="sigmoid",
        router_bias=True,
        router_scale=fields.positive("routed_scaling_factor", scale),
    )
    return _with_groups(fields, shape, *groups)


def _with_groups(fields: ConfigFields, shape: ModelShape, groups: int, chosen: int) -> ModelShape:
    """The shape with the groups of experts of which a token meets some; transformers judges each by its best two."""
    groups, chosen = fields.integer("n_group", groups), fields.integer("topk_group", chosen)
    if shape.experts % groups or chosen > groups:
        rule = f"must divide n_routed_experts ({shape.experts}), and be no less than topk_group ({chosen})."
        fields.fault("n_group", groups, rule, "Mend config.json.")
    elif shape.experts_per_token > shape.experts // groups * chosen:
        rule = f"{shape.experts_per_token} experts (num_experts_per_tok) are not in so many groups."
        fields.fault("topk_group", chosen, rule, "Mend config.json.")
    elif groups == chosen:  # they choose nothing
        return shape
    elif shape.experts_per_token // chosen != 2:
        rule = f"Megatron-Core judges a group by its best {shape.experts_per_token // chosen}, transformers by two."
        fields.fault("topk_group", chosen, rule, "Use a model with half as many groups as experts for a token.")
    return replace(shape, router_groups=groups, router_groups_chosen=chosen)


def _with_shared_experts(fields: ConfigFields, shape: ModelShape, shared: int, dense: int) -> ModelShape:
    """The shape with shared experts, and the first layers without any.

    Args:
        shared, dense: transformers' defaults of `n_shared_experts` and `first_k_dense_replace`.
    """
    for name in ("num_nextn_predict_layers", "num_mtp_layers"):
        fields.take(name)  # layers that are none of the model that is trained (others.py)
    shared = fields.integer("n_shared_experts", shared)
    first = fields.take("first_k_dense_replace", dense)
    if not (type(first) is int and 0 <= first < shape.layers):
        rule = f"must leave experts to some of {shape.layers} layers."
        fields.fault("first_k_dense_replace", first, rule, "Mend config.json.")
        first = 0
    return replace(
        shape, shared_expert_ffn_hidden=shared * shape.expert_ffn_hidden, dense_layers=frozenset(range(first))
    )


def _weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and the experts."""
    return (*llama_weights(shape), *_experts(shape))


def _experts(shape: ModelShape) -> tuple[Rule, ...]:
    """The experts, the shared ones, and the router's bias."""
    bias = Replicated(
        ("decoder.layers.{layer}.mlp.router.expert_bias",),
        (Tensor("model.layers.{layer}.mlp.gate.e_score_correction_bias", ("experts",)),),
        layers="sparse",
        buffer=True,
    )
    return (
        *expert_weights("mlp", gate="gate_proj", up="up_proj", down="down_proj"),
        *((bias,) if shape.router_bias else ()),
        *shared_expert_weights("mlp", "shared_experts"),
    )


DEEPSEEK_V2 = Family(model_type="deepseek_v2", read=_read_deepseek_v2, weights=_weights)
DEEPSEEK_V3 = Family(model_type="deepseek_v3", read=_read_deepseek_v3, weights=_weights)
GLM4_MOE = Family(model_type="glm4_moe", read=_read_glm4_moe, weights=_weights)
