"""How far the weights have moved since the start: the plasticity signal of arXiv:2406.14833 (section 3).

The paper follows r_w = (w_t - w_0) / w_0, taken absolute, on average over the weights of the bottom and of the
top 5 layers: the bottom ones move more at first (ratio above 1.35), and less so as the loss recovers. A weight near
0 weighs much in that mean, so the ratio of norms |w_t - w_0| / |w_0| stands beside it.

Weights are the optimizer's fp32 main parameters, where the model computes in bf16: most updates of a bf16 weight
are lost in its rounding. Each number is summed over the ranks that hold a part of a layer, each part once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_cpt.checkpoint.distributed_optimizer import chained_optimizers
from megatron_cpt.model.build import unwrap
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import sum_over_world

_MOST_LAYERS = 5
"""Layers of the bottom and of the top; a model of fewer than twice as many is halved."""

LAYER_GROUPS = ("bottom", "top")


@dataclass(frozen=True)
class WeightUpdate:
    """How far the weights of some layers are from where they started."""

    mean_relative: float | None
    """Mean of |(w_t - w_0) / w_0|; weights that started at exactly 0 are left out. None: all did."""
    norm_ratio: float | None
    """|w_t - w_0| / |w_0|. None: all weights started at 0."""


class InitialWeights:
    """The weights of the bottom and top layers as they were before the first update, kept in host memory."""

    def __init__(self, model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
        """Copies what this rank counts. No checkpoint is loaded yet."""
        self._start = [part.detach().to("cpu", torch.float32, copy=True) for _, part in _edges(model, optimizer)]

    @torch.no_grad()
    def updates(
        self, model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer
    ) -> dict[str, WeightUpdate]:
        """The update of the bottom and of the top layers. Every rank calls it and gets the same."""
        # Of each end: weights that were not 0, sum of relative changes, squared norms of change and start.
        sums = torch.zeros(len(LAYER_GROUPS), 4, dtype=torch.float64, device=groups.device())
        for (end, part), kept in zip(_edges(model, optimizer), self._start, strict=True):
            start = kept.to(part.device)
            change, moved = part.detach().float() - start, start != 0
            sums[end, 0] += moved.sum()
            sums[end, 1] += (change[moved] / start[moved]).abs().sum(dtype=torch.float64)
            sums[end, 2] += change.square().sum(dtype=torch.float64)
            sums[end, 3] += start.square().sum(dtype=torch.float64)
        sum_over_world(sums)
        return {name: _update(*sums[end].tolist()) for end, name in enumerate(LAYER_GROUPS)}


def _edges(model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> Iterator[tuple[int, Tensor]]:
    """What this rank counts of the bottom (0) and top (1) layers, in a fixed order."""
    yield from ((at, part) for at, _, part in counted_parts(model, optimizer) if at != ELSEWHERE)


def edge_layers(layers: int) -> int:
    """Layers of the bottom, and as many of the top: five, or half the model."""
    return min(_MOST_LAYERS, layers // 2)


ELSEWHERE = len(LAYER_GROUPS)
"""The group of what is in neither the bottom nor the top layers."""


def counted_parts(
    model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer
) -> Iterator[tuple[int, torch.nn.Parameter, Tensor]]:
    """What of each parameter this rank adds to a sum over the world: its layer group, the parameter, the main weights.

    Tensor-parallel ranks hold norms and biases alike, data-parallel ranks everything, but for a distributed optimizer's
    shards, which are each rank's own. An output layer that shares the embedding's weights is counted there.
    """
    shards = {
        id(parameter): part.optimizer.param_groups[group]["params"][place]
        for part in chained_optimizers(optimizer)
        if isinstance(part, DistributedOptimizer) and part.optimizer is not None
        for parameter, (group, place) in part.model_param_group_index_map.items()
    }
    sharded = any(isinstance(part, DistributedOptimizer) for part in chained_optimizers(optimizer))
    layers, edge = model[0].config.num_layers, edge_layers(model[0].config.num_layers)
    for chunk in unwrap(model):
        numbers = {id(one): layer.layer_number for layer in chunk.decoder.layers for one in layer.parameters()}
        for parameter in chunk.parameters():
            alike = groups.tensor_rank() and not getattr(parameter, "tensor_model_parallel", False)
            if alike or getattr(parameter, "shared", False):
                continue
            number = numbers.get(id(parameter))
            at = ELSEWHERE if number is None else 0 if number <= edge else 1 if number > layers - edge else ELSEWHERE
            if sharded and parameter.requires_grad:
                if id(parameter) in shards:
                    yield at, parameter, shards[id(parameter)]
            # Megatron-Core's mark of an expert's parameters: their replicas are fewer.
            elif not (groups.token_rank() if getattr(parameter, "allreduce", True) else groups.expert_data_rank()):
                yield at, parameter, getattr(parameter, "main_param", parameter)


def _update(weights: float, relative: float, change: float, start: float) -> WeightUpdate:
    return WeightUpdate(
        mean_relative=relative / weights if weights else None,
        norm_ratio=(change / start) ** 0.5 if start else None,
    )
