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
from torch import Tensor

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

    def __init__(self, model: Sequence[DistributedDataParallel]) -> None:
        """Copies what this rank counts. The optimizer is built, and no checkpoint is loaded yet."""
        self._layers = edge_layers(model[0].config.num_layers)
        self._start = [part.detach().to("cpu", torch.float32, copy=True) for _, part in self._parts(model)]

    @torch.no_grad()
    def updates(self, model: Sequence[DistributedDataParallel]) -> dict[str, WeightUpdate]:
        """The update of the bottom and of the top layers. Every rank calls it and gets the same."""
        # Of each end: weights that were not 0, sum of relative changes, squared norms of change and start.
        sums = torch.zeros(len(LAYER_GROUPS), 4, dtype=torch.float64, device=groups.device())
        for (end, part), kept in zip(self._parts(model), self._start, strict=True):
            start = kept.to(part.device)
            change, moved = part.detach().float() - start, start != 0
            sums[end, 0] += moved.sum()
            sums[end, 1] += (change[moved] / start[moved]).abs().sum(dtype=torch.float64)
            sums[end, 2] += change.square().sum(dtype=torch.float64)
            sums[end, 3] += start.square().sum(dtype=torch.float64)
        sum_over_world(sums)
        return {name: _update(*sums[end].tolist()) for end, name in enumerate(LAYER_GROUPS)}

    def _parts(self, model: Sequence[DistributedDataParallel]) -> Iterator[tuple[int, Tensor]]:
        """What this rank counts of the bottom (0) and top (1) layers, in a fixed order."""
        for layer in (layer for chunk in unwrap(model) for layer in chunk.decoder.layers):
            bottom = layer.layer_number <= self._layers
            if bottom or layer.layer_number > model[0].config.num_layers - self._layers:
                for parameter in layer.parameters():
                    part = _counted_part(parameter)
                    if part is not None:
                        yield 0 if bottom else 1, part


def edge_layers(layers: int) -> int:
    """Layers of the bottom, and as many of the top: five, or half the model."""
    return min(_MOST_LAYERS, layers // 2)


def _counted_part(parameter: torch.nn.Parameter) -> Tensor | None:
    """What of a parameter this rank adds to a sum over the world; None where another rank adds it.

    Tensor-parallel ranks hold norms and biases alike, data-parallel ranks everything, but for a distributed
    optimizer's shards of main parameters, which are each rank's own.
    """
    if groups.tensor_rank() and not getattr(parameter, "tensor_model_parallel", False):
        return None
    if getattr(parameter, "main_param_sharded", False):
        return getattr(parameter, "main_param", None)  # None where the shard is another rank's
    # Megatron-Core's mark of an expert's parameters: their replicas are fewer.
    replica = groups.token_rank() if getattr(parameter, "allreduce", True) else groups.expert_data_rank()
    return None if replica else getattr(parameter, "main_param", parameter)


def _update(weights: float, relative: float, change: float, start: float) -> WeightUpdate:
    return WeightUpdate(
        mean_relative=relative / weights if weights else None,
        norm_ratio=(change / start) ** 0.5 if start else None,
    )
