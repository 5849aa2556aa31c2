"""The gate of an MLP on a CPU, silu(gate) * up, in one function that keeps nothing but its input.

Megatron-Core's fused one is compiled for GPUs; its other one adds an offset of zero to `up`, keeps silu(gate), and
joins the gradients of both halves by copying them. Rows are worked on some at a time, so that they stay in the
processor's cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.transformer import mlp
from torch import Tensor
from torch.nn import functional

CACHED_BYTES = 4 << 20
"""Of the input that is worked on at a time."""


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
        output = gate_up.new_empty(*gate_up.shape[:-1], gate_up.size(-1) // 2)
        for part, result in in_rows(gate_up, output):
            gate, up = part.chunk(2, dim=-1)
            torch.mul(functional.silu(gate), up, out=result)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        result = gate_up.new_empty(gate_up.shape)
        for part, given, wanted in in_rows(gate_up, gradient, result):
            gate, up = part.chunk(2, dim=-1)
            of_gate, of_up = wanted.chunk(2, dim=-1)
            torch.ops.aten.silu_backward.grad_input(given * up, gate, grad_input=of_gate)
            torch.mul(given, functional.silu(gate), out=of_up)
        return result


def in_rows(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all, [rows, width] each, CACHED_BYTES of the first at a time."""
    at_once = max(1, CACHED_BYTES // (first.size(-1) * first.element_size()))
    return zip(*(values.flatten(0, -2).split(at_once) for values in (first, *others)), strict=True)
