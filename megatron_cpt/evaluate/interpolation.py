"""Losses on the straight line between the weights of two models, without a checkpoint of any model between them.

The loss may rise in the middle where two models went apart early, and may be lower there than at both ends where one
was trained from the other (arXiv:1912.05671, arXiv:2109.01903).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor

from megatron_cpt.evaluate.validation import ValidationLoss, ValidationSet, evaluate

SHARES = tuple(tenth / 10 for tenth in range(11))
"""Of the second model."""


@torch.no_grad()
def losses_between(
    model: Sequence[LanguageModule],
    load_start: Callable[[], None],
    load_end: Callable[[], None],
    sets: Sequence[ValidationSet],
    micro_batch_size: int,
) -> Iterator[tuple[float, list[ValidationLoss]]]:
    """The loss of each set at every one of SHARES. Every rank calls it and gets the same.

    The weights of both ends stand in host memory beside the model. Each mean is taken in fp32 and rounded to the dtype
    of the model; at 0 and 1 the weights are those of the ends to the last bit.

    Args:
        model: this rank's chunks, not wrapped for training.
        load_start, load_end: fill it with the weights at 0 and at 1.
    """
    load_start()
    start = _copied(model)
    load_end()
    end = _copied(model)
    for share in SHARES:
        for parameter, first, last in zip(_parameters(model), start, end, strict=True):
            parameter.copy_(torch.lerp(first.float(), last.float(), share))
        yield share, evaluate(model, sets, micro_batch_size)


def _parameters(model: Sequence[LanguageModule]) -> list[torch.nn.Parameter]:
    return [parameter for chunk in model for parameter in chunk.parameters()]


def _copied(model: Sequence[LanguageModule]) -> list[Tensor]:
    """The weights as they are, in host memory."""
    return [parameter.detach().to("cpu", copy=True) for parameter in _parameters(model)]
