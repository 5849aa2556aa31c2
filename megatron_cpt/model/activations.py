"""Activations that Megatron-Core lacks: xIELU, and the bounded gate of a GPT-OSS."""

from typing import Any

import torch
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from megatron_cpt.families.family import ModelShape
from megatron_cpt.parallel.patches import replace_name


class Xielu(MegatronModule):
    """x -> a x^2 + b x where x > 0, else c (exp(min(x, e)) - 1 - x) + b x (xIELU, arXiv:2411.13010, section 3).

    a = softplus(alpha_p) and c = b + softplus(alpha_n) are learnt, b and e are not.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        begin = torch.tensor([0.8, 0.8 - _SLOPE]).expm1().log().to(config.params_dtype)
        self.alpha_p, self.alpha_n = (torch.nn.Parameter(number.clone()) for number in begin.split(1))

    def forward(self, states: Tensor) -> Tensor:
        """states: [..., this rank's part of the MLP's width], any shape before."""
        # Each rank has a part of the gradient, and the sum of all is that of the whole.
        alpha_p, alpha_n = map(copy_to_tensor_model_parallel_region, (self.alpha_p, self.alpha_n))
        output: Tensor = _XieluFunction.apply(
            states, functional.softplus(alpha_p), _SLOPE + functional.softplus(alpha_n)
        )
        return output


_SLOPE, _LARGEST = 0.5, -1e-6
"""b and e of xIELU, as transformers has them."""


class _XieluFunction(torch.autograd.Function):
    """xIELU, which keeps its input alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, above: Tensor, below: Tensor) -> Tensor:
        """states: [...]; above and below, a and c: [1]."""
        ctx.save_for_backward(states, above, below)
        negative = (torch.expm1(states.clamp(max=_LARGEST)) - states) * below
        return torch.where(states > 0, above * states * states, negative) + _SLOPE * states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, above, below = ctx.saved_tensors
        positive = states > 0
        growth = torch.expm1(states.clamp(max=_LARGEST))
        # d exp(min(x, e)) / dx is 0 between e and 0.
        slope = torch.where(states > _LARGEST, -1.0, growth) * below
        of_states = gradient * (torch.where(positive, 2 * above * states, slope) + _SLOPE)
        of_above = gradient * torch.where(positive, states * states, 0.0)
        of_below = gradient * torch.where(positive, 0.0, growth - states)
        first, second = (each.sum(dtype=torch.float32).to(above.dtype).view(1) for each in (of_above, of_below))
        return of_states, first, second


def own_activations(model: LanguageModule, shape: ModelShape) -> None:
    """Gives each layer of a chunk of the model its activation where that has parameters."""
    if shape.activation == "xielu":
        for layer in model.decoder.layers:
            layer.mlp.activation_func = Xielu(model.config)


def install_bounded_gate() -> None:
    """Has Megatron-Core's experts compute their gate by bounded_gate from now on, in this process."""
    replace_name("megatron.core.transformer.mlp", "weighted_bias_quick_geglu_impl", bounded_gate)


def bounded_gate(
    states: Tensor, bias: Tensor, weights: Tensor, fp8_input_store: bool, offset: float, limit: float | None
) -> Tensor:
    """Megatron-Core's weighted_bias_quick_geglu_impl, which bounds what has its bias already.

    x sigmoid(1.702 x) (y + offset) of the gate x, which is at most `limit`, and of y, which is no larger in size.

    Args:
        states: [tokens, 2 f], gate and y before their biases.
        bias: [2 f].
        weights: [tokens, 1], of each token's expert, in fp32.
        fp8_input_store: False.
        offset, limit: None is no limit.
    Returns:
        [tokens, f], times the weights.
    """
    assert not fp8_input_store, "set in model/build.py"
    output: Tensor = _BoundedGate.apply(states, bias, weights, offset, float("inf") if limit is None else limit)
    return output


_SLOPE_OF_GATE = 1.702


class _BoundedGate(torch.autograd.Function):
    """The gate, which keeps its inputs alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, bias: Tensor, weights: Tensor, offset: float, limit: float) -> Tensor:
        """As bounded_gate."""
        ctx.save_for_backward(states, bias, weights)
        ctx.offset, ctx.limit = offset, limit
        gate, other = (states + bias).chunk(2, dim=-1)
        gate, other = gate.clamp(max=limit), other.clamp(-limit, limit) + offset
        return (gate * torch.sigmoid(_SLOPE_OF_GATE * gate) * other * weights).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """gradient: [tokens, f]."""
        states, bias, weights = ctx.saved_tensors
        unbounded_gate, unbounded = (states + bias).chunk(2, dim=-1)
        gate, other = unbounded_gate.clamp(max=ctx.limit), unbounded.clamp(-ctx.limit, ctx.limit) + ctx.offset
        share = torch.sigmoid(_SLOPE_OF_GATE * gate)
        activated, weighted = gate * share, gradient * weights
        slope = share * (1 + _SLOPE_OF_GATE * gate * (1 - share))
        of_gate = torch.where(unbounded_gate <= ctx.limit, weighted * other * slope, 0.0)
        of_other = torch.where(unbounded.abs() <= ctx.limit, weighted * activated, 0.0)
        of_states = torch.cat([of_gate, of_other], dim=-1)
        of_weights = (gradient * activated * other).sum(dim=-1, keepdim=True, dtype=weights.dtype)
        of_bias = of_states.sum(dim=0, dtype=weights.dtype).to(bias.dtype)
        return of_states.to(states.dtype), of_bias, of_weights, None, None
