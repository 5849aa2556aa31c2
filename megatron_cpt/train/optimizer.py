"""Megatron-Core's optimizer with the best AdamW at hand, and one optimizer step.

Without Transformer Engine and apex, Megatron-Core 0.16 to 0.19 has four faults around torch's AdamW: a distributed
optimizer cannot be saved or loaded before its first step (there is no state yet), nor on a rank that holds padding of
the buffers alone (there is never any); its loader trips over AdamW's `step` entry; and after a load all parameters
share ONE `step` tensor, which every update then advances once per parameter (the bias correction is off and nothing
says so). `build_optimizer` and `mend_after_load` prevent all four.

Parameter groups have their own learning rates and weight decay.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from torch import Tensor
from torch.nn.utils import get_total_norm

from megatron_cpt.checkpoint.distributed_optimizer import STATE_SETTER, chained_optimizers
from megatron_cpt.config.schema import LrMultiplierSettings, OptimizerSettings, Part
from megatron_cpt.data.loader import Batch
from megatron_cpt.model.build import megatron_config, unwrap
from megatron_cpt.model.forward import run_micro_batches, source_sums
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import smallest_of_each
from megatron_cpt.parallel.patches import replace_name
from megatron_cpt.train.loss_reweighting import reweighted
from megatron_cpt.train.stop import NOT_ASKED


def build_optimizer(
    model: Sequence[DistributedDataParallel],
    settings: OptimizerSettings,
    peak_lr: float,
    passed: Mapping[str, Any] | None = None,
) -> MegatronOptimizer:
    """AdamW over the model's parameters, its state allocated, in groups by learning rate and weight decay.

    Precision and sharding of its state are those that the model was wrapped with.

    Args:
        peak_lr: the highest learning rate of the schedule.
        passed: further fields of Megatron-Core's OptimizerConfig.
    Raises:
        BadInput: for fields that may not be passed through.
    """
    transformer = model[0].config
    ours = {
        "optimizer": "adam",
        "lr": peak_lr,
        "min_lr": 0.0,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.beta1,
        "adam_beta2": settings.beta2,
        "adam_eps": settings.epsilon,
        # 0 would leave the gradient norm uncomputed; nothing is clipped at infinity.
        "clip_grad": settings.clip_grad or math.inf,
        "bf16": transformer.bf16,
        "params_dtype": transformer.params_dtype,
        "use_distributed_optimizer": model[0].ddp_config.use_distributed_optimizer,
    }
    optimizer = get_megatron_optimizer(
        megatron_config(OptimizerConfig, ours, passed or {}, "megatron.optimizer"),
        list(model),
        **_group_options(unwrap(model), settings),
    )
    transformer.grad_scale_func = optimizer.scale_loss
    for part in chained_optimizers(optimizer):
        inner = part.optimizer
        if isinstance(inner, torch.optim.AdamW):
            for group in inner.param_groups:
                group["fused"] = True  # Megatron-Core builds it without
            _allocate_state(inner)
            if isinstance(part, DistributedOptimizer):
                setter = partial(_set_parameter_state, part)
                replace_name(
                    DistributedOptimizer.__module__, "DistributedOptimizer()." + STATE_SETTER, setter, owner=part
                )
                if not inner.state:
                    _count_updates_without_parameters(part)
    return optimizer


def clear_gradients(model: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> None:
    """Empties the gradient buffers, as a step begins."""
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()


def _set_rates(optimizer: MegatronOptimizer, learning_rate: float, weight_decay: float) -> None:
    """Sets the learning rate and weight decay of the next update in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)


def gather_gradients(optimizer: MegatronOptimizer) -> tuple[float, Tensor]:
    """Hands the reduced gradients to the optimizer, changing no parameter.

    Returns:
        The norm of the whole gradient, the same on every rank of a replica, and whether this rank's
        gradients are finite, bool [], for which the host has not waited. The norm leaves out gradients that
        tensor-parallel ranks hold alike (norms, biases): one of them that is not finite on one rank alone shows in the
        second value only.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    alike = [
        gradient
        for part in chained_optimizers(optimizer)
        for parameter in part.get_parameters()
        if not getattr(parameter, "tensor_model_parallel", False)
        and (gradient := _gradient_of(parameter)) is not None
        and gradient.numel()
    ]
    # On a GPU a few kernels over all of them together. The largest is infinite or NaN where one number is.
    largest = get_total_norm(alike, math.inf).to(groups.device())
    return norm, torch.isfinite(largest) & math.isfinite(norm)


def _gradient_of(parameter: Tensor) -> Tensor | None:
    """The gradient that an update reads: the precision-aware optimizer's is kept in an attribute of its own."""
    return parameter.grad if parameter.grad is not None else getattr(parameter, "decoupled_grad", None)


def update(optimizer: MegatronOptimizer, gradient_norm: float) -> None:
    """Clips the gathered gradients and updates the parameters: the second half of ChainedOptimizer.step."""
    for part in chained_optimizers(optimizer):
        parameters = part.get_parameters()
        if parameters:
            clip_grad_by_total_norm_fp32(
                parameters,
                max_norm=part.config.clip_grad,
                total_norm=gradient_norm,
                use_decoupled_grad=part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
            )
    optimizer.step_with_ready_grads()


GroupSettings = list[list[dict[str, Any]]]


def group_settings(optimizer: MegatronOptimizer) -> GroupSettings:
    """All values of all parameter groups that the config decides: betas, epsilon, factors, switches."""
    return [
        [{name: value for name, value in group.items() if name not in ("params", "step")} for group in _groups_of(part)]
        for part in chained_optimizers(optimizer)
    ]


def mend_after_load(optimizer: MegatronOptimizer, settings: GroupSettings) -> None:
    """Gives every parameter a `step` tensor of its own again, and the groups what the config says of them.

    Args:
        settings: the group settings before the load, which put back those of the run that was saved.
    """
    for part, of_part in zip(chained_optimizers(optimizer), settings, strict=True):
        for group, values in zip(_groups_of(part), of_part, strict=True):
            group.update(values)
        if isinstance(part.optimizer, torch.optim.AdamW):
            for state in part.optimizer.state.values():
                state["step"] = state["step"].clone()


def _groups_of(part: Any) -> list[dict[str, Any]]:
    """The parameter groups of one chained optimizer; none where a rank has nothing of it to train."""
    return [] if part.optimizer is None else list(part.optimizer.param_groups)


def _allocate_state(optimizer: torch.optim.AdamW) -> None:
    """The state that AdamW's first step would make: zero moments at step 0."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def _count_updates_without_parameters(optimizer: DistributedOptimizer) -> None:
    """Has an optimizer that holds no parameter on this rank count updates in its groups, as the state of one would.

    Its `state_dict` is what Megatron-Core's own makes of the state of parameters, and asserts that there is one.
    """
    inner = optimizer.optimizer

    def count(*_: Any) -> None:
        for group in inner.param_groups:
            group["step"] = group.get("step", 0.0) + 1.0

    def state_dict() -> dict[str, Any]:
        settings = [
            {"step": 0.0} | {name: value for name, value in group.items() if name != "params"}
            for group in inner.state_dict()["param_groups"]
        ]
        return {"optimizer": {"param_groups": settings}}

    inner.register_step_post_hook(count)
    replace_name(DistributedOptimizer.__module__, "DistributedOptimizer().state_dict", state_dict, owner=optimizer)


@torch.no_grad()
def _set_parameter_state(
    optimizer: DistributedOptimizer, model_parameter: torch.nn.Parameter, tensors: dict[str, torch.Tensor]
) -> None:
    """Copies one parameter's loaded shard (main parameter and moments) into the optimizer.

    Replaces a method of DistributedOptimizer that also looks for AdamW's `step` among the tensors, which
    is kept in the parameter groups, and that writes in place outside no_grad.
    """
    group, place = optimizer.model_param_group_index_map[model_parameter]
    main = optimizer.optimizer.param_groups[group]["params"][place]
    for name, target in {"param": main, **optimizer.optimizer.state[main]}.items():
        if name != "step" and name in tensors:  # theirs is the step from before the load
            target.copy_(tensors[name])


def _group_options(model: Sequence[LanguageModule], settings: OptimizerSettings) -> dict[str, Any]:
    """What get_megatron_optimizer is told of parameter groups: nothing, where its own are meant.

    Args:
        model: the chunks of this rank.
    """
    if settings.lr_multipliers == LrMultiplierSettings() and settings.no_weight_decay == ["norms_and_biases"]:
        return {}
    groups: defaultdict[tuple[float, float], set[int]] = defaultdict(set)
    for chunk in model:
        for parameter, factors in _parameter_factors(chunk, settings):
            groups[factors].add(id(parameter))
    return {
        "config_overrides": {
            ParamKey(
                predicate=ParamPredicate(name=f"rate {rate:g}, decay {decay:g}", fn=lambda one, ids=ids: id(one) in ids)
            ): {"lr_mult": rate} | ({"wd_mult": decay} if decay != 1 else {})
            for (rate, decay), ids in groups.items()
        }
    }


def _parameter_factors(
    chunk: LanguageModule, settings: OptimizerSettings
) -> Iterator[tuple[torch.nn.Parameter, tuple[float, float]]]:
    """Each parameter of a chunk, with the factors of its learning rate and of its weight decay."""
    layers = {
        id(parameter): layer.layer_number - 1  # theirs count from 1, over all pipeline stages
        for layer in chunk.decoder.layers
        for parameter in layer.parameters()
    }
    for name, parameter in chunk.named_parameters():
        parts = _parts_of(name, parameter, chunk.share_embeddings_and_output_weights)
        multiplier = _layer_multiplier(layers.get(id(parameter)), settings.lr_multipliers)
        for part in parts:
            multiplier *= getattr(settings.lr_multipliers, part)
        yield parameter, (multiplier, float(not set(parts) & set(settings.no_weight_decay)))


def _parts_of(name: str, parameter: torch.nn.Parameter, tied: bool) -> list[Part]:
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


def _layer_multiplier(layer: int | None, settings: LrMultiplierSettings) -> float:
    """The multiplier of a layer's learning rate; 1 for what is in no layer."""
    return next(
        (group.multiplier for group in settings.layers if layer is not None and group.first <= layer <= group.last), 1.0
    )


@dataclass(frozen=True)
class StepShape:
    """The sizes of a step."""

    micro_batches: int
    """Micro batches of each data-parallel rank."""
    micro_batch_size: int
    """Sequences of a micro batch."""
    sequence_length: int
    """Tokens of a sequence."""
    sources: int
    """Sources of the blend."""


@dataclass(frozen=True)
class StepOutcome:
    """Losses, gradient norm and fate of a step, the same on every rank."""

    nats: Tensor
    """float64 [sources], on the host: summed loss of each source's tokens."""
    tokens: Tensor
    """float64 [sources], on the host: scored tokens of each source."""
    gradient_norm: float
    """Norm of the whole gradient, before clipping."""
    finite: bool
    """Whether loss and gradients were finite on all ranks."""
    updated: bool
    """False where they were not, or the loss was a spike: no parameter and no moment was changed."""
    stop: int = NOT_ASKED
    """The largest of the ranks' reasons to stop, as it was before the update (train/stop.py)."""

    @property
    def loss(self) -> float:
        """Nats per token of the global batch; NaN where no label of it counts."""
        return float(self.nats.sum() / self.tokens.sum())


def train_step(
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    batches: Iterator[Batch],
    shape: StepShape,
    learning_rate: float,
    weight_decay: float,
    loss_limit: float = math.inf,
    stop: Callable[[], int] = lambda: NOT_ASKED,
    reweighting: float | None = None,
) -> StepOutcome:
    """Trains on one global batch, or finds out, on all ranks alike, that the update must not be made.

    All that ranks agree on is one all-reduce, and the host waits once for it and the losses.

    Args:
        loss_limit: nats per token above which it must not.
        stop: this rank's reason to stop (StopRequest.code).
        reweighting: temperature of the weights that sequences get by their losses (loss_reweighting.py); None: they
            get none.
    """
    clear_gradients(model, optimizer)
    if reweighting is not None:
        own = list(islice(batches, shape.micro_batches))
        batches = iter(reweighted(model, own, shape.micro_batch_size, shape.sequence_length, reweighting))
    losses = run_micro_batches(
        model, batches, shape.micro_batches, shape.micro_batch_size, shape.sequence_length, backward=True
    )
    nats, tokens = source_sums(losses, shape.sources, groups.device())
    gradient_norm, finite = gather_gradients(optimizer)
    finite = finite & torch.isfinite(nats).all()
    is_spike = nats.sum() / tokens.sum() > loss_limit  # False where no label counts, and the loss is NaN
    reason = torch.tensor(-stop(), device=nats.device)
    agreed = smallest_of_each(torch.stack([values.to(nats.dtype) for values in (finite, ~is_spike, reason)]))
    # One copy to the host: [finite, no spike, -reason], then the nats and the tokens of all sources.
    flags, on_host = np.split(torch.cat([agreed, nats, tokens]).cpu().numpy(), [len(agreed)])
    nats, tokens = torch.from_numpy(on_host).chunk(2)
    updated = bool(flags[0]) and bool(flags[1])
    if updated:
        _set_rates(optimizer, learning_rate, weight_decay)
        update(optimizer, gradient_norm)
    return StepOutcome(nats, tokens, gradient_norm, bool(flags[0]), updated, -int(flags[2]))
