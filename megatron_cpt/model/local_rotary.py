"""Rotary positions of two kinds in one model: local layers turn with a base of their own (arXiv:2503.19786, section 2).

Megatron-Core's GPTModel computes one set of angles and gives it to every layer. Here it computes both, side by side,
and each layer takes its own: so ranks that share sequences or documents, and recomputation, meet nothing new.
"""

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_cpt.families.family import ModelShape


class PairedRotaryEmbedding(RotaryEmbedding):
    """The angles of global layers, then those of local ones, in the last dimension."""

    def __init__(self, local_base: float, **named: Any) -> None:
        """Takes what RotaryEmbedding takes for global layers, and the base of local ones."""
        super().__init__(**named)
        self.local = RotaryEmbedding(**{**named, "rotary_base": local_base})

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """Angles of positions, [positions, 1, 1, 2 * head_dim]."""
        return torch.cat([super().get_emb(max_seq_len, offset), self.local.get_emb(max_seq_len, offset)], dim=-1)


def pair_rotary(model: GPTModel, shape: ModelShape) -> None:
    """Gives a chunk of the model both kinds of angles, if the shape has two."""
    if shape.local_rope_base is not None:
        model.rotary_pos_emb = PairedRotaryEmbedding(
            local_base=shape.local_rope_base,
            kv_channels=shape.head_dim,
            rotary_percent=shape.rotary_share,
            rotary_base=shape.rope_base,
            use_cpu_initialization=model.config.use_cpu_initialization,
            cp_group=model.pg_collection.cp,
        )


def own_angles(both: Tensor, is_local: bool) -> Tensor:
    """A layer's own half of the angles: [positions, 1, 1, head_dim]."""
    return both.chunk(2, dim=-1)[int(is_local)]
