"""Rotary positions: scaled frequencies, and two bases in one model.

Megatron-Core 0.16.1 has Llama 3's scaling with built-in numbers, and YaRN in an embedding that turns whole heads only.
Here every scaling is a change of the frequencies, computed in fp32, operation by operation as in transformers: at
position 100,000 one unit in the last place of a frequency turns a head by 0.01 radians.

Local layers of some models have a base of their own (arXiv:2503.19786, section 2). Both sets of angles are computed
side by side, and each layer takes its own.
"""

import math
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor

from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.rope import (
    DynamicScaling,
    LengthScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)


class _OwnRotaryEmbedding(RotaryEmbedding):
    """Angles with the frequencies of a shape's scaling.

    Where local layers have a base of their own: the angles of the other layers, then theirs, in the last dimension.
    """

    def __init__(self, shape: ModelShape, **named: Any) -> None:
        """Takes what RotaryEmbedding takes, besides a base and a share."""
        share = 1.0 if shape.latent_attention else shape.rotary_share
        super().__init__(
            rotary_percent=share, rotary_base=shape.rope_base, rotary_interleaved=shape.rotary_interleaved, **named
        )
        self.shape, self.local = shape, None
        if shape.local_rope_base is not None:
            self.local = RotaryEmbedding(rotary_percent=shape.rotary_share, rotary_base=shape.local_rope_base, **named)
        if shape.rope_scaling is not None:
            self._set_frequencies(shape.max_positions)

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """Angles of the positions of sequences of this length, [positions, 1, 1, dimensions that are turned]."""
        if isinstance(self.shape.rope_scaling, LengthScaling):
            self._set_frequencies(max_seq_len)
        angles = super().get_emb(max_seq_len, offset)
        return angles if self.local is None else torch.cat([angles, self.local.get_emb(max_seq_len, offset)], dim=-1)

    def _set_frequencies(self, length: int) -> None:
        shape = self.shape
        self.inv_freq = frequencies(shape.rope_base, shape.turned_width, shape.rope_scaling, length)


def own_rotary(model: LanguageModule, shape: ModelShape) -> None:
    """Gives a chunk of the model the angles of its shape where they are not Megatron-Core's."""
    if shape.latent_attention:
        angles = _OwnRotaryEmbedding(
            shape,
            kv_channels=shape.turned_width,
            use_cpu_initialization=model.config.use_cpu_initialization,
            cp_group=model.pg_collection.cp,
        )
        for layer in model.decoder.layers:
            layer.self_attention.rotary_pos_emb = angles
    elif shape.rope_scaling is not None or shape.local_rope_base is not None or shape.rotary_interleaved:
        model.rotary_pos_emb = _OwnRotaryEmbedding(
            shape,
            kv_channels=shape.head_dim,
            use_cpu_initialization=model.config.use_cpu_initialization,
            cp_group=model.pg_collection.cp,
        )


def own_angles(both: Tensor, is_local: bool) -> Tensor:
    """A layer's own half of the angles: [positions, 1, 1, head_dim]."""
    return both.chunk(2, dim=-1)[int(is_local)]


def scales_turned_parts(shape: ModelShape) -> bool:
    """Whether what is turned has a factor that is none of all scores: a part of each head, or some layers, are not."""
    in_part = shape.rotary_share < 1 or bool(shape.unturned_layers)
    return shape.turned_factor != 1 and in_part and not shape.latent_attention


def score_scale(shape: ModelShape, is_local: bool = False) -> float | None:
    """Factor of the attention scores; None: the root of head_dim, inverted.

    Where whole heads are turned in all layers, the factor of what is turned multiplies queries and keys, and so scores
    by its square; else it is no factor of the scores (layers.py).

    Args:
        is_local: whether the layer is a local one; those with a base of their own are not scaled.
    """
    unscaled = is_local and shape.local_rope_base is not None
    apart = scales_turned_parts(shape) or shape.latent_attention
    factor = 1.0 if unscaled or apart else shape.turned_factor
    return shape.attention_scale if factor == 1 else (shape.attention_scale or shape.head_dim**-0.5) * factor**2


def frequencies(base: float, turned: int, scaling: RopeScaling | None = None, length: int = 0) -> Tensor:
    """Radians a token of each pair of dimensions, fp32 [turned / 2].

    Args:
        base: base of the wavelengths.
        turned: dimensions of a head that are turned.
        scaling: how the wavelengths are changed.
        length: tokens of the sequence, where the scaling depends on it.
    """
    if isinstance(scaling, DynamicScaling):
        longer = max(length, scaling.original_positions) / scaling.original_positions
        base = base * (scaling.factor * longer - (scaling.factor - 1)) ** (turned / (turned - 2))
    lengths = base ** (torch.arange(0, turned, 2, dtype=torch.int64).float() / turned)
    match scaling:
        case None | DynamicScaling():
            return 1.0 / lengths
        case LinearScaling():
            return (1.0 / lengths) / scaling.factor
        case Llama3Scaling():
            return _llama3_frequencies(1.0 / lengths, scaling)
        case YarnScaling():
            return _yarn_frequencies(lengths, base, turned, scaling)
        case LongRopeScaling():
            factors = scaling.long if length > scaling.original_positions else scaling.short
            return 1.0 / (torch.tensor(factors, dtype=torch.float32) * lengths)


def _llama3_frequencies(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Those of long wavelengths divided by the factor, those between blended (arXiv:2407.21783, section 3.4.2)."""
    wavelengths = 2 * math.pi / plain
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    long = wavelengths > scaling.original_positions / low
    between = ~(wavelengths < scaling.original_positions / high) & ~long
    scaled = torch.where(long, plain / scaling.factor, plain)
    share = (scaling.original_positions / wavelengths - low) / (high - low)
    return torch.where(between, (1 - share) * scaled / scaling.factor + share * scaled, scaled)


def _yarn_frequencies(lengths: Tensor, base: float, turned: int, scaling: YarnScaling) -> Tensor:
    """Those of long wavelengths divided by the factor, those between blended by dimension (arXiv:2309.00071, 3.2)."""

    def dimension(turns: float) -> float:
        """The pair of dimensions that turns so many times within the original positions."""
        return turned * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension(scaling.fast), dimension(scaling.slow)
    if scaling.whole_dimensions:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, turned - 1)
    if first == last:
        last += 0.001  # as transformers has it
    ramp = torch.clamp((torch.arange(turned // 2, dtype=torch.float32) - first) / (last - first), 0, 1)
    kept = 1 - ramp
    return 1.0 / (scaling.factor * lengths) * (1 - kept) + 1.0 / lengths * kept
