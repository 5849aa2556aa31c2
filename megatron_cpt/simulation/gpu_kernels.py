"""What stands in for a GPU in a simulated rank, each with what it keeps and why.

Tensors are fake ones on the CPU: a build of torch without CUDA has no autograd for fake tensors of CUDA. So the kernels
that a GPU would choose are stood in for here. A stand-in keeps for the backward pass what the kernel keeps, and counts
one pass over its arguments and results.

- RMSNorm: torch's `_fused_rms_norm` on CUDA keeps input, weight and one fp32 number a row. So does the one here.
- Attention: the flash kernel keeps query, key and value as they are (keys are not repeated for grouped queries), its
  output, and one fp32 number a query. So does the one here. It counts the FLOPs of what a causal mask leaves, and 2.5
  times as many backward. Attention with a soft cap is no kernel: its own code runs.
- Functions that Megatron-Core compiles (jit_fuser) are one kernel each: nothing in between is allocated. They run here
  as they are, and what they neither give back nor keep is not counted.
- The gradient norm is one kernel over many tensors (Transformer Engine, apex): no number of it is read by the host.
- Tokens go to experts evenly. A router that favours some experts makes the ranks that hold them fuller.
- Numbers that the host reads are 1, but for the counts of routed tokens, which are the even ones.
- Random states are none, and collectives (NCCL) are over at once and leave their tensors as they are.

Transformer Engine's layers keep the same tensors, but for fp8, which is not simulated.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.cpu_kernels import scale_in_place
from megatron_cpt.parallel import cpu_platform
from megatron_cpt.parallel.patches import replace_name
from megatron_cpt.simulation.trace import Trace


def start_fake_ranks(rank: int, world_size: int) -> None:
    """Makes this process one rank of a world in which every collective is over at once."""
    new_group = dist.new_group

    def new_fake_group(*given: Any, **named: Any) -> Any:
        return new_group(*given, **named | ({"backend": "fake"} if named.get("backend") else {}))

    replace_name("torch", "distributed.new_group", new_fake_group)
    replace_name("torch", "distributed.all_gather_object", _gather_own)
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())


def _gather_own(gathered: list[Any], own: Any, group: Any = None) -> None:
    """All ranks have what this one has."""
    gathered[:] = [own] * len(gathered)


def install(trace: Trace, shape: ModelShape) -> None:
    """Has this process use the stand-ins from now on. It is of no use for anything else afterwards."""
    replace_name("torch", "nn.RMSNorm.forward", lambda norm, states: _RmsNorm.apply(states, norm.weight))
    replace_name("torch", "nn.functional.scaled_dot_product_attention", _attention(trace))
    replace_name("torch.nn.attention.bias", "causal_lower_right", lambda queries, keys: None)
    replace_name("torch", "Tensor.cpu", _to_host(trace))
    replace_name("torch", "Tensor.numpy", _array_of)
    replace_name("torch", "nn.Module.to", lambda module, *given, **named: module)
    replace_name("torch", "nn.Module.bfloat16", lambda module: module)
    random = "megatron.core.tensor_parallel.random"
    replace_name(random, "_get_cuda_rng_state", lambda *given, **named: torch.zeros(16, dtype=torch.uint8))
    replace_name(random, "_set_cuda_rng_state", lambda *given, **named: None)
    replace_name("megatron.core.optimizer.clip_grads", "l2_norm_impl", _gradient_norm)
    replace_name("megatron.core.optimizer.clip_grads", "multi_tensor_scale_impl", scale_in_place)
    platform = sys.modules["megatron.core.utils"].torch
    platform.cuda.synchronize = lambda *given: trace.wait()
    setattr(cpu_platform.Event, "synchronize", lambda event: trace.wait())  # noqa: B010  (a method of a class)
    _fuse_compiled(trace)
    if shape.experts:
        _route_evenly(shape)


def _to_host(trace: Trace) -> Callable[[Tensor], Tensor]:
    """Copies numbers to the host, for which it waits once; they are 1."""

    def to_host(tensor: Tensor) -> Tensor:
        trace.wait()
        with unset_fake_temporarily():
            return torch.ones(tensor.shape, dtype=tensor.dtype)

    return to_host


def _array_of(tensor: Tensor) -> np.ndarray:
    """The array of a tensor on the host; under a fake mode torch gives one of memory that nobody has written."""
    with _disable_current_modes():
        return _NUMPY(tensor)


_NUMPY = Tensor.numpy


def selected(shape: ModelShape) -> Callable[[Tensor], int]:
    """How many elements a mask of [experts, tokens] selects where each token is sent to its number of experts."""

    def count(mask: Tensor) -> int:
        return mask.numel() // shape.experts * shape.experts_per_token

    return count


class _RmsNorm(torch.autograd.Function):
    """torch's fused RMSNorm."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        """states: [..., width]; weight: [width]."""
        ctx.save_for_backward(states, weight, states.new_empty((*states.shape[:-1], 1), dtype=torch.float32))
        return torch.relu(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """gradient: [..., width]."""
        states, weight, _ = ctx.saved_tensors
        return states + gradient, torch.empty_like(weight)


def _attention(trace: Trace) -> Callable[..., Tensor]:
    """scaled_dot_product_attention, as the flash kernel."""

    class Flash(torch.autograd.Function):
        """Queries [b, heads, q, d], keys and values [b, groups, k, d]."""

        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: float) -> Tensor:
            batch, heads, queries, width = query.shape
            output = query.new_empty(batch, queries, heads, width).permute(0, 2, 1, 3)
            logs = query.new_empty(query.shape[:3], dtype=torch.float32)
            ctx.save_for_backward(query, key, value, output, logs)
            ctx.flops = 4 * batch * heads * queries * seen * width
            trace.add_kernel(_bytes(query, key, value, output), ctx.flops)
            return output

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
            query, key, value, output, _ = ctx.saved_tensors
            trace.add_kernel(2 * _bytes(query, key, value, output), 2.5 * ctx.flops)
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, is_causal: bool = False, **options: Any
    ) -> Tensor:
        # Of k keys the first of q queries sees k - q + 1, the last all: with a window, no more than that.
        queries, keys = query.size(2), key.size(2)
        return Flash.apply(query, key, value, keys - (queries - 1) / 2)

    return attention


def _bytes(*tensors: Tensor) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _gradient_norm(chunk_size: int, noop: Tensor, lists: Sequence[Sequence[Tensor]], *rest: Any) -> tuple[Tensor, None]:
    """The norm of all tensors together, by a kernel that reads them once."""
    for tensor in (tensor for tensors in lists for tensor in tensors):
        tensor.norm()
    return torch.zeros(1), None


def _fuse_compiled(trace: Trace) -> None:
    """Counts every function that Megatron-Core would compile as one kernel."""
    fused: dict[int, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core"):
            for attribute, value in list(vars(module).items()):
                if getattr(value, cpu_platform.COMPILED_ON_GPU, False):
                    function = fused.setdefault(id(value), trace.as_one_kernel(value))
                    vars(module)[attribute] = function


def _route_evenly(shape: ModelShape) -> None:
    """Has every rank send, and get, as many tokens for each expert."""
    dispatcher_module = "megatron.core.transformer.moe.token_dispatcher"
    kind = sys.modules[dispatcher_module].MoEAlltoAllTokenDispatcher
    synchronize = kind._maybe_dtoh_and_synchronize

    def even(dispatcher: Any, point: str, tokens_per_expert: Any = None) -> Any:
        found = synchronize(dispatcher, point, tokens_per_expert)
        if point != dispatcher.cuda_dtoh_point or dispatcher.drop_and_pad:
            return found
        own, local = dispatcher.num_local_experts, math.prod(dispatcher.hidden_shape[:-1]) * shape.experts_per_token
        everywhere, ranks = local * dispatcher.tp_size, dispatcher.tp_size * dispatcher.ep_size
        dispatcher.num_out_tokens = local
        if ranks > 1:
            dispatcher.input_splits = dispatcher.output_splits = _shares(local, dispatcher.ep_size)
            dispatcher.output_splits_tp = np.full(dispatcher.tp_size, local)
        if own > 1:
            dispatcher.num_global_tokens_per_local_expert = _shares(everywhere, ranks * own).reshape(ranks, own)
            chunks = np.arange(dispatcher.num_experts * dispatcher.tp_size)
            dispatcher.sort_input_by_local_experts = chunks.reshape(-1, own).T.ravel()
            dispatcher.restore_output_by_local_experts = chunks.reshape(own, -1).T.ravel()
        return _shares(everywhere, own)

    replace_name(dispatcher_module, "maybe_move_tensor_to_cpu", lambda tensor, *given, **named: tensor)
    replace_name(dispatcher_module, "MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize", even)


def _shares(total: int, parts: int) -> np.ndarray:
    """A number in parts that differ by at most 1: int64 [parts]."""
    return total // parts + (np.arange(parts) < total % parts)
