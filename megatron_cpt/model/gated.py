"""The gate of an MLP on a CPU, silu(gate) * up, in one function that keeps nothing but its input.

Megatron-Core's fused one is compiled for GPUs; its other one adds an offset of zero to `up`, keeps silu(gate), and
joins the gradients of both halves by copying them.
"""

from typing import Any

import torch
from megatron.core.transformer import mlp
from torch import Tensor
from torch.nn import functional


def put_in_place() -> None:
    """Has Megatron-Core's MLPs use it where `bias_activation_fusion` asks for a fused one, in this process."""
    mlp.bias_swiglu_impl = gated_silu


def gated_silu(gate_up: Tensor, bias: Tensor | None, *storage: bool) -> Tensor:
    """silu(gate) * up: [..., ffn].

    Args:
        gate_up: [..., 2 ffn], the gates and then what they scale.
        bias: [2 ffn], added before; or None.
        storage: in what form Megatron-Core's own would keep its input: on a CPU as it is.
    """
    return GatedSilu.apply(gate_up if bias is None else gate_up + bias)


class GatedSilu(torch.autograd.Function):
    """As `gated_silu` without a bias."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(gradient, functional.silu(gate), out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        return result
