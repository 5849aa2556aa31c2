"""Micro batches as the model takes them."""

from collections.abc import Sequence
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
    document_lengths: tuple[int, ...] | None = None
    """Tokens of the documents, or of what a sequence holds of them, over the b sequences laid end to end. None:
    attention crosses documents."""


def make_batch(
    windows: np.ndarray,
    scored: np.ndarray,
    sources: np.ndarray,
    device: torch.device,
    document_starts: Sequence[np.ndarray] | None = None,
    counted: np.ndarray | None = None,
) -> Batch:
    """A batch from windows of s + 1 tokens.

    Args:
        windows: int64 [b, s + 1], a sequence and the token after it.
        scored: int64 [b], how many leading labels of each sequence are there to count in the loss.
        sources: int64 [b], which source each is from.
        document_starts: for each sequence, where documents begin in it; None lets attention cross documents.
        counted: bool [b, s], which of these labels do count (labels.py); None: all.
    """
    length = windows.shape[1] - 1
    places = np.arange(length)
    mask = (places[None, :] < scored[:, None]).astype(np.float32)
    if counted is not None:
        mask *= counted
    tokens = torch.from_numpy(windows).to(device, non_blocking=True)
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.from_numpy(mask).to(device, non_blocking=True),
        positions=torch.from_numpy(places).to(device, non_blocking=True).expand(len(windows), -1),
        sources=torch.from_numpy(np.asarray(sources, dtype=np.int64)).to(device, non_blocking=True),
        document_lengths=None if document_starts is None else lengths_between(document_starts, length),
    )


def lengths_between(document_starts: Sequence[np.ndarray], length: int) -> tuple[int, ...]:
    """Tokens of each document in sequences laid end to end; a sequence ends the document that it cuts.

    Args:
        document_starts: for each sequence, where documents begin in it, ascending.
        length: tokens of a sequence.
    """
    cuts = (np.unique(np.concatenate([[0], starts[starts < length], [length]])) for starts in document_starts)
    return tuple(int(number) for ends in cuts for number in np.diff(ends))
