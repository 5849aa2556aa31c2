"""From a model's shape and options to Megatron-Core's GPTModel or HybridModel, wrapped for training.

Parts of a model that are not trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from megatron.core.activations import squared_relu
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.fusions import fused_bias_geglu
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import layers
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch.nn import functional

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.schema import (
    Attention,
    FrozenSettings,
    ParallelSettings,
    Precision,
    Recompute,
    RunConfig,
)
from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.activations import install_bounded_gate, own_activations
from megatron_cpt.model.attention import restart_positions
from megatron_cpt.model.cpu_kernels import add_weight_gradients_in_products, install_cpu_kernels
from megatron_cpt.model.forward import add_z_loss
from megatron_cpt.model.layers import (
    block_spec,
    no_rope_freq,
    norms_queries,
    transformer_engine_usable,
    window_fields,
)
from megatron_cpt.model.mcore_patches import (
    cap_logits,
    divide_expert_biases,
    divide_logits,
    finalize_gradients,
    install_router_losses,
    mark_expert_weights,
    mask_vocab_padding,
    padded_vocabulary,
    scale_embeddings,
    temporary_attributes,
)
from megatron_cpt.model.rope import own_rotary, score_scale
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.mcore_compat import gpt_model_class, known_fields


def _of_layers(states: torch.Tensor) -> torch.Tensor:
    """Stands for an activation with parameters, which each layer has as a module (activations.py)."""
    raise AssertionError("a layer has its own activation")


_ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu2": squared_relu,
    "xielu": _of_layers,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MegatronConfig = TypeVar("MegatronConfig")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What a model is built with besides its shape. The defaults are those of a model that is not trained."""

    sequence_length: int
    """Tokens of the longest sequence."""
    precision: Precision = "fp32"
    """Of weights and arithmetic."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """How ranks share it: what this process's groups were made for (groups.init_model_parallel)."""
    dropout: float = 0.0
    """Of hidden states and of attention, 0 to 1."""
    recompute: Recompute = "none"
    """Activations that are computed again in the backward pass."""
    attention: Attention = "across_documents"
    """Whether a token sees the documents before its own in the sequence."""
    z_loss: float = 0.0
    """Coefficient of (log Z)^2 in the loss that is trained on."""
    transformer: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of Megatron-Core's TransformerConfig."""
    ddp: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of its DistributedDataParallelConfig."""
    on_gpu: bool = field(default_factory=lambda: groups.device().type == "cuda")
    """Whether it takes the kernels of a GPU: a simulated rank does, without one."""
    transformer_engine: bool = field(default_factory=transformer_engine_usable)
    """Whether layers are Transformer Engine's, where it has all their parts."""

    @classmethod
    def of_run(cls, config: RunConfig, **others: Any) -> "ModelOptions":
        """Those of a run, and others that it does not decide."""
        return cls(
            sequence_length=config.data.sequence_length,
            precision=config.training.precision,
            parallel=config.parallel,
            dropout=config.model.dropout,
            recompute=config.training.recompute,
            attention=config.data.attention,
            z_loss=config.training.z_loss,
            transformer=config.megatron.transformer,
            ddp=config.megatron.ddp,
            **others,
        )

    def by_engine(self, shape: ModelShape) -> bool:
        """Whether the layers of a model of this shape are Transformer Engine's."""
        return self.transformer_engine and shape.has_engine_layers

    @property
    def shares_documents(self) -> bool:
        """Whether ranks share sequences whose documents are kept apart: Transformer Engine's attention cannot."""
        return self.parallel.context > 1 and self.attention == "within_documents"


def megatron_config(
    kind: type[MegatronConfig],
    ours: Mapping[str, Any],
    passed: Mapping[str, Any],
    section: str,
    defaults: Mapping[str, Any] | None = None,
) -> MegatronConfig:
    """A config object of the installed Megatron-Core from what we set and what the user passes through.

    Args:
        ours: what follows from our own settings, and may not be contradicted.
        defaults: what we choose and the user may choose otherwise.
        section: the name users know, such as `megatron.transformer`.
    Raises:
        BadInput: a passed name that this Megatron-Core does not know, or that we set ourselves.
    """
    known = known_fields(kind)
    faults = [
        Fault(
            f"{section}.{name} = {value!r}",
            f"the installed Megatron-Core's {kind.__name__} has no such field.",
            "Check its spelling, or install a Megatron-Core that has it.",
        )
        for name, value in passed.items()
        if name not in known
    ]
    faults += [
        Fault(
            f"{section}.{name} = {value!r}",
            f"megatron-cpt sets {name} itself, to {ours[name]!r}.",
            "Take it out and use the setting of ours that it follows from.",
        )
        for name, value in passed.items()
        if name in ours and value != ours[name]
    ]
    refuse(faults)
    chosen = {**(defaults or {}), **ours}
    return kind(**{name: value for name, value in chosen.items() if name in known} | dict(passed))


def transformer_config(shape: ModelShape, options: ModelOptions) -> TransformerConfig:
    """Megatron-Core's TransformerConfig of a model. Raises BadInput for fields that may not be passed through."""
    dtype, parallel, on_gpu = DTYPES[options.precision], options.parallel, options.on_gpu
    ours = {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn_hidden,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.query_groups,
        "kv_channels": shape.head_dim,
        "layernorm_epsilon": shape.norm_epsilon,
        "normalization": shape.normalization,
        # Where attention's biases are others than those of the MLP, layers.py says so to its projections.
        "add_bias_linear": shape.mlp_bias and not shape.experts,
        "add_qkv_bias": shape.query_key_value_bias,
        "qk_layernorm": shape.query_key_norm,
        "softmax_scale": score_scale(shape),
        **({"softmax_type": shape.softmax_type} if shape.attention_sinks else {}),
        **window_fields(shape),
        **_latent_fields(shape),
        **_delta_fields(shape),
        "no_rope_freq": no_rope_freq(shape),
        "rotary_interleaved": shape.rotary_interleaved,
        "gated_linear_unit": shape.gated_mlp,
        **_activation_fields(shape),
        **(_expert_fields(shape, options.by_engine(shape)) if shape.experts else {}),
        "hidden_dropout": options.dropout,
        "attention_dropout": options.dropout,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "tensor_model_parallel_size": parallel.tensor,
        "sequence_parallel": parallel.sequence,
        "context_parallel_size": parallel.context,
        "expert_model_parallel_size": parallel.expert,
        **_pipeline_fields(parallel),
        **_recompute_fields(shape, options.recompute),
        # Random weights are drawn whole on the CPU and then sliced, so that tensor-parallel sizes agree.
        "use_cpu_initialization": not on_gpu,
        # Also where weights are loaded next: without it releases before 0.18 leave out the tensor-parallel marks,
        # and gradient norms and clipping are silently wrong under tensor parallelism.
        "perform_initialization": True,
        # The loss of a step is the sum of nats over the sum of tokens, whatever the ranks and micro batches.
        "calculate_per_token_loss": True,
        "finalize_model_grads_func": finalize_gradients,
    }
    # Kernels that need CUDA or apex are off where they would fail.
    defaults: dict[str, Any] = {
        "cuda_graph_scope": [],  # its default is a deprecated word, with a warning in every process
        # Weight gradients are added to the buffer as they are multiplied, by apex's kernel where it was built.
        "gradient_accumulation_fusion": on_gpu and layers._grad_accum_fusion_available,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": on_gpu,
        # Megatron-Core's kernels of GELU compute it as they will, whatever was asked for.
        "bias_activation_fusion": shape.activation == "silu" and (on_gpu or (shape.gated_mlp and not shape.experts)),
        # Layers of ours may turn by a part of the angles, which the fused kernel would read as if it lay alone.
        "apply_rope_fusion": options.by_engine(shape),
        # Megatron-Core's fused kernel gives gradients in bf16, whatever the precision.
        "cross_entropy_loss_fusion": on_gpu and dtype is torch.bfloat16,
    }
    if shape.experts:
        defaults |= {
            "moe_router_load_balancing_type": "seq_aux_loss" if shape.router_balance_in_sequences else "aux_loss",
            "moe_aux_loss_coeff": shape.router_balance,
            "moe_router_dtype": "fp32",  # of shares and the choice: in bf16 many experts tie
            "moe_token_dispatcher_type": "alltoall",
            # Published models ended with a bias that was not moved any more (arXiv:2412.19437, section 4.2).
            "moe_router_bias_update_rate": 0.0,
        }
    kind = MLATransformerConfig if shape.latent_attention else TransformerConfig
    config = megatron_config(kind, ours, options.transformer, "megatron.transformer", defaults)
    # It refuses biases of experts that ranks divide, whose last one each rank would add (divide_expert_biases).
    config.add_bias_linear = shape.mlp_bias
    return config


def _activation_fields(shape: ModelShape) -> dict[str, Any]:
    """The fields of TransformerConfig for the activation."""
    if shape.activation != "quick_gelu":
        return {"activation_func": _ACTIVATIONS[shape.activation]}
    return {
        "activation_func": fused_bias_geglu.quick_gelu,  # which Megatron-Core knows by being the same object
        "activation_func_clamp_value": shape.gate_limit,
        "glu_linear_offset": shape.gated_offset,
        # The function that is called then is ours (activations.py).
        "bias_activation_fusion": True,
        "activation_func_fp8_input_store": False,
    }


def _latent_fields(shape: ModelShape) -> dict[str, Any]:
    """The fields of MLATransformerConfig for latent attention."""
    if not shape.latent_attention:
        return {}
    return {
        "multi_latent_attention": True,
        "q_lora_rank": shape.query_latent or None,
        "kv_lora_rank": shape.key_value_latent,
        "qk_head_dim": shape.own_key_dim,
        "qk_pos_emb_head_dim": shape.shared_key_dim,
        "v_head_dim": shape.value_head_dim,
        "rope_type": "rope",  # angles are of our own (rope.py)
        "rotary_base": shape.rope_base,
    }


def _delta_fields(shape: ModelShape) -> dict[str, Any]:
    """The fields of TransformerConfig for gated delta nets, and for gates of attention."""
    fields: dict[str, Any] = {"attention_output_gate": True} if shape.attention_gate else {}
    if not shape.delta_layers:
        return fields
    return fields | {
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": [int(layer in shape.delta_layers) for layer in range(shape.layers)],
        "linear_conv_kernel_dim": shape.delta_kernel,
        "linear_key_head_dim": shape.delta_key_dim,
        "linear_value_head_dim": shape.delta_value_dim,
        "linear_num_key_heads": shape.delta_key_heads,
        "linear_num_value_heads": shape.delta_value_heads,
    }


def _expert_fields(shape: ModelShape, by_engine: bool) -> dict[str, Any]:
    """The fields of TransformerConfig for layers with experts."""
    return {
        "num_moe_experts": shape.experts,
        "moe_router_topk": shape.experts_per_token,
        "moe_ffn_hidden_size": shape.expert_ffn_hidden,
        "moe_shared_expert_intermediate_size": shape.shared_expert_ffn_hidden or None,
        "moe_shared_expert_gate": shape.shared_expert_gate,
        "moe_layer_freq": [int(layer in shape.sparse_layers) for layer in range(shape.layers)],
        # Shares among all experts are computed before the choice, shares among the chosen after it.
        "moe_router_pre_softmax": not shape.router_shares_sum_to_one,
        # Experts of a rank in one call; without Transformer Engine one after the other.
        "moe_grouped_gemm": by_engine,
        **_router_fields(shape),
    }


def _router_fields(shape: ModelShape) -> dict[str, Any]:
    """The fields of TransformerConfig for routers that are none of a Mixtral."""
    fields: dict[str, Any] = {"moe_apply_probs_on_input": shape.router_scales_inputs}
    if shape.router_score != "softmax":
        fields["moe_router_score_function"] = shape.router_score
    if shape.router_bias:
        fields["moe_router_enable_expert_bias"] = True
    if shape.router_scale != 1.0:
        fields["moe_router_topk_scaling_factor"] = shape.router_scale
    if shape.router_groups > 1:
        fields["moe_router_num_groups"] = shape.router_groups
        fields["moe_router_group_topk"] = shape.router_groups_chosen
    return fields


def _pipeline_fields(parallel: ParallelSettings) -> dict[str, Any]:
    """The fields of TransformerConfig for pipeline stages."""
    fields: dict[str, Any] = {"pipeline_model_parallel_size": parallel.pipeline}
    if parallel.virtual_pipeline > 1:
        fields |= {
            "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline,
            # With gloo and two stages the other way, batched and not overlapped, gives wrong losses in silence.
            "overlap_p2p_comm": True,
            "batch_p2p_comm": False,
        }
    return fields


def _recompute_fields(shape: ModelShape, recompute: Recompute) -> dict[str, Any]:
    """The fields of TransformerConfig for activation recomputation."""
    match recompute:
        case "full":
            return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        case "selective" if shape.parallel_residual:
            return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
        case "selective":
            # Attention keeps no scores, so most of a layer's activations are the MLP's.
            return {"recompute_granularity": "selective", "recompute_modules": ["mlp", "moe"]}
    return {}


def build_model(shape: ModelShape, options: ModelOptions) -> list[LanguageModule]:
    """The chunks of the model that this rank holds, without the wrappers of training: one, unless it interleaves.

    They are in fp32 or bf16, on the rank's device. Their weights are random: load others next.
    """
    if not options.on_gpu:
        install_cpu_kernels()
    install_router_losses()
    if shape.activation == "quick_gelu":
        install_bounded_gate()
    transformer = transformer_config(shape, options)
    device = groups.device()
    return [_build_chunk(shape, options, transformer, chunk).to(device) for chunk in groups.virtual_stages()]


def build_meta_model(shape: ModelShape, options: ModelOptions) -> LanguageModule:
    """The whole model without its weights: names and sizes alone, on torch's meta device.

    Its layers are never Transformer Engine's, which the meta device does not have; names and keys are the same.
    """
    options = replace(options, transformer_engine=False)
    transformer = transformer_config(shape, options)
    # Else parameters ask for the GPU by name, and are drawn at random.
    transformer.use_cpu_initialization, transformer.perform_initialization = True, False
    with torch.device("meta"):
        return _build_chunk(shape, options, transformer, None)


def _build_chunk(
    shape: ModelShape, options: ModelOptions, transformer: TransformerConfig, chunk: int | None
) -> LanguageModule:
    """One chunk of the model; None is all that this rank holds."""
    # Megatron-Core 0.19 builds norms of queries and keys only where this is set. Once it is built, it would sum their
    # gradients over tensor-parallel ranks, of which each has its own part of a norm over all heads.
    with temporary_attributes(transformer, qk_layernorm=norms_queries(shape)):
        block = block_spec(shape, transformer, chunk, options.shares_documents, options.by_engine(shape))
        settings = {
            "vocab_size": padded_vocabulary(shape, options.parallel.tensor),
            "max_sequence_length": options.sequence_length,
            "pre_process": groups.is_first_stage(chunk),
            "post_process": groups.is_last_stage(chunk),
            "vp_stage": chunk,
            "share_embeddings_and_output_weights": shape.tied_embeddings,
            "position_embedding_type": "rope",
            "rotary_percent": shape.rotary_share,
            "rotary_base": shape.rope_base,
        }
        if (gpt_model := gpt_model_class()) is not None:
            model: LanguageModule = gpt_model(config=transformer, transformer_layer_spec=block, **settings)
        else:
            from megatron_cpt.model.hybrid import hybrid_model

            model = hybrid_model(transformer, block, **settings)
    own_activations(model, shape)
    own_rotary(model, shape)
    restart_positions(model)
    scale_embeddings(model, shape)
    divide_logits(model, shape)
    cap_logits(model, shape)
    mask_vocab_padding(model, shape)
    mark_expert_weights(model)
    divide_expert_biases(model)
    add_z_loss(model, options.z_loss)
    return model


def wrap_for_training(model: Sequence[LanguageModule], options: ModelOptions) -> list[DistributedDataParallel]:
    """Adds mixed precision and the gradient buffers of data parallelism. Weights are loaded before."""
    ours = {
        "use_distributed_optimizer": options.parallel.distributed_optimizer,
        "overlap_grad_reduce": options.parallel.overlap_grad_reduce,
        "overlap_param_gather": options.parallel.overlap_param_gather,
        "grad_reduce_in_fp32": True,
        "average_in_collective": False,
    }
    settings = megatron_config(DistributedDataParallelConfig, ours, options.ddp, "megatron.ddp")
    transformer = model[0].config
    replicas = [
        # Buckets are there to overlap; only those of the chunk whose backward pass is the last can.
        DistributedDataParallel(
            transformer,
            settings,
            _in_bf16(transformer, chunk) if transformer.bf16 else chunk,
            disable_bucketing=number > 0,
        )
        for number, chunk in enumerate(model)
    ]
    for replica in replicas:
        replica.broadcast_params()
    if options.transformer.get("gradient_accumulation_fusion", True):
        add_weight_gradients_in_products(replicas)
    if settings.overlap_grad_reduce:
        # Only the last micro batch of a step may set off the reduction.
        hold_back = [replica.no_sync for replica in replicas]
        transformer.no_sync_func = hold_back if len(hold_back) > 1 else hold_back[0]
    return replicas


def _in_bf16(transformer: TransformerConfig, chunk: LanguageModule) -> Float16Module:
    """A chunk whose parameters are in bf16. Buffers, which Megatron-Core would round too, keep their bits."""
    buffers = [(module, name, buffer) for module in chunk.modules() for name, buffer in module._buffers.items()]
    wrapped = Float16Module(transformer, chunk)
    for module, name, buffer in buffers:
        module._buffers[name] = buffer
    return wrapped


def gather_parameters(model: Sequence[DistributedDataParallel]) -> None:
    """Makes parameters whole that the next forward pass would gather: before they are saved or exported."""
    for replica in model:
        if replica.ddp_config.overlap_param_gather:
            replica.start_param_sync(force_sync=True)


def unwrap(model: Sequence[torch.nn.Module]) -> list[LanguageModule]:
    """The chunks inside the wrappers of training."""
    return [inner_model(chunk) for chunk in model]


def inner_model(chunk: torch.nn.Module) -> LanguageModule:
    """The model inside the wrappers of one chunk."""
    inner: Any = chunk
    while not isinstance(inner, LanguageModule):
        inner = inner.module
    return inner


def freeze(model: Sequence[LanguageModule], shape: ModelShape, frozen: FrozenSettings) -> None:
    """Sets requires_grad to False in the frozen parts of this rank's model, before it is wrapped.

    They get no gradient, no optimizer state and no weight decay; the final norm is always trained.
    """
    for chunk in model:
        for layer in chunk.decoder.layers:
            number = layer.layer_number  # from 1, over all pipeline stages
            if number <= frozen.bottom or number > shape.layers - frozen.top:
                layer.requires_grad_(False)
        if frozen.embeddings:
            for part in (getattr(chunk, "embedding", None), getattr(chunk, "output_layer", None)):
                if part is not None:
                    part.requires_grad_(False)
