"""Parameters with learning rates of their own or without weight decay, as Megatron-Core's optimizer groups them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate

from megatron_cpt.config.optimizer import OptimizerSettings, Part, RateSettings


def group_options(model: Sequence[GPTModel], settings: OptimizerSettings) -> dict[str, Any]:
    """What get_megatron_optimizer is told of parameter groups: nothing, where its own are meant.

    Args:
        model: the chunks of this rank.
    """
    if settings.rates == RateSettings() and settings.undecayed == ["norms_and_biases"]:
        return {}
    groups: defaultdict[tuple[float, float], set[int]] = defaultdict(set)
    for chunk in model:
        for parameter, factors in parameter_factors(chunk, settings):
            groups[factors].add(id(parameter))
    return {
        "config_overrides": {
            ParamKey(
                predicate=ParamPredicate(name=f"rate {rate:g}, decay {decay:g}", fn=lambda one, ids=ids: id(one) in ids)
            ): {"lr_mult": rate} | ({"wd_mult": decay} if decay != 1 else {})
            for (rate, decay), ids in groups.items()
        }
    }


def parameter_factors(
    chunk: GPTModel, settings: OptimizerSettings
) -> Iterator[tuple[torch.nn.Parameter, tuple[float, float]]]:
    """Each parameter of a chunk, with the factors of its learning rate and of its weight decay."""
    layers = {
        id(parameter): layer.layer_number - 1  # theirs count from 1, over all pipeline stages
        for layer in chunk.decoder.layers
        for parameter in layer.parameters()
    }
    for name, parameter in chunk.named_parameters():
        parts = parts_of(name, parameter, chunk.share_embeddings_and_output_weights)
        rate = layer_rate(layers.get(id(parameter)), settings.rates)
        for part in parts:
            rate *= getattr(settings.rates, part)
        yield parameter, (rate, float(not set(parts) & set(settings.undecayed)))


def parts_of(name: str, parameter: torch.nn.Parameter, tied: bool) -> list[Part]:
    """The parts that have a name in the settings and that a parameter belongs to.

    Args:
        tied: whether the output layer has the embedding's weights, of which a last pipeline stage has a copy.
    """
    found: list[Part] = []
    if name.startswith("embedding.") or (tied and name.startswith("output_layer.")):
        found.append("embedding")
    elif name.startswith("output_layer."):
        found.append("output")
    if parameter.dim() == 1:
        found.append("norms_and_biases")
    return found


def layer_rate(layer: int | None, rates: RateSettings) -> float:
    """The factor of a layer's learning rate; 1 for what is in no layer."""
    return next((group.rate for group in rates.layers if layer is not None and group.first <= layer <= group.last), 1.0)
