"""A vocabulary that tensor-parallel ranks cannot share evenly is padded; no token may be lost to the padding."""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_cpt.families.shape import ModelShape
from megatron_cpt.parallel import groups


def padded_vocabulary(shape: ModelShape, tensor_size: int) -> int:
    """Rows of the embedding: the vocabulary, rounded up so that tensor-parallel ranks share it evenly."""
    return -(-shape.vocabulary // tensor_size) * tensor_size


def hide_padding(model: GPTModel, shape: ModelShape) -> None:
    """Gives padding rows no probability: their logits become minus infinity on the rank that holds them.

    Without this they take part in every softmax, and the loss of a model depends on how many ranks share it.
    """
    per_rank = padded_vocabulary(shape, groups.tensor_size()) // groups.tensor_size()
    real = min(per_rank, max(0, shape.vocabulary - groups.tensor_rank() * per_rank))
    if model.post_process and real < per_rank:
        padding = torch.arange(per_rank, device=groups.device()) >= real

        def hide(layer: torch.nn.Module, given: Any, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Any]:
            logits, bias = output  # [s, b, per_rank]: the model keeps the vocabulary split
            return logits.masked_fill(padding, float("-inf")), bias

        model.output_layer.register_forward_hook(hide)
