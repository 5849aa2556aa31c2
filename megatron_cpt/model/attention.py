"""Core attention through scaled_dot_product_attention, for Megatron-Core's local layer spec.

Megatron's own local core attention builds the whole score matrix and a softmax over it. This one
keeps no matrix: flash attention on CUDA and on CPU, at any length.
"""

import contextlib
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from megatron_cpt.model.shared_documents import SharedDocuments
from megatron_cpt.parallel.context import whole_row, with_keys_before

# Queries whose scores stand in memory at once where scores are computed one by one.
QUERIES_AT_ONCE = 1024


class ScaledDotProductAttention(MegatronModule):
    """Causal attention with grouped queries. Tensors are [sequence, batch, heads, head_dim]."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        if attn_mask_type is not AttnMaskType.causal:
            raise ValueError(f"ScaledDotProductAttention is causal; the layer asks for {attn_mask_type}")
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attends each position to itself and those before it.

        query: [s, b, heads, d]; key and value: [s, b, groups, d]. Returns [s, b, heads * d]. Where ranks share
        sequences, s is this rank's part (parallel/context.py). With packed sequences all are [t, heads, d]: b
        documents of any length, end to end; with shared documents [t, 1, heads, d]: this rank's pieces of them.
        """
        if attention_mask is not None or attention_bias is not None:
            raise ValueError("ScaledDotProductAttention takes no mask and no bias: it is causal")
        dropout = self.dropout if self.training else 0.0
        # Heads are split over tensor-parallel ranks, so each rank draws from its own random state, as Megatron does.
        random_state = get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext()
        with random_state:
            if isinstance(packed_seq_params, SharedDocuments):
                return self.attend_pieces(query, key, value, packed_seq_params, dropout)
            if packed_seq_params is not None:
                return self.attend_documents(query, key, value, packed_seq_params, dropout)
            if self.config.context_parallel_size > 1:
                return torch.cat(
                    [
                        self.attend(part, keys, values, dropout)
                        for part, keys, values in with_keys_before(query, key, value)
                    ]
                )
            return self.attend(query, key, value, dropout)

    def attend_documents(
        self, query: Tensor, key: Tensor, value: Tensor, documents: PackedSeqParams, dropout: float
    ) -> Tensor:
        """Each document by itself. query: [t, heads, d]; key and value: [t, groups, d]. Returns [t, heads * d]."""
        lengths = documents.cu_seqlens_q.diff().tolist()
        queries, keys, values = (states.unsqueeze(1).split(lengths) for states in (query, key, value))
        parts = zip(queries, keys, values, strict=True)
        return torch.cat([self.attend(query, key, value, dropout) for query, key, value in parts]).squeeze(1)

    def attend_pieces(
        self, query: Tensor, key: Tensor, value: Tensor, documents: SharedDocuments, dropout: float
    ) -> Tensor:
        """Each piece of this rank to its own document up to there, which other ranks have parts of.

        query: [t, 1, heads, d]; key and value: [t, 1, groups, d]. Returns [t, 1, heads * d].
        """
        keys, values = (whole_row(states, documents.sequences) for states in (key, value))
        queries = query.split([piece.end - piece.begin for piece in documents.pieces])
        seen = [slice(piece.document, piece.end) for piece in documents.pieces]
        parts = zip(queries, seen, strict=True)
        return torch.cat([self.attend(part, keys[places], values[places], dropout) for part, places in parts])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """The last query to all keys, the one before to all but the last, and so on.

        query: [q, b, heads, d]; key and value: [k, b, groups, d], k >= q. Returns [q, b, heads * d].
        """
        whole = len(query) == len(key)
        context = functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),  # [b, heads, q, d]
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=None if whole else causal_lower_right(len(query), len(key)),
            is_causal=whole,
            dropout_p=dropout,
            scale=self.scale,
            enable_gqa=key.size(2) != query.size(2),
        )
        return context.permute(2, 0, 1, 3).flatten(2)


class SoftCappedAttention(ScaledDotProductAttention):
    """Causal attention whose scores are soft-capped, and that may see no further back than a window.

    (arXiv:2408.00118, section 2.) No kernel of torch's computes a soft cap: the scores of a block of queries stand in
    memory, in fp32, as those of transformers do.
    """

    def __init__(self, *given: Any, soft_cap: float | None = None, window: int | None = None, **named: Any) -> None:
        """Takes what ScaledDotProductAttention takes.

        Args:
            soft_cap: c of c * tanh(score / c); None: scores are not capped.
            window: tokens that a position sees, itself included; None: all before it.
        """
        super().__init__(*given, **named)
        self.soft_cap, self.window = soft_cap, window

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """As above; query: [q, b, heads, d]; key and value: [k, b, groups, d], k >= q. Returns [q, b, heads * d]."""
        repeats, before = query.size(2) // key.size(2), len(key) - len(query)
        keys = key.permute(1, 2, 3, 0).repeat_interleave(repeats, dim=1)  # [b, heads, d, k]
        values = value.permute(1, 2, 0, 3).repeat_interleave(repeats, dim=1)  # [b, heads, k, d]
        queries = query.permute(1, 2, 0, 3)
        parts = [
            self.attend_block(queries[:, :, start : start + QUERIES_AT_ONCE], keys, values, before + start, dropout)
            for start in range(0, len(query), QUERIES_AT_ONCE)
        ]
        return torch.cat(parts, dim=2).permute(2, 0, 1, 3).flatten(2)

    def attend_block(self, queries: Tensor, keys: Tensor, values: Tensor, start: int, dropout: float) -> Tensor:
        """The outputs, [b, heads, q, d], of q queries from position `start` on."""
        stop = start + queries.size(2)
        scores = (queries @ keys[..., :stop]) * (queries.size(-1) ** -0.5 if self.scale is None else self.scale)
        if self.soft_cap is not None:
            scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
        distance = torch.arange(start, stop, device=scores.device)[:, None] - torch.arange(stop, device=scores.device)
        hidden = distance < 0
        if self.window is not None:
            hidden = hidden | (distance >= self.window)
        weights = scores.float().masked_fill(hidden, float("-inf")).softmax(dim=-1).to(queries.dtype)
        return functional.dropout(weights, dropout) @ values[:, :, :stop]
