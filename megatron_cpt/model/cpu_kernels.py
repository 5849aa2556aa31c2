"""Faster and more exact operations on a CPU, behind one switch: `install_cpu_kernels`. A GPU has none of them.

| operation | Megatron-Core and torch | here |
|---|---|---|
| linear layer, fp32 | three products by MKL | outputs and gradients of inputs by oneDNN (benchmarks/linear.py) |
| gradient of a weight | written, read, added to its buffer | added by the product itself, as apex does on a GPU |
| rotary positions of whole heads | splits and joins them for nothing: six copies | one pass each way |
| SwiGLU | keeps silu(gate), adds an offset of zero, joins two gradients by copying | keeps its input alone |
| cross entropy | five passes over all logits | rows that stay in the cache, one pass each way |
| gradient norm | squares added one after the other in fp32 | added in fp64 |
| clipping | scales into a copy | scales in place |

parallel/patches.py lists the names that are replaced.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import layers
from megatron.core.transformer import mlp
from torch import Tensor
from torch.nn import functional

from megatron_cpt.parallel import groups
from megatron_cpt.parallel.patches import replace_name

MCORE_LINEAR = layers.linear_with_grad_accumulation_and_async_allreduce
MCORE_ROTATION: Callable[..., Tensor] = rope_utils._apply_rotary_pos_emb_bshd
_MCORE_LOSS: Callable[..., Tensor] = LanguageModule.compute_language_model_loss


def install_cpu_kernels() -> None:
    """Replaces kernels of Megatron-Core by those of this file in this process; build_model calls it on CPUs alone."""
    if groups.device().type != "cpu" or are_installed():
        return
    if torch.backends.mkldnn.is_available():
        linear.__dict__.update(vars(MCORE_LINEAR))  # it looks up, under its own name, whether it has warned
        replace_name(
            "megatron.core.tensor_parallel.layers", "linear_with_grad_accumulation_and_async_allreduce", linear
        )
    replace_name("megatron.core.tensor_parallel.layers", "fused_weight_gradient_mlp_cuda", Products)
    replace_name("megatron.core.models.common.embeddings.rope_utils", "_apply_rotary_pos_emb_bshd", rotate)
    replace_name(LanguageModule.__module__, "LanguageModule.compute_language_model_loss", _language_model_loss)
    replace_name("megatron.core.optimizer.clip_grads", "l2_norm_impl", gradient_norm)
    replace_name("megatron.core.optimizer.clip_grads", "multi_tensor_scale_impl", scale_in_place)
    replace_name("megatron.core.transformer.mlp", "bias_swiglu_impl", swiglu)


def are_installed() -> bool:
    """Whether Megatron-Core uses these kernels in this process."""
    return mlp.bias_swiglu_impl is swiglu


def add_weight_gradients_in_products(model: Sequence[DistributedDataParallel]) -> None:
    """Has linear layers add weight gradients to their buffers by `Products`, if the kernels are installed.

    The model is wrapped for training and has its buffers.
    """
    for module in (module for chunk in model if are_installed() for module in chunk.modules()):
        if hasattr(module, "gradient_accumulation_fusion"):
            module.gradient_accumulation_fusion = True


class Products:
    """Stands in for apex's module of fused weight gradients, with the names of its functions."""

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


def linear_is_enabled() -> bool:
    """Whether linear layers multiply by `linear`."""
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
    return MCORE_LINEAR(
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


def rotate(states: Tensor, angles: Tensor, mscale: float = 1.0, **options: Any) -> Tensor:
    """Turns queries or keys by their positions; what is not whole heads in two halves is left to Megatron-Core.

    Args:
        states: [s, b, heads, head_dim].
        angles: radians, fp32 [s, 1, 1, head_dim], the second half as the first.
        mscale: factor of the result.
        options: other ways to turn, by the names that the release of Megatron-Core has for them; each is off if false.
    """
    if any(options.values()) or angles.size(-1) != states.size(-1):
        return MCORE_ROTATION(states, angles, mscale=mscale, **options)
    return Rotation.apply(states, *waves(angles, mscale, states.dtype))


def waves(angles: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines times the factor. They stay with the angles, which are the same in all layers and steps."""
    kept = getattr(angles, "waves", None)
    if kept is None or kept[0] != (factor, dtype):
        cosine, sine = ((wave * factor).to(dtype) for wave in (angles.cos(), angles.sin()))
        kept = angles.waves = ((factor, dtype), (cosine, sine))  # type: ignore[attr-defined]
    found: tuple[Tensor, Tensor] = kept[1]
    return found


class Rotation(torch.autograd.Function):
    """Turns pairs of dimensions, i and i + head_dim / 2, by an angle each."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """states: [s, b, heads, d]; cosine and sine: [s, 1, 1, d]. Returns what `turned` returns."""
        ctx.save_for_backward(cosine, sine)
        sequence, batch, heads, width = states.shape
        # The positions of a head lie together, as attention reads them.
        result = states.new_empty(batch, heads, sequence, width).permute(2, 0, 1, 3)
        return turned(states, cosine, sine, result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, turned back."""
        cosine, sine = ctx.saved_tensors
        return turned(gradient, cosine, -sine.roll(sine.size(-1) // 2, -1), torch.empty_like(gradient)), None, None


def turned(states: Tensor, cosine: Tensor, sine: Tensor, result: Tensor) -> Tensor:
    """(x1 cos1 - x2 sin1, x2 cos2 + x1 sin2), x1 and x2 the halves of the last dimension, in the given `result`.

    Every product is rounded before it is added, as in Megatron-Core and in transformers: the bits are theirs.
    """
    half = states.size(-1) // 2
    torch.mul(states, cosine, out=result)
    result[..., :half] -= states[..., half:] * sine[..., :half]
    result[..., half:] += states[..., :half] * sine[..., half:]
    return result


def swiglu(gate_up: Tensor, bias: Tensor | None, *storage: bool) -> Tensor:
    """silu(gate) * up: [..., ffn].

    Args:
        gate_up: [..., 2 ffn], the gates and then what they scale.
        bias: [2 ffn], added before; or None.
        storage: in what form Megatron-Core's own would keep its input: on a CPU as it is.
    """
    return _Swiglu.apply(gate_up if bias is None else gate_up + bias)


class _Swiglu(torch.autograd.Function):
    """As `swiglu` without a bias."""

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
    """Whether losses are computed by `label_nats`: where no ranks share the vocabulary."""
    return are_installed() and groups.tensor_size() == 1


def _language_model_loss(model: LanguageModule, labels: Tensor, logits: Tensor) -> Tensor:
    """LanguageModule.compute_language_model_loss: nats of each label, fp32 [b, s]. Shapes are those of `label_nats`."""
    return label_nats(labels, logits) if groups.tensor_size() == 1 else _MCORE_LOSS(model, labels, logits)


def label_nats(labels: Tensor, logits: Tensor) -> Tensor:
    """Nats of each label: fp32 [b, s]. What LanguageModule.compute_language_model_loss gives.

    Args:
        labels: int64 [b, s].
        logits: [s, b, vocabulary]; written over.
    """
    rows = _CrossEntropy.apply(logits.float().flatten(0, 1), labels.transpose(0, 1).flatten())
    return rows.view(logits.shape[:2]).transpose(0, 1).contiguous()


class _CrossEntropy(torch.autograd.Function):
    """Logits, fp32 [rows, vocabulary], and labels, int64 [rows], to nats, fp32 [rows]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """Leaves the probabilities in the place of the logits, where a gradient is asked for."""
        at_once = max(1, CACHED_BYTES // (logits.size(1) * logits.element_size()))
        shares = []
        for part, label in zip(logits.split(at_once), labels.split(at_once), strict=True):
            log_shares = torch.log_softmax(part, dim=-1)
            shares.append(log_shares.gather(1, label.unsqueeze(1)))
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


def gradient_norm(
    chunk_size: int, noop_flag: Tensor, tensor_lists: Sequence[Sequence[Tensor]], per_tensor: bool
) -> tuple[Tensor, None]:
    """The norm of all tensors together, float32 [1], summed in float64.

    In the place of Megatron-Core's local_multi_tensor_l2_norm. That calls torch.norm, which on a CPU adds the squares
    of a tensor one after the other in float32: 0.5 % are missing at 65M elements, 3.6 % at 262M. Its arguments.
    """
    squares = [
        torch.linalg.vector_norm(piece, dtype=torch.float64).square()
        for tensors in tensor_lists
        for tensor in tensors
        for piece in tensor.reshape(-1).split(2**18)  # of which a float64 copy stays in the cache
    ]
    return torch.stack(squares).sum().sqrt().float().reshape(1), None


def scale_in_place(chunk_size: int, overflow: Any, lists: Sequence[Sequence[Tensor]], factor: float) -> None:
    """Scales the tensors of the first list, which are those of the second."""
    for tensor in lists[0]:
        tensor.mul_(factor)
