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
from megatron_cpt.families.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling


class PairedRotaryEmbedding(RotaryEmbedding):
    """The angles of global layers, then those of local ones, in the last dimension."""

    def __init__(self, local_base: float, **named: Any) -> None:
        """Takes what RotaryEmbedding takes for global layers, and the base of local ones."""
        super().__init__(**named)
        self.local = RotaryEmbedding(**{**named, "rotary_base": local_base})

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """Angles of positions, [positions, 1, 1, 2 * head_dim]."""
        return torch.cat([super().get_emb(max_seq_len, offset), self.local.get_emb(max_seq_len, offset)], dim=-1)


def pair_rotary(model: LanguageModule, shape: ModelShape) -> None:
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


def scale_positions(model: LanguageModule, shape: ModelShape) -> None:
    """Gives a chunk of the model the frequencies of its shape's scaling."""
    if shape.rope_scaling is not None:
        turned = int(shape.head_dim * shape.rotary_share)
        model.rotary_pos_emb.inv_freq = frequencies(shape.rope_base, turned, shape.rope_scaling)


def score_scale(shape: ModelShape) -> float | None:
    """Factor of the attention scores; None: the root of head_dim, inverted.

    YaRN multiplies queries and keys by its factor, and so scores by its square.
    """
    if not isinstance(shape.rope_scaling, YarnScaling):
        return shape.attention_scale
    return (shape.attention_scale or shape.head_dim**-0.5) * shape.rope_scaling.attention_factor**2


def frequencies(base: float, turned: int, scaling: RopeScaling | None = None) -> Tensor:
    """Radians a token of each pair of dimensions, fp32 [turned / 2].

    Args:
        base: base of the wavelengths.
        turned: dimensions of a head that are turned.
        scaling: how the wavelengths are changed.
    """
    lengths = base ** (torch.arange(0, turned, 2, dtype=torch.int64).float() / turned)
    match scaling:
        case None:
            return 1.0 / lengths
        case LinearScaling():
            return (1.0 / lengths) / scaling.factor
        case Llama3Scaling():
            return _llama3_frequencies(1.0 / lengths, scaling)
        case YarnScaling():
            return _yarn_frequencies(lengths, base, turned, scaling)


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
