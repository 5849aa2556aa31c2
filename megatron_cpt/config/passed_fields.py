"""Fields of Megatron-Core's configurations that may not be passed through, since other settings decide them."""

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schema import MegatronSettings

_SHAPE = "the model's own config.json, in the folder `model.hf`"
_PRECISION = "`training.precision`"

_TRANSFORMER = {
    **dict.fromkeys(
        (
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "normalization",
            "layernorm_epsilon",
            "layernorm_zero_centered_gamma",
            "add_bias_linear",
            "add_qkv_bias",
            "gated_linear_unit",
            "activation_func",
            "qk_layernorm",
            "qk_l2_norm",
            "rotary_interleaved",
            "softmax_scale",
            "window_size",
            "num_moe_experts",
            "multi_latent_attention",
        ),
        _SHAPE,
    ),
    **dict.fromkeys(("hidden_dropout", "attention_dropout"), "`model.dropout`"),
    **dict.fromkeys(("perform_initialization", "use_cpu_initialization"), "`model.weights`"),
    **dict.fromkeys(
        ("params_dtype", "pipeline_dtype", "bf16", "fp16", "enable_autocast", "autocast_dtype"), _PRECISION
    ),
    "tensor_model_parallel_size": "`parallel.tensor`",
    "sequence_parallel": "`parallel.sequence`",
    "context_parallel_size": "`parallel.context`",
    "expert_model_parallel_size": "`parallel.expert`",
    **dict.fromkeys(("recompute_granularity", "recompute_method", "recompute_num_layers"), "`training.recompute`"),
    "pipeline_model_parallel_size": "`parallel.pipeline`",
    **dict.fromkeys(
        (
            "virtual_pipeline_model_parallel_size",
            "microbatch_group_size_per_vp_stage",
            # With interleaved stages any other values of these two give wrong losses in silence.
            "overlap_p2p_comm",
            "batch_p2p_comm",
        ),
        "`parallel.virtual_pipeline`",
    ),
    **dict.fromkeys(
        (
            "hierarchical_context_parallel_sizes",
            "expert_tensor_parallel_size",
            "calculate_per_token_loss",
            # 0.16.1 rounds the residual stream to bf16 all the same; torch's norms refuse it in every release.
            "fp32_residual_connection",
            # Weights that are stored in fp8 or fp4: no checkpoint and no export of them was tried. `fp8` alone computes
            # in it, and is passed.
            "fp8_param",
            "fp4_param",
            "variable_seq_lengths",
            "finalize_model_grads_func",
            "grad_scale_func",
            "no_sync_func",
            "grad_sync_func",
            "param_sync_func",
            "moe_layer_recompute",
            "timers",
        )
    ),
}
_OPTIMIZER = {
    "lr": "`schedule.peak_lr`",
    "min_lr": "`schedule.final_lr`",
    "decoupled_lr": "`schedule.peak_lr`",
    "decoupled_min_lr": "`schedule.final_lr`",
    "weight_decay": "`optimizer.weight_decay`",
    "adam_beta1": "`optimizer.beta1`",
    "adam_beta2": "`optimizer.beta2`",
    "adam_eps": "`optimizer.epsilon`",
    "clip_grad": "`optimizer.clip_grad`",
    **dict.fromkeys(("params_dtype", "bf16", "fp16"), _PRECISION),
    "use_distributed_optimizer": "`parallel.distributed_optimizer`",
    **dict.fromkeys(("optimizer", "decoupled_weight_decay", "timers")),
}
_DDP = {
    "use_distributed_optimizer": "`parallel.distributed_optimizer`",
    "overlap_grad_reduce": "`parallel.overlap_grad_reduce`",
    "overlap_param_gather": "`parallel.overlap_param_gather`",
    **dict.fromkeys(
        (
            "grad_reduce_in_fp32",
            "average_in_collective",
            "use_megatron_fsdp",
            "use_custom_fsdp",
            # More than one takes process groups that are not made here.
            "num_distributed_optimizer_instances",
            # Weights that are stored in fp8 or fp4, as above.
            "fp8_param_gather",
            "fp4_param_gather",
            "reuse_grad_buf_for_mxfp8_param_ag",
        )
    ),
}


# Fields of TransformerConfig that only Transformer Engine's modules obey. Megatron-Core's local layers would leave
# most of them out without a word.
_ENGINE_ONLY = (
    "fp8",
    "fp4",
    "moe_grouped_gemm",
    "apply_rope_fusion",
    "use_te_activation_func",
    "use_te_rng_tracker",
    "cp_comm_type",
    "softmax_type",
)


def engine_only_fields(passed: MegatronSettings) -> dict[str, Any]:
    """The passed fields of TransformerConfig that only Transformer Engine's layers obey, and ask for something."""
    return {
        name: passed.transformer[name]
        for name in _ENGINE_ONLY
        if passed.transformer.get(name) not in (None, False, "vanilla")
    }


def passed_field_faults(passed: MegatronSettings) -> Iterator[Fault]:
    """A fault for each field in the section `megatron` that a setting of ours decides."""
    yield from _contradictions("megatron.transformer", passed.transformer, _TRANSFORMER)
    yield from _contradictions("megatron.optimizer", passed.optimizer, _OPTIMIZER)
    yield from _contradictions("megatron.ddp", passed.ddp, _DDP)


def _contradictions(section: str, passed: Mapping[str, Any], ours: Mapping[str, str | None]) -> list[Fault]:
    """A fault for each passed name that we set ourselves.

    Args:
        section: what users write: `megatron.transformer`.
        ours: one of the tables above.
    """
    return [
        Fault(
            f"{section}.{name} = {value}",
            "megatron-cpt sets this field itself.",
            f"Take it out and use {ours[name]}." if ours[name] else "Take it out; it cannot be chosen.",
        )
        for name, value in passed.items()
        if name in ours
    ]
