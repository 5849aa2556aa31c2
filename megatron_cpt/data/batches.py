"""Micro batches as the model takes them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro batch of one rank: b sequences of s tokens."""

    tokens: Tensor
    """int64 [b, s]: the model's input."""
    labels: Tensor
    """int64 [b, s]: the token that follows each input token."""
    loss_mask: Tensor
    """float32 [b, s]: 1 where the loss counts, else 0."""
    positions: Tensor
    """int64 [b, s]: position of each token in its sequence."""
    sources: Tensor
    """int64 [b]: which source each sequence is from."""


def make_batch(windows: np.ndarray, scored: np.ndarray, sources: np.ndarray, device: torch.device) -> Batch:
    """A batch from windows of s + 1 tokens.

    Args:
        windows: int64 [b, s + 1], a sequence and the token after it.
        scored: int64 [b], how many leading labels of each sequence count in the loss.
        sources: int64 [b], which source each is from.
    """
    length = windows.shape[1] - 1
    places = np.arange(length)
    mask = (places[None, :] < scored[:, None]).astype(np.float32)
    tokens = torch.from_numpy(windows).to(device, non_blocking=True)
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.from_numpy(mask).to(device, non_blocking=True),
        positions=torch.from_numpy(places).to(device, non_blocking=True).expand(len(windows), -1),
        sources=torch.from_numpy(np.asarray(sources, dtype=np.int64)).to(device, non_blocking=True),
    )
