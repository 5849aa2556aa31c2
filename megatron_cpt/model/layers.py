"""Which modules a layer is made of: the best kernels at hand, and the layers and norms that Megatron-Core lacks.

Transformer Engine's layer spec where it is installed, a GPU is there, and it has all parts of the family's layers; else
Megatron-Core's local spec with scaled_dot_product_attention as its core attention.
"""

import copy
import importlib.util
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import L2Norm
from megatron.core.transformer.transformer_block import (
    LayerNormImpl,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.nn import functional

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.attention import (
    ChunkedAttention,
    ScaledDotProductAttention,
    SoftCappedAttention,
    WindowedAttention,
)
from megatron_cpt.model.gated_delta_net import GatedDeltaNet
from megatron_cpt.model.latent_attention import LatentAttention
from megatron_cpt.model.rope import own_angles, scales_turned_parts, score_scale
from megatron_cpt.parallel import groups


def transformer_engine_usable() -> bool:
    """Whether Transformer Engine is installed and has a GPU to run on."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def block_spec(
    shape: ModelShape,
    config: TransformerConfig,
    virtual_stage: int | None = None,
    shares_documents: bool = False,
    by_engine: bool = False,
) -> TransformerBlockSubmodules:
    """Specs of the layers of this rank, or of its chunk `virtual_stage`, and the final norm.

    Args:
        shares_documents: whether ranks share sequences whose documents are kept apart.
        by_engine: whether the layers are Transformer Engine's; it has all their parts (ModelShape.has_engine_layers).
    """
    first = get_transformer_layer_offset(config, vp_stage=virtual_stage)
    count = get_num_layers_to_build(config, vp_stage=virtual_stage)
    return TransformerBlockSubmodules(
        layer_specs=[layer_spec(shape, layer, shares_documents, by_engine) for layer in range(first, first + count)],
        layer_norm=_norm_of(shape, by_engine),
    )


def layer_spec(
    shape: ModelShape, layer: int = 0, shares_documents: bool = False, by_engine: bool = False
) -> ModuleSpec:
    """The spec of a transformer layer of a model of this shape, by the layer's number in the whole model, from 0."""
    experts = shape.experts if layer in shape.sparse_layers else None
    if by_engine:
        spec = get_gpt_layer_with_transformer_engine_spec(
            num_experts=experts, moe_grouped_gemm=True, qk_layernorm=shape.query_key_norm
        )
        spec = copy.deepcopy(spec)
        if shares_documents:
            spec.submodules.self_attention.submodules.core_attention = _core_attention(shape, layer)
    else:
        local = get_gpt_layer_local_spec(
            num_experts=experts,
            normalization=shape.normalization,
            qk_layernorm=shape.query_key_norm,
        )
        spec = copy.deepcopy(local)
        attention = spec.submodules.self_attention.submodules
        attention.core_attention = _core_attention(shape, layer)
        if shape.query_key_norm:
            attention.q_layernorm = attention.k_layernorm = _Norm
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = _Norm
        if experts:
            # The norm before experts is never fused with them: its name in a checkpoint is its own, as it is in
            # Transformer Engine's spec.
            spec.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.")
    if shape.latent_attention:
        _put_latent_attention(spec, shape)
    if shape.parallel_residual:
        spec.module = ParallelResidualLayer
    if not shape.latent_attention:
        _put_biases(spec, shape)
    if shape.residual_scale != 1.0:
        _scale_outputs(spec, shape.residual_scale)
    if scales_turned_parts(shape) and layer not in shape.unturned_layers:
        assert not (shape.query_key_norm or shape.all_heads_norm or shape.query_key_l2_norm), "readers refuse it"
        attention = spec.submodules.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = _scaled_part(shape.turned_width, shape.turned_factor)
    if shape.query_key_l2_norm and layer not in shape.unturned_layers:
        # Before rotation, which changes no size, in place of after it.
        spec.submodules.self_attention.submodules.q_layernorm = L2Norm
        spec.submodules.self_attention.submodules.k_layernorm = L2Norm
    if not by_engine and (shape.local_layers or not shape.has_engine_layers):
        _put_own_parts(spec, shape, layer)
    if layer in shape.delta_layers:
        _put_delta_net(spec)
    return spec


def _put_delta_net(spec: ModuleSpec) -> None:
    """Puts a gated delta net into a layer. The norm before it has the key of one that is fused with `in_proj`."""
    spec.submodules.self_attention = ModuleSpec(GatedDeltaNet, params={"norm": _Norm})
    spec.submodules.sharded_state_dict_keys_map["input_layernorm."] = "self_attention.in_proj.layer_norm_"


def _put_latent_attention(spec: ModuleSpec, shape: ModelShape) -> None:
    """Puts latent attention into a layer. The norm before it is fused with no projection, whatever the layer."""
    scale = shape.attention_scale or shape.head_dim**-0.5
    params = {"norm": _LatentNorm, "scale": scale, "turned_factor": shape.turned_factor}
    spec.submodules.self_attention = ModuleSpec(LatentAttention, params=params)
    spec.submodules.sharded_state_dict_keys_map.pop("input_layernorm.", None)


def window_fields(shape: ModelShape) -> dict[str, Any]:
    """The fields of TransformerConfig for sliding windows: tokens before and after a position, and which layers."""
    if not shape.local_layers or shape.local_window is None:
        return {}
    return {
        "window_size": (shape.local_window - 1, 0),
        "window_attn_skip_freq": [int(layer in shape.local_layers) for layer in range(shape.layers)],
    }


def no_rope_freq(shape: ModelShape) -> list[int] | None:
    """TransformerConfig.no_rope_freq: 1 for a layer without rotary positions, 0 for others; None: all have them."""
    return [int(layer in shape.unturned_layers) for layer in range(shape.layers)] if shape.unturned_layers else None


def norms_queries(shape: ModelShape) -> bool:
    """Whether queries and keys pass a norm, or a module in its place, before rotary positions are applied."""
    own = shape.query_key_norm or shape.all_heads_norm or shape.query_key_l2_norm
    return own or scales_turned_parts(shape)


def _put_biases(spec: ModuleSpec, shape: ModelShape) -> None:
    """Has the projections of attention add a bias, or none, where Megatron-Core would go by the MLP's."""
    attention = spec.submodules.self_attention.submodules
    if shape.mlp_bias and not shape.query_key_value_bias:
        attention.linear_qkv = _with_bias(attention.linear_qkv, False)
    if shape.attention_output_bias != shape.mlp_bias:
        attention.linear_proj = _with_bias(attention.linear_proj, shape.attention_output_bias)


def _with_bias(linear: type[torch.nn.Module], biased: bool) -> type[torch.nn.Module]:
    """The class of projection with `bias` fixed, whatever Megatron-Core passes."""

    class WithBias(linear):  # type: ignore[misc, valid-type]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named | {"bias": biased})

    WithBias.__name__ = linear.__name__
    return WithBias


def _scale_outputs(spec: ModuleSpec, factor: float) -> None:
    """Has the last projections of attention and of a dense MLP multiply what they give, before it is added."""
    attention, mlp = spec.submodules.self_attention.submodules, spec.submodules.mlp.submodules
    attention.linear_proj = _scaled(attention.linear_proj, factor)
    mlp.linear_fc2 = _scaled(mlp.linear_fc2, factor)


def _scaled(linear: type[torch.nn.Module], factor: float) -> type[torch.nn.Module]:
    """The class of projection whose outputs, and biases, are multiplied."""

    class Scaled(linear):  # type: ignore[misc, valid-type]
        def forward(self, *given: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
            """Returns what is to be added to the residual stream, and the bias."""
            output, bias = super().forward(*given, **named)
            return output * factor, None if bias is None else bias * factor

    Scaled.__name__ = linear.__name__
    return Scaled


def _put_own_parts(spec: ModuleSpec, shape: ModelShape, layer: int) -> None:
    """Puts norms and attention of this package into Megatron-Core's local spec of a layer."""
    norm = _norm_of(shape, False) if shape.pre_norm else IdentityOp
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = norm
    if shape.post_norm:
        spec.module = _PostNormLayer
        two_bases = shape.local_rope_base is not None
        spec.params = {
            "post_norm": _norm_of(shape, False),
            "is_local": layer in shape.local_layers if two_bases else None,
        }
    attention = spec.submodules.self_attention.submodules
    if shape.query_key_norm:
        attention.q_layernorm = attention.k_layernorm = _norm_of(shape, False)
    if shape.all_heads_norm:
        # Classes, not specs with parameters: Megatron-Core 0.19 calls them itself.
        attention.q_layernorm, attention.k_layernorm = AllQueriesRMSNorm, AllKeysRMSNorm


def _core_attention(shape: ModelShape, layer: int) -> type[ScaledDotProductAttention] | ModuleSpec:
    """Our core attention of a layer: with a soft cap, a window or chunks if it has them."""
    is_local = layer in shape.local_layers
    window = shape.local_window if is_local else None
    growth = (shape.temperature_beta, shape.temperature_positions, shape.temperature_first)
    temperature = {"temperature": growth} if shape.sharpens(layer) else {}
    if shape.attention_soft_cap is not None:
        return ModuleSpec(SoftCappedAttention, params={"soft_cap": shape.attention_soft_cap, "window": window})
    if window is not None:
        scale = score_scale(shape, is_local)
        return ModuleSpec(WindowedAttention, params={"window": window, "scale": scale, **temperature})
    if is_local and shape.local_chunk is not None:
        return ModuleSpec(ChunkedAttention, params={"chunk": shape.local_chunk, **temperature})
    return ModuleSpec(ScaledDotProductAttention, params=temperature) if temperature else ScaledDotProductAttention


def _norm_of(shape: ModelShape, by_engine: bool) -> Any:
    """The norm at the end, and of layers that have parts of ours."""
    if shape.zero_centered_norms:
        return _ZeroCenteredLayerNorm if shape.normalization == "LayerNorm" else ZeroCenteredRMSNorm
    return LayerNormImpl if by_engine else _Norm


# Megatron-Core recomputes these inside the forward pass that is replaced here; core_attn recomputes itself.
_SERIAL_ONLY = {"layernorm", "mlp"}


class ParallelResidualLayer(TransformerLayer):
    """y = x + attention(norm(x)) + MLP(other norm(x)), as in GPT-J and GPT-NeoX (arXiv:2204.06745, section 2.1).

    Megatron-Core 0.16.1 gives the MLP what attention has changed already. Its modules, their names and
    their checkpoints are those of TransformerLayer.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        **named: Any,
    ) -> None:
        """Takes what TransformerLayer takes.

        Raises:
            BadInput: `megatron.transformer` asks for a recomputation that this layer does not have.
        """
        _refuse_partial_recomputation(config, "attention and MLP in parallel")
        super().__init__(config, submodules, **named)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, h]; the rest is what self-attention takes. Returns [s, b, h], and no context."""
        _refuse_context(named, "ParallelResidualLayer")
        attended = self.self_attention(self.input_layernorm(hidden_states), attention_mask, **named)
        transformed = self.mlp(self.pre_mlp_layernorm(hidden_states))
        fused = self.config.bias_dropout_fusion
        with_attention = self.self_attn_bda(self.training, fused)(attended, hidden_states, self.hidden_dropout)
        return self.mlp_bda(self.training, fused)(transformed, with_attention, self.hidden_dropout), None


class _PostNormLayer(TransformerLayer):
    """y = x + norm(attention(n(x))), then y + norm(MLP(n(y))), where n is a norm or nothing.

    As in OLMo 2 (arXiv:2501.00656, without n), Gemma 2 (arXiv:2408.00118) and Gemma 3 (arXiv:2503.19786), with n.
    Megatron-Core 0.16.1 has no norm between a projection and the residual stream.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        post_norm: type[torch.nn.Module] | None = None,
        is_local: bool | None = None,
        **named: Any,
    ) -> None:
        """Takes what TransformerLayer takes, and more.

        Args:
            post_norm: kind of the norms after attention and MLP.
            is_local: whether the layer turns positions as local ones do; None: all layers turn them alike.
        Raises:
            BadInput: `megatron.transformer` asks for a recomputation that this layer does not have.
        """
        _refuse_partial_recomputation(config, "norms after attention and MLP")
        super().__init__(config, submodules, **named)
        assert post_norm is not None
        self.is_local = is_local
        size, epsilon = config.hidden_size, config.layernorm_epsilon
        self.post_attention_layernorm = post_norm(config=config, hidden_size=size, eps=epsilon)
        self.post_mlp_layernorm = post_norm(config=config, hidden_size=size, eps=epsilon)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, h]; the rest is what self-attention takes. Returns [s, b, h], and no context."""
        _refuse_context(named, "PostNormLayer")
        if self.is_local is not None:
            named["rotary_pos_emb"] = own_angles(named["rotary_pos_emb"], self.is_local)
        fused = self.config.bias_dropout_fusion
        attended, bias = self.self_attention(self.input_layernorm(hidden_states), attention_mask, **named)
        normed = self.post_attention_layernorm(attended if bias is None else attended + bias)
        hidden_states = self.self_attn_bda(self.training, fused)((normed, None), hidden_states, self.hidden_dropout)
        transformed, bias = self.mlp(self.pre_mlp_layernorm(hidden_states))
        normed = self.post_mlp_layernorm(transformed if bias is None else transformed + bias)
        return self.mlp_bda(self.training, fused)((normed, None), hidden_states, self.hidden_dropout), None


def _refuse_partial_recomputation(config: TransformerConfig, kind: str) -> None:
    """Raises BadInput where parts are to be recomputed that only Megatron-Core's own forward pass recomputes."""
    recomputed = set(config.recompute_modules or ()) if config.recompute_granularity == "selective" else set()
    if recomputed & _SERIAL_ONLY:
        raise BadInput(
            Fault(
                f"megatron.transformer.recompute_modules = {sorted(recomputed)}",
                f"a layer with {kind} recomputes nothing smaller than core_attn alone.",
                "Use [core_attn], or `recompute_granularity: full`.",
            )
        )


def _refuse_context(named: dict[str, Any], layer: str) -> None:
    """Takes out what a layer of a language model is given and does not use; it must be None."""
    for name in ("context", "context_mask", "padding_mask", "dynamic_inference_decode_only"):
        if named.pop(name, None) is not None:
            raise ValueError(f"{layer} takes no {name}")


class ZeroCenteredRMSNorm(torch.nn.Module):
    """y = x / rms(x) * (1 + w), in fp32, as in Gemma (arXiv:2403.08295): weight decay draws it to 1, not to 0."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **ignored: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        # Where ranks divide sequences, its gradient is summed over them.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: [..., hidden_size], any shape before."""
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(hidden_states)


class _ZeroCenteredLayerNorm(torch.nn.LayerNorm):
    """LayerNorm that multiplies by 1 + its weight, as in Nemotron (arXiv:2402.16819)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **ignored: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        torch.nn.init.zeros_(self.weight)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states: [..., hidden_size], any shape before."""
        return functional.layer_norm(hidden_states, self.normalized_shape, self.weight + 1.0, self.bias, self.eps)


def _scaled_part(turned: int, factor: float) -> type[torch.nn.Module]:
    """A module in the place of the norms of queries and keys, which multiplies the part of a head that is turned.

    Turning is linear: it is the same whether what is turned is multiplied before, or sine and cosine are, as in
    transformers. A class, and not a spec with parameters: Megatron-Core 0.19 calls it itself.
    """

    class ScaledPart(torch.nn.Module):
        def __init__(self, **ignored: Any) -> None:
            super().__init__()

        def forward(self, heads: Tensor) -> Tensor:
            """heads: [..., head_dim], any shape before."""
            return torch.cat([heads[..., :turned] * factor, heads[..., turned:]], dim=-1)

    return ScaledPart


class AllQueriesRMSNorm(torch.nn.Module):
    """RMSNorm over all heads of a query together, as in OLMo 2 (arXiv:2501.00656, section 3.2).

    Tensor-parallel ranks hold some heads each, and sum the squares of all. It is built by Megatron-Core's
    SelfAttention, which gives `hidden_size` as the width of one head.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **ignored: Any) -> None:
        super().__init__()
        self.eps, self.width = eps, self.heads(config) * hidden_size
        own = self.width // config.tensor_model_parallel_size
        self.weight = torch.nn.Parameter(torch.ones(own, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def heads(self, config: TransformerConfig) -> int:
        """Heads that are normed together, those of other ranks included."""
        return int(config.num_attention_heads)

    def forward(self, heads: Tensor) -> Tensor:
        """heads: [s, b, this rank's heads, head_dim]."""
        wide = heads.float()
        squares = wide.pow(2).sum(dim=(-2, -1), keepdim=True)
        # Every rank's output depends on every rank's squares: summed forward and, for their gradient, backward.
        squares = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(squares))
        normed = wide * torch.rsqrt(squares / self.width + self.eps)
        return (normed * self.weight.float().view(heads.shape[-2:])).type_as(heads)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Its part of a distributed checkpoint: the weight is divided as the heads are."""
        state = self.state_dict(prefix="", keep_vars=True)
        sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(state, prefix, {"weight": 0}, sharded_offsets)
        return sharded


class AllKeysRMSNorm(AllQueriesRMSNorm):
    """The same over all heads of a key, which are fewer where queries share them."""

    def heads(self, config: TransformerConfig) -> int:
        """Key heads, those of other ranks included."""
        return int(config.num_query_groups)


class _Norm:
    """Makes the norm that the config names; Megatron-Core builds it where a spec says so.

    Theirs (WrappedTorchNorm) refuses sequence parallelism, because under it each tensor-parallel rank sees a part
    of the sequence and its gradient is a part of the whole. The mark set here makes Megatron-Core sum them.
    """

    def __new__(  # type: ignore[misc]
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5
    ) -> torch.nn.Module:
        """A norm over the last dimension, of width `hidden_size`."""
        norm = kind(config)(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


class _LatentNorm(_Norm):
    """The same for latent vectors: transformers adds 1e-6 whatever config.json says of other norms."""

    def __new__(  # type: ignore[misc]
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-6
    ) -> torch.nn.Module:
        """A norm over the last dimension, of width `hidden_size`."""
        return super().__new__(cls, config, hidden_size, 1e-6)


def kind(config: TransformerConfig) -> type[torch.nn.Module]:
    """The class of the norms: on a CPU and in fp32 one of ours for torch's RMSNorm, which has no kernel there."""
    if config.normalization == "LayerNorm":
        return torch.nn.LayerNorm
    in_few_passes = groups.device().type == "cpu" and config.params_dtype is torch.float32
    return RMSNorm if in_few_passes else torch.nn.RMSNorm


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, whose bits its outputs are, with its gradients from the kernel that LayerNorm's come from."""

    def forward(self, states: Tensor) -> Tensor:
        """states: fp32 [..., width]."""
        return RootMeanSquare.apply(states, self.weight, self.eps)


class RootMeanSquare(torch.autograd.Function):
    """y = x r w, where r = 1 / sqrt(mean(x^2) + epsilon)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """states: [..., width]; weight: [width]."""
        inverse = states.square().mean(dim=-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(states, weight, inverse)
        return (states * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """dx = r (g w - x r mean(g w x r)), dw = sum(g x r).

        A LayerNorm whose mean is 0 and whose deviation is 1 / r has the same, but for dx less r mean(g w).
        """
        states, weight, inverse = ctx.saved_tensors
        of_states, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, states, weight.shape, torch.zeros_like(inverse), inverse, weight, None, [True, True, False]
        )
        means = (gradient @ weight).div_(weight.numel()).unsqueeze(-1)
        return of_states.add_(means.mul_(inverse)), of_weight, None
