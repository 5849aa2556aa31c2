"""The products of linear layers in fp32 on a CPU, by oneDNN.

torch multiplies fp32 matrices with MKL. Of the three products of a linear layer, oneDNN, which torch has too, is the
faster in two, outputs and gradients of inputs; MKL most often in the third, gradients of weights. How much, on this
processor: benchmarks/linear.py.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import layers
from torch import Tensor

from megatron_cpt.model.weight_gradients import Products

MEGATRONS = layers.linear_with_grad_accumulation_and_async_allreduce


def put_in_place() -> None:
    """Has Megatron-Core's linear layers multiply this way from now on, in this process, if torch has oneDNN."""
    if torch.backends.mkldnn.is_available():
        linear.__dict__.update(vars(MEGATRONS))  # it looks up, under its own name, whether it has warned
        layers.linear_with_grad_accumulation_and_async_allreduce = linear


def serves() -> bool:
    """Whether it is in place."""
    return layers.linear_with_grad_accumulation_and_async_allreduce is linear


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gradient_accumulation_fusion: bool,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    **options: Any,
) -> Tensor:
    """input weight^T + bias: [..., out]. Where ranks share inputs, and in bf16, it is Megatron-Core's.

    So are layers that are frozen: Megatron-Core has another function for them.

    Args:
        input: [..., in].
        weight: [out, in].
        bias: [out].
        gradient_accumulation_fusion: whether the weight's gradient is added to its buffer by the product.
        allreduce_dgrad: whether ranks sum their gradients of the inputs.
        sequence_parallel: whether each rank has a part of the inputs.
        options: what Megatron-Core's takes besides.
    """
    if weight.dtype is torch.float32 and input.numel() and not (allreduce_dgrad or sequence_parallel):
        return Linear.apply(input, weight, bias, gradient_accumulation_fusion)
    return MEGATRONS(
        input=input,
        weight=weight,
        bias=bias,
        gradient_accumulation_fusion=gradient_accumulation_fusion,
        allreduce_dgrad=allreduce_dgrad,
        sequence_parallel=sequence_parallel,
        **options,
    )


class Linear(torch.autograd.Function):
    """As `linear`, on a rank that has all inputs."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, to_buffer: bool) -> Tensor:
        """states: [..., in]; weight: [out, in]; bias: [out]."""
        ctx.save_for_backward(states, weight)
        ctx.has_bias, ctx.to_buffer = bias is not None, to_buffer
        return product(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        """gradient: [..., out]."""
        states, weight = ctx.saved_tensors
        of_states = product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        states, gradient = states.flatten(0, -2), gradient.flatten(0, -2)
        of_bias = gradient.sum(dim=0) if ctx.has_bias else None
        if not ctx.to_buffer:
            return of_states, gradient.t() @ states, of_bias, None
        Products.wgrad_gemm_accum_fp32(states, gradient, weight.main_grad)
        weight.grad_added_to_main_grad = True
        # Data parallelism waits for a gradient to appear; it reads one only of a weight that other layers use too.
        appearance = torch.zeros_like if getattr(weight, "zero_out_wgrad", False) else torch.empty_like
        return of_states, appearance(weight), of_bias, None


def product(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """states weight^T + bias, by oneDNN: [..., out]."""
    rows = torch.ops.mkldnn._linear_pointwise(states.flatten(0, -2), weight, bias, "none", [], "")
    # As no view for autograd, which would keep the cross entropy from working in the memory of logits.
    result: Tensor = torch.ops.aten._unsafe_view(rows, (*states.shape[:-1], weight.size(0)))
    return result
