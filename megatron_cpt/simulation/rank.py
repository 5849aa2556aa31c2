"""One rank of a run of any size, under fake tensors: the program's own build, wrappers, optimizer, schedule and step.

1. the process becomes rank R of a world whose collectives are over at once
2. model, gradient buffers and optimizer are built as `train` builds them, with a GPU's kernels (gpu_kernels.py)
3. a step is taken twice: once that fills what lasts, once that is counted (trace.py)

Every micro batch of a step is alike, so as few as fill the pipeline are run, and one more (a round more where stages
are interleaved); the rest is added in proportion.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_cpt.config.schema import RunConfig
from megatron_cpt.data.loader import Batch
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model, freeze, wrap_for_training
from megatron_cpt.parallel import groups
from megatron_cpt.planning.cards import Card
from megatron_cpt.planning.simulated import Line, SimulatedRank, StepCounts, TransferCount
from megatron_cpt.simulation.gpu_kernels import install, selected, start_fake_ranks
from megatron_cpt.simulation.trace import Counts, Site, Trace
from megatron_cpt.train.optimizer import StepShape, build_optimizer, train_step


@dataclass(frozen=True)
class _Counted:
    """A step of some micro batches."""

    micro_batches: int
    counts: Counts


def simulate_rank(config: RunConfig, rank: int, world_size: int, card: Card) -> SimulatedRank:
    """Simulates a rank of a run. The process is of no use for anything else afterwards.

    Args:
        config: without faults on `world_size` ranks.
        card: what each rank's GPU can do.
    """
    shape = read_shape(config.model.hf, config.model.rope)
    trace = Trace(selected(shape), card.flops * card.product_share, card.bandwidth * card.bandwidth_share)
    start_fake_ranks(rank, world_size)
    groups.init_model_parallel(config.parallel)
    install(trace, shape)
    options = ModelOptions.of_run(config, on_gpu=True)
    with FakeTensorMode(allow_non_fake_inputs=True), trace:
        groups.seed_everything(config.run.seed)
        trace.kind = "optimizer"
        bare = build_model(shape, options)
        freeze(bare, shape, config.model.frozen)
        model = wrap_for_training(bare, options)
        optimizer = build_optimizer(model, config.optimizer, config.schedule.peak_lr, config.megatron.optimizer)
        held = [parameter for chunk in bare for parameter in chunk.parameters()]
        trace.name(held, "parameters")
        trace.name((parameter.main_grad for parameter in held if parameter.requires_grad), "gradients")
        trace.kind = "activations"

        def step(micro_batches: int) -> _Counted:
            size, length = config.training.micro_batch_size, config.data.sequence_length
            batches = _batches(config, micro_batches)
            trace.restart()
            limit = math.inf if config.training.on_spike == "ignore" else sys.float_info.max
            decay = config.optimizer.weight_decay
            shape_of_step = StepShape(micro_batches, size, length, 1)
            weighted = config.training.loss_reweighting
            outcome = train_step(
                model,
                optimizer,
                batches,
                shape_of_step,
                1e-5,
                decay,
                limit,
                reweighting=None if weighted is None else weighted.temperature,
            )
            assert outcome.updated, "a simulated step has to update the parameters"
            return _Counted(micro_batches, trace.counts)

        whole = config.training.global_batch_size // (config.training.micro_batch_size * groups.data_size())
        round_of = groups.pipeline_size() if config.parallel.virtual_pipeline > 1 else 1
        first = min(whole, max(groups.pipeline_size(), round_of))
        step(first)
        one, more = step(first), step(first + round_of)
        if whole <= first:
            step(first)  # its own peak
    of_peak = trace.at_peak()
    return SimulatedRank(
        rank=rank,
        world_size=world_size,
        stage=groups.pipeline_rank(),
        parameters=sum(parameter.numel() for parameter in held),
        memory=_sums((allocation.kind, allocation.size) for allocation in of_peak),
        lines=_lines(
            _sums((allocation.site, allocation.size) for allocation in of_peak if allocation.kind == "activations")
        ),
        step=_step_counts(one, more, whole, trace.ranks),
        micro_batches=whole,
        groups=len({kind.group for counted in (one, more) for kind in counted.counts.calls}),
    )


def _batches(config: RunConfig, micro_batches: int) -> Iterator[Batch]:
    """Micro batches of one source in which every label counts."""
    size = (config.training.micro_batch_size, config.data.sequence_length)
    for _ in range(micro_batches):
        yield Batch(
            tokens=torch.zeros(size, dtype=torch.int64),
            labels=torch.zeros(size, dtype=torch.int64),
            loss_mask=torch.ones(size),
            positions=torch.arange(size[1]).expand(size),
            sources=torch.zeros(size[0], dtype=torch.int64),
        )


def _step_counts(one: _Counted, more: _Counted, whole: int, ranks_of: Mapping[str, list[int]]) -> StepCounts:
    """Those of a step of `whole` micro batches, from two shorter ones.

    Args:
        ranks_of: ranks of each process group.
    """
    added = more.micro_batches - one.micro_batches
    beyond = whole - one.micro_batches

    def extended(first: float, second: float) -> float:
        return first + beyond * (second - first) / added

    a, b = one.counts, more.counts
    names = groups.group_names()
    transfers = []
    for kind in {**a.calls, **b.calls}:
        ranks = ranks_of[kind.group]
        transfers.append(
            TransferCount(
                operation=kind.operation,
                group=names.get(kind.group, "world" if len(ranks) == groups.world_size() else "other"),
                ranks=len(ranks),
                span=ranks[-1] - ranks[0] + 1,
                calls=round(extended(a.calls[kind], b.calls[kind])),
                bytes=extended(a.bytes[kind], b.bytes[kind]),
            )
        )
    sites = {**a.syncs, **b.syncs}
    return StepCounts(
        flops=extended(a.flops, b.flops),
        moved=extended(a.moved, b.moved),
        kernels=round(extended(a.kernels, b.kernels)),
        seconds=extended(a.seconds, b.seconds),
        micro_batch_seconds=(b.seconds - a.seconds) / added,
        micro_batch_kernels=(b.kernels - a.kernels) / added,
        transfers=tuple(sorted(transfers, key=lambda one: -one.bytes)),
        syncs=_lines({site: round(extended(a.syncs[site], b.syncs[site])) for site in sites}),
    )


def _sums(pairs: Iterable[tuple[Any, int]]) -> Counter[Any]:
    """The counts of equal things, added."""
    sums: Counter[Any] = Counter()
    for key, count in pairs:
        sums[key] += count
    return sums


def _lines(counts: Mapping[Site, int]) -> tuple[Line, ...]:
    """The lines of the program, most first."""
    places = ((_place(site), count) for site, count in counts.items())
    return tuple(Line(place, count) for place, count in sorted(places, key=lambda one: -one[1]))


def _place(site: Site) -> str:
    """A file by its package, and a line."""
    file, line = site
    package = "megatron_cpt/" if "/megatron_cpt/" in file else "megatron/core/"
    return f"{package}{file.rpartition('/' + package)[2]}:{line}"
