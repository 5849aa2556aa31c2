"""Cross entropy of a whole vocabulary on a CPU, some rows at a time, so that these stay in the processor's cache.

Megatron-Core's makes five passes over all logits, each from memory; here one that reads and writes them, and one
backward. Like Megatron-Core's it writes over the logits: no other array of their size is made.
"""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_cpt.parallel import groups

CACHED_BYTES = 1 << 20
"""Of logits that are worked on at a time."""


def serves() -> bool:
    """Whether losses are computed this way: on a CPU, where no ranks share the vocabulary."""
    return groups.device().type == "cpu" and groups.tensor_size() == 1


def use_cached_rows(model: GPTModel) -> None:
    """Has the model compute its losses this way where it serves."""
    if model.post_process and serves():
        model.compute_language_model_loss = label_nats


def label_nats(labels: Tensor, logits: Tensor) -> Tensor:
    """Nats of each label: fp32 [b, s]. What GPTModel.compute_language_model_loss gives.

    Args:
        labels: int64 [b, s].
        logits: [s, b, vocabulary]; written over.
    """
    rows = CrossEntropy.apply(logits.float().flatten(0, 1), labels.transpose(0, 1).flatten())
    return rows.view(logits.shape[:2]).transpose(0, 1).contiguous()


class CrossEntropy(torch.autograd.Function):
    """Logits, fp32 [rows, vocabulary], and labels, int64 [rows], to nats, fp32 [rows]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """Leaves the probabilities in the place of the logits, where a gradient is asked for."""
        at_once = max(1, CACHED_BYTES // (logits.size(1) * logits.element_size()))
        shares = []
        for part, wanted in zip(logits.split(at_once), labels.split(at_once), strict=True):
            log_shares = torch.log_softmax(part, dim=-1)
            shares.append(log_shares.gather(1, wanted.unsqueeze(1)))
            if ctx.needs_input_grad[0]:
                torch.exp(log_shares, out=part)
        ctx.save_for_backward(logits, labels)
        return torch.cat(shares).squeeze(1).neg_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Probabilities, less one at the label, times the gradient of the row."""
        shares, labels = ctx.saved_tensors
        shares[torch.arange(len(labels)), labels] -= 1
        return shares.mul_(gradient.unsqueeze(1)), None
