"""The weight of a router's own losses where ranks share a sequence, which Megatron-Core 0.16.1 gets wrong.

Each of n ranks adds to the balance loss and to the router's z-loss what its own tokens give, over all tokens of the
micro batch: the ranks' sum is the whole. With a loss per token, gradients are divided by the tokens of the global batch
at the end, so these losses are multiplied by a micro batch's tokens before. 0.16.1 takes the rank's own for them, and
both count an n-th of what they do in one process; 0.19.2 takes all. Here they are multiplied whatever the version.
"""

import functools
from collections.abc import Callable
from typing import Any

from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_cpt.model.having import having


def put_in_place() -> None:
    """Has Megatron-Core's routers weigh their losses this way from now on, in this process."""
    if TopKRouter.attach_and_log_load_balancing_loss.__module__ == __name__:
        return
    TopKRouter.attach_and_log_load_balancing_loss = balance_of_whole_sequences(
        TopKRouter.attach_and_log_load_balancing_loss
    )
    TopKRouter.apply_z_loss = z_loss_of_whole_sequences(TopKRouter.apply_z_loss)


def balance_of_whole_sequences(attach: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The router's method that adds a balance loss to the gradient, times the tokens of all ranks of a sequence."""

    @functools.wraps(attach, assigned=("__name__", "__doc__"))
    def attach_whole(
        router: TopKRouter,
        activation: Tensor,
        coefficient: float,
        balance: Tensor,
        *rest: Any,
        valid_token_count: int | Tensor | None = None,
        **named: Any,
    ) -> Tensor:
        if router.calculate_per_token_loss and balance.requires_grad:  # not in the first pass of a recomputed layer
            own = activation.shape[0] if valid_token_count is None else valid_token_count
            tokens = own * router.tp_cp_group.size()
            balance.register_hook(lambda gradient: gradient * tokens)
        with having(router, calculate_per_token_loss=False):  # or it would multiply once more
            return attach(router, activation, coefficient, balance, *rest, **named)

    return attach_whole


def z_loss_of_whole_sequences(apply: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The router's method that adds its z-loss to the gradient, times the tokens of all ranks of a sequence."""

    @functools.wraps(apply, assigned=("__name__", "__doc__"))
    def apply_whole(router: TopKRouter, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        coefficient = router.config.moe_z_loss_coeff
        if coefficient is None or not router.calculate_per_token_loss:
            return apply(router, logits, padding_mask=padding_mask)
        own = logits.shape[0] if padding_mask is None else int((~padding_mask).sum())
        tokens = own * router.tp_cp_group.size()
        # The coefficient alone carries the weight; what is recorded of the loss is divided by it.
        with (
            having(router, calculate_per_token_loss=False),
            having(router.config, moe_z_loss_coeff=coefficient * tokens),
        ):
            return apply(router, logits, padding_mask=padding_mask)

    return apply_whole
