"""What is changed in Megatron-Core's objects and functions, with the reason for each.

- Router losses: each of n ranks adds what its own tokens give, over all tokens of the micro batch. With a loss per
  token, gradients are divided by the tokens of the global batch at the end, so these losses are multiplied by a micro
  batch's tokens before. Releases before 0.19 multiply by the rank's own tokens, and both losses count an n-th of
  what they do in one process. Here they are multiplied by all in every version.
- Balance of each sequence (`seq_aux_loss`): the tokens of one sequence are taken for those of the micro batch before
  0.19. Here they are those of the micro batch.
- Marks of experts' weights, by which the gradient norm counts them on each tensor-parallel rank: set in every version.
- Biases of experts that ranks divide: the ranks add up what each would add.
- Biases of routers: Megatron-Core moves them, by what tokens chose, wherever gradients are summed. Here a gradient that
  is only measured moves none.
- Vocabulary padding: rows that fill up an uneven vocabulary take part in the softmax; they are masked.
- Embedding scaling, division and caps of logits of some families are not in Megatron-Core's models.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.utils import get_model_config
from torch import Tensor

from megatron_cpt.families.family import ModelShape
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.patches import replace_name


def scale_embeddings(model: LanguageModule, shape: ModelShape) -> None:
    """Multiplies the embeddings by the shape's factor, rounded to their dtype as transformers rounds it."""
    if model.pre_process and shape.embedding_scale != 1.0:

        def scale(layer: torch.nn.Module, given: Any, output: Tensor) -> Tensor:
            return output * torch.tensor(shape.embedding_scale, dtype=output.dtype, device=output.device)

        model.embedding.register_forward_hook(scale)


def divide_logits(model: LanguageModule, shape: ModelShape) -> None:
    """Divides the logits by the shape's divisor."""
    if model.post_process and shape.logit_divisor != 1.0:

        def divide(layer: torch.nn.Module, given: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            logits, bias = output  # [s, b, this rank's part of the vocabulary]
            return logits / shape.logit_divisor, bias

        model.output_layer.register_forward_hook(divide)


def cap_logits(model: LanguageModule, shape: ModelShape) -> None:
    """Caps the logits softly: c * tanh(logit / c) (arXiv:2408.00118, section 2)."""
    soft_cap = shape.logit_soft_cap
    if model.post_process and soft_cap is not None:

        def cap(layer: torch.nn.Module, given: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            logits, bias = output  # [s, b, this rank's part of the vocabulary]
            return soft_cap * torch.tanh(logits / soft_cap), bias

        model.output_layer.register_forward_hook(cap)


def padded_vocabulary(shape: ModelShape, tensor_size: int) -> int:
    """Rows of the embedding: the vocabulary, rounded up so that tensor-parallel ranks share it evenly."""
    return -(-shape.vocabulary // tensor_size) * tensor_size


def mask_vocab_padding(model: LanguageModule, shape: ModelShape) -> None:
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


def mark_expert_weights(model: LanguageModule) -> None:
    """Marks the weights of experts as divided over tensor-parallel ranks.

    Transformer Engine from 2.13 on leaves the mark out of grouped layers, and Megatron-Core before 0.19 does not set
    it: the gradient norm, and clipping, would then count what the first of these ranks holds alone (Megatron-LM pull
    request 5916).
    """
    for layer in model.decoder.layers:
        experts = getattr(layer.mlp, "experts", None)
        if experts is not None:
            for name, parameter in experts.named_parameters():
                # weight, or weight0, weight1, ... of grouped layers; a bias after a product of parts is whole.
                if ".linear_fc1." in f".{name}" or ".weight" in name:
                    parameter.tensor_model_parallel = True


def divide_expert_biases(model: LanguageModule) -> None:
    """Has each of the ranks that share an expert add its part of the bias of the last projection.

    Megatron-Core refuses such biases, because each rank would add the whole, before what they give is summed. By the
    mark that it sets for divided sequences, their gradients of the bias are summed too.
    """
    for layer in model.decoder.layers:
        for expert in getattr(getattr(layer.mlp, "experts", None), "local_experts", ()):
            if expert.linear_fc2.bias is not None:
                # The sum over one rank would be a view, to which Megatron-Core cannot add the bias in place.
                expert.linear_fc2.explicit_expert_comm = True
                expert.linear_fc2.register_forward_hook(_with_part_of_bias)


def _with_part_of_bias(layer: torch.nn.Module, given: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    states, bias = output
    return states, bias / groups.expert_tensor_size()


def finalize_gradients(model: Sequence[torch.nn.Module], *given: Any, **named: Any) -> None:
    """Megatron-Core's finalize_model_grads, which moves no bias of a router where the model is in evaluation mode."""
    config = get_model_config(model[0])
    rate = config.moe_router_bias_update_rate if model[0].training else 0.0
    with temporary_attributes(config, moe_router_bias_update_rate=rate):
        finalize_model_grads(model, *given, **named)


def install_router_losses() -> None:
    """Has Megatron-Core's routers weigh their losses this way from now on, in this process."""
    if TopKRouter.attach_and_log_load_balancing_loss.__module__ == __name__:
        return
    balance = _balance_of_whole_sequences(TopKRouter.attach_and_log_load_balancing_loss)
    replace_name(TopKRouter.__module__, "TopKRouter.attach_and_log_load_balancing_loss", balance)
    z_loss = _z_loss_of_whole_sequences(TopKRouter.apply_z_loss)
    replace_name(TopKRouter.__module__, "TopKRouter.apply_z_loss", z_loss)


def _balance_of_whole_sequences(attach: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The router's method that adds a balance loss to the gradient, times the tokens of all ranks of a sequence."""

    @functools.wraps(attach, assigned=("__name__", "__doc__"))
    def attach_whole(
        router: TopKRouter,
        activation: Tensor,
        coefficient: float,
        balance: Tensor,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        if router.calculate_per_token_loss and balance.requires_grad:  # not in the first pass of a recomputed layer
            # All of them, as none is padding. What is passed as valid_token_count is in some releases the tokens of one
            # sequence, where the balance is that of each sequence (Megatron-LM pull request 5798).
            tokens = activation.shape[0] * router.tp_cp_group.size()
            balance.register_hook(lambda gradient: gradient * tokens)
        with temporary_attributes(router, calculate_per_token_loss=False):  # or it would multiply once more
            return attach(router, activation, coefficient, balance, *rest, **named)

    return attach_whole


def _z_loss_of_whole_sequences(apply: Callable[..., Tensor]) -> Callable[..., Tensor]:
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
            temporary_attributes(router, calculate_per_token_loss=False),
            temporary_attributes(router.config, moe_z_loss_coeff=coefficient * tokens),
        ):
            return apply(router, logits, padding_mask=padding_mask)

    return apply_whole


@contextmanager
def temporary_attributes(owner: Any, **values: Any) -> Iterator[None]:
    """An object with other values of some attributes; afterwards as it was."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
