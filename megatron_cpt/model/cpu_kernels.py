"""Faster operations on a CPU. None is installed where a GPU is used.

| operation | Megatron-Core and torch | here |
|---|---|---|
| linear layer, fp32 | three products by MKL | outputs and gradients of inputs by oneDNN (benchmarks/linear.py) |
| gradient of a weight | written, read, added to its buffer | added by the product itself, as apex does on a GPU |
| SwiGLU | keeps silu(gate), adds an offset of zero, joins two gradients by copying | keeps its input alone |
| cross entropy | five passes over all logits | rows that stay in the cache, one pass each way |
"""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import layers
from megatron.core.transformer import mlp
from torch import Tensor
from torch.nn import functional

from megatron_cpt.parallel import groups


def install_weight_gradients(model: Sequence[DistributedDataParallel]) -> None:
    """Has the linear layers of a model that has its buffers add to them this way."""
    layers.fused_weight_gradient_mlp_cuda = Products
    for chunk in model:
        for module in chunk.modules():
            if hasattr(module, "gradient_accumulation_fusion"):
                module.gradient_accumulation_fusion = True


class Products:
    """In the place of apex's module, by its names."""

    @staticmethod
    def wgrad_gemm_accum_fp32(inputs: Tensor, gradient: Tensor, buffer: Tensor) -> None:
        """Adds gradient^T inputs to the buffer.

        Args:
            inputs: [tokens, in].
            gradient: of the outputs, [tokens, out].
            buffer: fp32 [out, in].
        """
        if inputs.dtype is buffer.dtype:
            buffer.addmm_(gradient.t(), inputs)
        else:
            buffer.add_(gradient.t() @ inputs)


MEGATRONS = layers.linear_with_grad_accumulation_and_async_allreduce


def install_linear() -> None:
    """Has Megatron-Core's linear layers multiply this way from now on, in this process, if torch has oneDNN."""
    if torch.backends.mkldnn.is_available():
        linear.__dict__.update(vars(MEGATRONS))  # it looks up, under its own name, whether it has warned
        layers.linear_with_grad_accumulation_and_async_allreduce = linear


def linear_is_enabled() -> bool:
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


def install_swiglu() -> None:
    """Has Megatron-Core's MLPs use it where `bias_activation_fusion` asks for a fused one, in this process."""
    mlp.bias_swiglu_impl = swiglu


def swiglu(gate_up: Tensor, bias: Tensor | None, *storage: bool) -> Tensor:
    """silu(gate) * up: [..., ffn].

    Args:
        gate_up: [..., 2 ffn], the gates and then what they scale.
        bias: [2 ffn], added before; or None.
        storage: in what form Megatron-Core's own would keep its input: on a CPU as it is.
    """
    return Swiglu.apply(gate_up if bias is None else gate_up + bias)


class Swiglu(torch.autograd.Function):
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


CACHED_BYTES = 1 << 20
"""Of logits that are worked on at a time."""


def cross_entropy_is_enabled() -> bool:
    """Whether losses are computed this way: on a CPU, where no ranks share the vocabulary."""
    return groups.device().type == "cpu" and groups.tensor_size() == 1


def install_cross_entropy(model: GPTModel) -> None:
    """Has the model compute its losses this way where it serves."""
    if model.post_process and cross_entropy_is_enabled():
        model.compute_language_model_loss = label_nats


def label_nats(labels: Tensor, logits: Tensor) -> Tensor:
    """Nats of each label: fp32 [b, s]. What GPTModel.compute_language_model_loss gives.

    Args:
        labels: int64 [b, s].
        logits: [s, b, vocabulary]; written over.
    """
    rows = CrossEntropy.apply(logits.float().flatten(0, 1), labels.transpose(0, 1).flatten())
    return rows.view(logits.shape[:2]).transpose(0, 1).contiguous()


class CrossEntropy(torch.autograd.Function):
    """Logits, fp32 [rows, vocabulary], and labels, int64 [rows], to nats, fp32 [rows]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """Leaves the probabilities in the place of the logits, where a gradient is asked for."""
        at_once = max(1, CACHED_BYTES // (logits.size(1) * logits.element_size()))
        shares = []
        for part, wanted in zip(logits.split(at_once), labels.split(at_once), strict=True):
            log_shares = torch.log_softmax(part, dim=-1)
            shares.append(log_shares.gather(1, wanted.unsqueeze(1)))
            if ctx.needs_input_grad[0]:
                torch.exp(log_shares, out=part)
        ctx.save_for_backward(logits, labels)
        return torch.cat(shares).squeeze(1).neg_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Probabilities, less one at the label, times the gradient of the row."""
        shares, labels = ctx.saved_tensors
        shares[torch.arange(len(labels)), labels] -= 1
        return shares.mul_(gradient.unsqueeze(1)), None
