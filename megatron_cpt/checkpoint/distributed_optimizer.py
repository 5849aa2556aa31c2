"""The state of Megatron-Core's distributed optimizer: packed for a checkpoint by us, compared with the weights on load.

Megatron-Core keeps gradients, and with them optimizer state, in flat buffers cut into buckets. Each bucket is divided
evenly over the replicas; what makes it divisible is padding at the bucket's end, which is not saved. All releases from
0.16.1 to 0.19.2 go wrong with that padding:

- `fully_reshardable` gathers the state without the padding, but cuts the parameters out of it at offsets that count
  the padding. The state of every parameter behind the first padded bucket is wrong, with no more than a warning
  (fixed in pull request 5077, which no release has).
- `dp_reshardable` fails where a rank's part of a bucket is padding alone ("empty bucket encountered", pull request
  6191), and writes beyond the saved length where the rank's last parameter ends before it (pull request 5898).

`replace_packing` replaces the two methods that pack. The format stays: Megatron-Core's own code reads it, and where no
bucket is padded the checkpoint is the same as before. What was saved wrongly before is found on load by `differing`:
main weights that are not the model's weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedObject, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_cpt.parallel.patches import replace_name

_LARGEST_ROUNDING = 2.0**-7
"""In proportion, of a bf16 weight."""


def replace_packing() -> None:
    """Has every distributed optimizer of this process pack its state by the functions below."""
    replacements: dict[str, Callable[..., Any]] = {
        "sharded_param_state_fully_reshardable": _whole_parameters,
        "sharded_param_state_dp_reshardable": _parts_of_buckets,
    }
    for name, replacement in replacements.items():
        replace_name(DistributedOptimizer.__module__, f"DistributedOptimizer.{name}", replacement)


def _whole_parameters(
    optimizer: DistributedOptimizer,
    model_sharded_state_dict: dict[str, Any],
    is_loading: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> dict[int, dict[str, Any]] | LocalNonpersistentObject:
    """The state in the shapes of the parameters, numbered in the order of the buffers (`fully_reshardable`).

    Returns:
        For each parameter its main weights and moments; when saving on the first replica alone, where they are
        gathered bucket by bucket. On the others nothing.
    """
    content, _ = extract_sharded_tensors_and_factories(model_sharded_state_dict)
    weights = {weight.data: weight for weight in nested_values(content)}
    state: dict[int, dict[str, Any]] = {}
    for number, buffer in enumerate(optimizer.buffers):
        gathered: dict[int, dict[str, Tensor]] = {}
        for index in range(len(buffer.buckets)) if not is_loading else ():
            gathered[index] = _gathered_bucket(optimizer, number, index)
        for parameter, (start, end, index) in buffer.param_index_map.items():
            weight = weights[parameter]
            assert weight.flattened_range is None, weight
            offset = buffer.buckets[index].offset
            entry: dict[str, Any] = {}
            for key in _state_keys(optimizer):
                if is_loading:
                    values = torch.zeros(end - start, dtype=torch.float32)
                elif gathered[index]:
                    values = gathered[index][key][start - offset : end - offset]
                else:
                    continue
                entry[key] = of_weight(weight, f"optimizer.state.{key}.{weight.key}", values)
            state[len(state)] = entry
    return state if is_loading or optimizer.data_parallel_group_gloo.rank() == 0 else LocalNonpersistentObject(None)


def of_weight(weight: ShardedTensor | ShardedTensorFactory, key: str, values: Tensor) -> Any:
    """An entry of a checkpoint laid out as that of a model's weight, under another key and with other values."""
    values = values.reshape(weight.data.shape)
    changes: dict[str, Any] = {"key": key, "data": values}
    if isinstance(weight, ShardedTensor):
        changes["dtype"] = values.dtype
    entry = replace(weight, **changes)
    entry.validate_metadata_integrity()
    return entry


def _gathered_bucket(optimizer: DistributedOptimizer, number: int, index: int) -> dict[str, Tensor]:
    """The state of a whole bucket with its padding, flat, in fp32 on the CPU of the first replica; empty on the others.

    Args:
        number: of the buffer.
        index: of the bucket in it.
    """
    group = optimizer.data_parallel_group_gloo
    share = optimizer.buffers[number].buckets[index].grad_data.numel() // group.size()
    own = {key: torch.zeros(share, dtype=torch.float32) for key in _state_keys(optimizer)}
    for parameter, ranges in _parameters_of_bucket(optimizer, number, index).items():
        tensors = optimizer._get_main_param_and_optimizer_states(parameter)
        place = ranges["gbuf_local"]
        for key, part in own.items():
            part[place.start : place.end].copy_(tensors[key].detach())
    whole: dict[str, Tensor] = {}
    for key, part in own.items():
        parts = [torch.empty_like(part) for _ in range(group.size())] if group.rank() == 0 else None
        dist.gather(part, parts, dist.get_global_rank(group, 0), group)
        if parts is not None:
            whole[key] = torch.cat(parts)
    return whole


def _parts_of_buckets(
    optimizer: DistributedOptimizer,
    model_sharded_state_dict: dict[str, Any],
    is_loading: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> dict[Any, Any]:
    """The state as it lies in the buckets, nothing gathered: each replica's part of each bucket (`dp_reshardable`).

    A bucket is one tensor of the checkpoint, as long as its parameters with the gaps between them; the parts of all
    replicas cover it, gaps too, and nothing beyond it.
    """
    rank, size = optimizer.data_parallel_group.rank(), optimizer.data_parallel_group.size()
    prefix = f"optimizer.distributed.dp_group_idx_{optimizer.data_parallel_group_idx}"
    instance = optimizer.distributed_optimizer_instance_id
    state: dict[Any, Any] = optimizer.get_parameter_state_dp_reshardable()
    for name in ("per_bucket_numel", "per_bucket_numel_unpadded"):
        state[name] = ShardedObject(f"{prefix}.{name}", state[name], (1,), (0,), replica_id=(instance, 0, rank))
    for number, buffer in enumerate(optimizer.buffers):
        for dtype, buckets in list(state[number].items()):
            like = next((entry for bucket in buckets for entry in bucket), None)
            # By number, not in a list: a bucket without anything saved of it is missing in what a load returns.
            state[number][dtype] = numbered = {}
            for index, (bucket, entries) in enumerate(zip(buffer.buckets, buckets, strict=True)):
                share = bucket.grad_data.numel() // size
                saved = min(max(bucket.numel_unpadded - rank * share, 0), share)
                numbered[index] = [
                    {
                        "padding": LocalNonpersistentObject(not entry),
                        **({"step": LocalNonpersistentObject(entry["step"])} if "step" in entry else {}),
                        **{
                            key: ShardedTensor(
                                key=f"{prefix}.gbuf_idx_{number}.dtype_{dtype}.bucket_idx_{index}.{key}",
                                data=values,
                                dtype=values.dtype,
                                local_shape=values.shape,
                                global_shape=(bucket.numel_unpadded,),
                                global_offset=(rank * share + start,),
                                axis_fragmentations=None,
                                replica_id=(instance, 0, 0),
                            )
                            for key, values in (entry or gap(optimizer, like, end - start)).items()
                            if key in _state_keys(optimizer) and end > start
                        },
                    }
                    for start, end, entry in _covered(entries, saved)
                ]
    return state


def _covered(entries: list[dict[str, Any]], saved: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """A replica's part of a bucket from 0 to `saved`: start, end and state of parameters, and of gaps without state.

    Where it is all padding at the bucket's end there is one empty gap, so that the bucket has an entry.
    """
    place = 0
    for entry in entries:
        start, end = entry["gbuf_local_start"], entry["gbuf_local_end"]
        if start > place:
            yield place, start, {}
        yield start, end, entry
        place = end
    if place < saved or not entries:
        yield place, saved, {}


def gap(optimizer: DistributedOptimizer, like: Mapping[str, Any] | None, length: int) -> dict[str, Tensor]:
    """State of no parameter, in the types and on the device of another's; that of a rank without any is in fp32."""
    return {
        key: like[key].new_zeros(length) if like else torch.zeros(length, dtype=torch.float32)
        for key in _state_keys(optimizer)
    }


@contextmanager
def differing(optimizer: MegatronOptimizer, written_in: torch.dtype) -> Iterator[list[int]]:
    """Within the block, counts parameters whose main weights, as they are loaded, are not the weights of the model.

    The model's weights are loaded before. A step sets them to the main weights, rounded to the model's precision: a
    checkpoint whose main weights are others was not written as it should have been, and its moments are as wrong.

    Args:
        written_in: the precision of the model's weights in the checkpoint.
    Yields:
        This rank's parameters that were compared, and those of them that differ.
    """
    counts = [0, 0]
    parts = [part for part in chained_optimizers(optimizer) if isinstance(part, DistributedOptimizer)]
    before = {id(part): vars(part).get(STATE_SETTER) for part in parts}
    for part in parts:
        setter = partial(_compare_and_set, part, getattr(part, STATE_SETTER), written_in, counts)
        replace_name(DistributedOptimizer.__module__, f"DistributedOptimizer().{STATE_SETTER}", setter, owner=part)
    try:
        yield counts
    finally:
        for part in parts:
            setter = before[id(part)]
            if setter is None:
                delattr(part, STATE_SETTER)
            else:
                setattr(part, STATE_SETTER, setter)


STATE_SETTER = "_set_main_param_and_optimizer_states"
"""The method of DistributedOptimizer that takes what was loaded of one parameter."""


@torch.no_grad()
def _compare_and_set(
    optimizer: DistributedOptimizer,
    setter: Callable[..., None],
    written_in: torch.dtype,
    counts: list[int],
    parameter: torch.nn.Parameter,
    tensors: dict[str, Tensor],
) -> None:
    """Compares the loaded main weights of a parameter with the weights that it has, then sets them."""
    if type(parameter) is torch.nn.Parameter:  # not one that is stored in fp8
        place = optimizer._get_model_param_range_map(parameter)["param"]
        weights = parameter.detach().view(-1)[place.start : place.end].float()
        # A precision-aware optimizer may keep a weight and what was rounded off it, which need not round the same way.
        tolerance = _LARGEST_ROUNDING if optimizer.config.use_precision_aware_optimizer else 0.0
        counts[0] += 1
        counts[1] += not any(
            torch.allclose(
                tensors["param"].to(weights.device, precision).to(parameter.dtype).float(), weights, tolerance, 0.0
            )
            for precision in (torch.float32, written_in)
        )
    setter(parameter, tensors)


def share_main_weights(optimizer: MegatronOptimizer) -> None:
    """Gives all replicas the weights that each has set from its part of the main weights, as the end of a step does.

    For weights that were loaded in another precision: those of other replicas are rounded still.
    """
    for part in chained_optimizers(optimizer):
        for chunk in part.model_chunks if isinstance(part, DistributedOptimizer) else ():
            chunk.start_param_sync(force_sync=True)


def chained_optimizers(optimizer: MegatronOptimizer) -> list[Any]:
    """The optimizers of a ChainedOptimizer, such as those of dense and of expert parameters; else the one itself."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _state_keys(optimizer: DistributedOptimizer) -> tuple[str, ...]:
    """What is kept of a parameter: main weights and moments. Releases before 0.17 know those of Adam alone."""
    return "param", *getattr(optimizer, "optimizer_state_keys", ("exp_avg", "exp_avg_sq"))


def _parameters_of_bucket(optimizer: DistributedOptimizer, number: int, index: int) -> dict[torch.nn.Parameter, Any]:
    """The parameters of which this rank holds a part in a bucket, and where that part lies."""
    [buckets] = optimizer.gbuf_ranges[number].values()
    found: dict[torch.nn.Parameter, Any] = buckets[index]["param_map"]
    return found
