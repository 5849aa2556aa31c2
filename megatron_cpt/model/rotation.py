"""Rotary positions on whole heads, in one pass forward and one backward.

Where no fused kernel is (`apply_rope_fusion`), Megatron-Core splits off the part of a head that is not turned and joins
it on again, also where it is empty: two copies of queries and keys forward, four backward, in every layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.common.embeddings import rope_utils
from torch import Tensor

MEGATRONS: Callable[..., Tensor] = rope_utils._apply_rotary_pos_emb_bshd


def put_in_place() -> None:
    """Has Megatron-Core turn whole heads this way from now on, in this process."""
    rope_utils._apply_rotary_pos_emb_bshd = rotate


def rotate(states: Tensor, angles: Tensor, mscale: float = 1.0, **options: Any) -> Tensor:
    """Turns queries or keys by their positions; what is not whole heads in two halves is left to Megatron-Core.

    Args:
        states: [s, b, heads, head_dim].
        angles: radians, fp32 [s, 1, 1, head_dim], the second half as the first.
        mscale: factor of the result.
        options: other ways to turn, by the names that the release of Megatron-Core has for them; each is off if false.
    """
    if any(options.values()) or angles.size(-1) != states.size(-1):
        return MEGATRONS(states, angles, mscale=mscale, **options)
    return Rotation.apply(states, *waves(angles, mscale, states.dtype))


def waves(angles: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines times the factor. They stay with the angles, which are the same in all layers and steps."""
    kept = getattr(angles, "waves", None)
    if kept is None or kept[0] != (factor, dtype):
        cosine, sine = ((wave * factor).to(dtype) for wave in (angles.cos(), angles.sin()))
        kept = angles.waves = ((factor, dtype), (cosine, sine))  # type: ignore[attr-defined]
    found: tuple[Tensor, Tensor] = kept[1]
    return found


class Rotation(torch.autograd.Function):
    """Turns pairs of dimensions, i and i + head_dim / 2, by an angle each."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """states: [s, b, heads, d]; cosine and sine: [s, 1, 1, d]. Returns what `turned` returns."""
        ctx.save_for_backward(cosine, sine)
        sequence, batch, heads, width = states.shape
        # The positions of a head lie together, as attention reads them.
        result = states.new_empty(batch, heads, sequence, width).permute(2, 0, 1, 3)
        return turned(states, cosine, sine, result)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, turned back."""
        cosine, sine = ctx.saved_tensors
        return turned(gradient, cosine, -sine.roll(sine.size(-1) // 2, -1), torch.empty_like(gradient)), None, None


def turned(states: Tensor, cosine: Tensor, sine: Tensor, result: Tensor) -> Tensor:
    """(x1 cos1 - x2 sin1, x2 cos2 + x1 sin2), x1 and x2 the halves of the last dimension, in the given `result`.

    Every product is rounded before it is added, as in Megatron-Core and in transformers: the bits are theirs.
    """
    half = states.size(-1) // 2
    torch.mul(states, cosine, out=result)
    result[..., :half] -= states[..., half:] * sine[..., :half]
    result[..., half:] += states[..., :half] * sine[..., half:]
    return result
