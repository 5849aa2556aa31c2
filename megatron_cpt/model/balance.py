"""The weight of the balance of experts where ranks share a sequence, which Megatron-Core 0.16.1 gets wrong.

Each of n ranks adds to the balance loss what its own tokens give, over all tokens of the micro batch: the ranks' sum is
the whole. With a loss per token, gradients are divided by the tokens of the global batch at the end, so the balance is
multiplied by a micro batch's tokens before. 0.16.1 takes the rank's own for them, and the balance counts an n-th of
what it does in one process; 0.19.2 takes all. Here it is multiplied whatever the version.
"""

import functools
from collections.abc import Callable
from typing import Any

from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor


def put_in_place() -> None:
    """Has Megatron-Core's routers weigh the balance this way from now on, in this process."""
    attach = TopKRouter.attach_and_log_load_balancing_loss
    if not hasattr(attach, "__wrapped__"):
        TopKRouter.attach_and_log_load_balancing_loss = over_whole_sequences(attach)


def over_whole_sequences(attach: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The router's method that adds a balance loss to the gradient, times the tokens of all ranks of a sequence."""

    @functools.wraps(attach)
    def attach_whole(
        router: TopKRouter,
        activation: Tensor,
        coefficient: float,
        balance: Tensor,
        *rest: Any,
        valid_token_count: int | Tensor | None = None,
        **named: Any,
    ) -> Tensor:
        per_token = router.calculate_per_token_loss
        if per_token and balance.requires_grad:  # not in the first pass of a recomputed layer
            own = activation.shape[0] if valid_token_count is None else valid_token_count
            tokens = own * router.tp_cp_group.size()
            balance.register_hook(lambda gradient: gradient * tokens)
        router.calculate_per_token_loss = False  # or it would multiply once more
        try:
            return attach(router, activation, coefficient, balance, *rest, **named)
        finally:
            router.calculate_per_token_loss = per_token

    return attach_whole
