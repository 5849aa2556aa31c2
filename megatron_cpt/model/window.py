"""Core attention that sees no further back than a window (arXiv:2310.06825, section 2), at any length.

Queries are taken in blocks, each with the keys that some query of it sees, so that neither time nor memory grows with
the square of the length.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from megatron_cpt.model.attention import ScaledDotProductAttention

# Queries of a block: as many as the window has tokens, within these bounds. Smaller are slow, larger wasteful.
SMALLEST_BLOCK, LARGEST_BLOCK = 128, 1024


class WindowedAttention(ScaledDotProductAttention):
    """Causal attention within a window, with grouped queries. Tensors are [sequence, batch, heads, head_dim]."""

    def __init__(self, *given: Any, window: int, **named: Any) -> None:
        """Takes what ScaledDotProductAttention takes, and the tokens that a position sees, itself included."""
        super().__init__(*given, **named)
        self.window = window

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """As ScaledDotProductAttention.attend.

        query: [q, b, heads, d]; key and value: [k, b, groups, d], k >= q, the last query at the last key.
        Returns [q, b, heads * d].
        """
        if len(key) <= self.window:
            return super().attend(query, key, value, dropout)
        size, before = min(max(self.window, SMALLEST_BLOCK), LARGEST_BLOCK), len(key) - len(query)
        parts = [
            self.attend_block(queries, key, value, before + number * size, dropout)
            for number, queries in enumerate(query.split(size))
        ]
        return torch.cat(parts)

    def attend_block(self, queries: Tensor, key: Tensor, value: Tensor, start: int, dropout: float) -> Tensor:
        """The outputs, [q, b, heads * d], of q queries from position `start` on."""
        stop, first = start + len(queries), max(0, start - self.window + 1)
        places = torch.arange(first, stop, device=queries.device)
        distance = places[start - first :, None] - places
        context = functional.scaled_dot_product_attention(
            queries.permute(1, 2, 0, 3),  # [b, heads, q, d]
            key[first:stop].permute(1, 2, 0, 3),
            value[first:stop].permute(1, 2, 0, 3),
            attn_mask=(distance >= 0) & (distance < self.window),
            dropout_p=dropout,
            scale=self.scale,
            enable_gqa=key.size(2) != queries.size(2),
        )
        return context.permute(2, 0, 1, 3).flatten(2)
