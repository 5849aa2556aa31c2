"""Core attention through scaled_dot_product_attention, for Megatron-Core's local layer spec.

Megatron's own local core attention builds the whole score matrix and a softmax over it. This one
keeps no matrix: flash attention on CUDA and on CPU, at any length.
"""

import contextlib
from typing import Any

from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional


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
        if config.context_parallel_size > 1:
            raise ValueError(
                "ScaledDotProductAttention sees one rank's part of a sequence: context_parallel_size must be 1"
            )
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
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attends each position to itself and those before it.

        query: [s, b, heads, d]; key and value: [s, b, groups, d]. Returns [s, b, heads * d].
        """
        if attention_mask is not None or attention_bias is not None or packed_seq_params is not None:
            raise ValueError("ScaledDotProductAttention takes no mask, bias or packed sequences: it is causal")
        dropout = self.dropout if self.training else 0.0
        # Heads are split over tensor-parallel ranks, so each rank draws from its own random state, as Megatron does.
        random_state = get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext()
        with random_state:
            context = functional.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),  # [b, heads, s, d]
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                is_causal=True,
                dropout_p=dropout,
                scale=self.scale,
                enable_gqa=key.size(2) != query.size(2),
            )
        return context.permute(2, 0, 1, 3).flatten(2)
