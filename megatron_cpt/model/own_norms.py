"""Norms that Megatron-Core lacks. Their weights are copied from a folder as they are, never computed with."""

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor


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
