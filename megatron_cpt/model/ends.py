"""What some families do between the embedding and the first layer, and between the output layer and the loss."""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_cpt.families.family import ModelShape


def scale_embeddings(model: GPTModel, shape: ModelShape) -> None:
    """Multiplies the embeddings by the shape's factor, rounded to their dtype as transformers rounds it."""
    if model.pre_process and shape.embedding_scale != 1.0:

        def scale(layer: torch.nn.Module, given: Any, output: Tensor) -> Tensor:
            return output * torch.tensor(shape.embedding_scale, dtype=output.dtype, device=output.device)

        model.embedding.register_forward_hook(scale)


def cap_logits(model: GPTModel, shape: ModelShape) -> None:
    """Caps the logits softly: c * tanh(logit / c) (arXiv:2408.00118, section 2)."""
    soft_cap = shape.logit_soft_cap
    if model.post_process and soft_cap is not None:

        def cap(layer: torch.nn.Module, given: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            logits, bias = output  # [s, b, this rank's part of the vocabulary]
            return soft_cap * torch.tanh(logits / soft_cap), bias

        model.output_layer.register_forward_hook(cap)
