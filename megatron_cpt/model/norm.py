"""torch's norms for Megatron-Core's local layer spec, also where sequences are divided; on a CPU an RMSNorm of ours."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_cpt.parallel import groups


class Norm:
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
