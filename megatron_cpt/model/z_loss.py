"""The z-loss: keeps the softmax's normaliser Z near 1, so that logits do not drift (arXiv:2204.02311, section 5)."""

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor

from megatron_cpt.parallel import groups


def add_z_loss(model: GPTModel, coefficient: float) -> None:
    """In training the last stage gives [b, s, 2]: the nats of each label, and coefficient * (log Z)^2 of its logits.

    In evaluation it gives the nats alone. The penalty is computed in fp32 whatever the precision, and takes the
    memory of another copy of the logits: Megatron-Core's cross entropy writes over those that it is given.
    """
    if not model.post_process or not coefficient:
        return
    cross_entropy = model.compute_language_model_loss

    def with_penalty(labels: Tensor, logits: Tensor) -> Tensor:
        if not model.training:
            nats: Tensor = cross_entropy(labels, logits)
            return nats
        penalty = coefficient * log_normaliser(logits.to(torch.float32, copy=True)).square()
        return torch.stack([cross_entropy(labels, logits), penalty.transpose(0, 1)], dim=-1)

    model.compute_language_model_loss = with_penalty


def log_normaliser(logits: Tensor) -> Tensor:
    """log Z, the logarithm of the sum of exp(logit) over the whole vocabulary: float [s, b], on every rank.

    Args:
        logits: float [s, b, this rank's part of the vocabulary]; minus infinity for what is padding.
    """
    own = torch.logsumexp(logits, dim=-1)
    if groups.tensor_size() == 1:
        return own
    highest = own.detach().clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=groups.tensor_group())
    # The sum is made in place, and exp keeps its output for the backward pass.
    total: Tensor = reduce_from_tensor_model_parallel_region(torch.exp(own - highest).clone())
    return highest + total.log()
