"""Multi-head latent attention (arXiv:2405.04434, section 2.1), with the parameters of Megatron-Core's MLASelfAttention.

Keys and values of all heads come from one latent vector, queries from another or from the hidden states. A part of each
key is turned by its position and is the same in all heads.

Megatron-Core 0.16.1 cannot build its own without Transformer Engine. By its code, which was not run, its local layers
do not sum the gradient of the shared part of keys over tensor-parallel ranks, each of which has that of its own heads.
"""

from typing import Any

import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    checkpoint,
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.model.attention import DocumentPieces, ScaledDotProductAttention


class LatentAttention(MegatronModule):
    """Self-attention of a layer."""

    def __init__(
        self,
        config: MLATransformerConfig,
        layer_number: int,
        norm: Any,
        scale: float,
        turned_factor: float,
        pg_collection: ProcessGroupCollection | None = None,
        **ignored: Any,
    ) -> None:
        """Takes what a layer gives its self-attention, and more.

        Args:
            norm: makes the norms of latent vectors.
            scale: factor of the attention scores.
            turned_factor: factor of what is turned of queries and of keys.
        Raises:
            BadInput: `megatron.transformer` asks for a recomputation that this layer does not have.
        """
        super().__init__(config=config)
        self.pg_collection = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
        self.turned_factor = turned_factor
        recomputed = (config.recompute_modules or []) if config.recompute_granularity == "selective" else []
        if "mla_up_proj" in recomputed:
            rule = "latent attention recomputes nothing smaller than core_attn."
            raise BadInput(Fault(f"megatron.transformer.recompute_modules = {recomputed}", rule, "Use [core_attn]."))
        self.recomputes = "core_attn" in recomputed
        width = config.qk_head_dim + config.qk_pos_emb_head_dim
        heads, latent = config.num_attention_heads, config.kv_lora_rank
        if config.q_lora_rank is None:
            self.linear_q_proj = self._columns(config.hidden_size, heads * width)
        else:
            self.linear_q_down_proj = self._columns(config.hidden_size, config.q_lora_rank)
            self.q_layernorm = norm(config, config.q_lora_rank)
            self.linear_q_up_proj = self._columns(config.q_lora_rank, heads * width)
        self.linear_kv_down_proj = self._columns(config.hidden_size, latent + config.qk_pos_emb_head_dim)
        self.kv_layernorm = norm(config, latent)
        self.linear_kv_up_proj = self._columns(latent, heads * (config.qk_head_dim + config.v_head_dim))
        self.core_attention = ScaledDotProductAttention(
            config, layer_number, AttnMaskType.causal, "self", softmax_scale=scale, pg_collection=self.pg_collection
        )
        self.linear_proj = RowParallelLinear(
            heads * config.v_head_dim,
            config.hidden_size,
            config=config,
            init_method=config.output_layer_init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=self.pg_collection.tp,
        )
        self.rotary_pos_emb: Any = None  # of all layers (rope.py)

    def _columns(self, width: int, rows: int) -> ColumnParallelLinear:
        """A projection whose rows tensor-parallel ranks divide."""
        return ColumnParallelLinear(
            width,
            rows,
            config=self.config,
            init_method=self.config.init_method,
            bias=False,
            gather_output=False,
            tp_group=self.pg_collection.tp,
        )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, packed_seq_params: Any = None, **ignored: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, h], this rank's part of the sequences. Returns the same, and no bias."""

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.core_attention(query, key, value, attention_mask, packed_seq_params=packed_seq_params)

        states = self.query_key_value(hidden_states, packed_seq_params)
        attended = checkpoint(attend, False, *states) if self.recomputes and self.training else attend(*states)
        output: tuple[Tensor, Tensor | None] = self.linear_proj(attended)
        return output

    def query_key_value(self, hidden_states: Tensor, documents: Any) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's heads: queries and keys [s, b, heads, head_dim], values [s, b, heads, value_head_dim]."""
        config = self.config
        if config.q_lora_rank is None:
            query, _ = self.linear_q_proj(hidden_states)
        else:
            latent = gather_from_tensor_model_parallel_region(self.linear_q_down_proj(hidden_states)[0])
            query, _ = self.linear_q_up_proj(self.q_layernorm(self._own_tokens(latent)))
        both = gather_from_tensor_model_parallel_region(self.linear_kv_down_proj(hidden_states)[0])
        latent, turned_key = both.split([config.kv_lora_rank, config.qk_pos_emb_head_dim], dim=-1)
        key_value, _ = self.linear_kv_up_proj(self.kv_layernorm(self._own_tokens(latent)))
        query = query.unflatten(-1, (-1, config.qk_head_dim + config.qk_pos_emb_head_dim))
        key_value = key_value.unflatten(-1, (-1, config.qk_head_dim + config.v_head_dim))
        plain_query, turned_query = query.split([config.qk_head_dim, config.qk_pos_emb_head_dim], dim=-1)
        plain_key, value = key_value.split([config.qk_head_dim, config.v_head_dim], dim=-1)
        # Backward, the sum over all ranks' heads.
        turned_key = copy_to_tensor_model_parallel_region(turned_key).unsqueeze(-2)
        angles = self._angles(len(query), documents)
        turned_query, turned_key = self._turn(turned_query, angles), self._turn(turned_key, angles)
        turned_key = turned_key.expand(-1, -1, query.size(-2), -1)
        return torch.cat([plain_query, turned_query], -1), torch.cat([plain_key, turned_key], -1), value

    def _own_tokens(self, states: Tensor) -> Tensor:
        """The tokens that this rank norms, of whole sequences."""
        return scatter_to_sequence_parallel_region(states) if self.config.sequence_parallel else states

    def _angles(self, length: int, documents: Any) -> Tensor:
        """The angles of this rank's tokens, [s, 1, 1, dimensions that are turned]."""
        if isinstance(documents, DocumentPieces):
            angles: Tensor = self.rotary_pos_emb.get_emb(documents.max_seqlen_q)[documents.positions]
            return angles
        angles = self.rotary_pos_emb(length * self.config.context_parallel_size)
        return angles

    def _turn(self, states: Tensor, angles: Tensor) -> Tensor:
        """Turns pairs of neighbouring dimensions, [s, b, heads, 2 pairs], which come out as two halves."""
        halves = torch.cat([states[..., 0::2], states[..., 1::2]], dim=-1)
        # Releases differ in how they are told of such pairs, and here it has the kernel for CPUs.
        turned: Tensor = rope_utils._apply_rotary_pos_emb_bshd(halves, angles, mscale=self.turned_factor)
        return turned
