"""Layouts of a run, ranked without simulating each: what `plan --search` tries first.

Every way to share the model that the rules of a run allow is looked at. What does not fit the card by the estimate of
families/memory.py is left out. The rest is ranked by a step in closed form: the counts that a simulated rank would
show, from the model's FLOPs and sizes, in `estimate_step`. The first few are then simulated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.schema import ParallelSettings, Recompute, RunConfig
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.memory import BYTES, MemoryEstimate, layer_bytes, memory_per_rank, stage_parameters
from megatron_cpt.families.size import flops_per_token
from megatron_cpt.planning.cards import Card, gpu_layout
from megatron_cpt.planning.checks import model_faults
from megatron_cpt.planning.simulated import (
    GIB,
    SimulatedRank,
    Simulation,
    StepCounts,
    StepEstimate,
    TransferCount,
    estimate_step,
)
from megatron_cpt.planning.text_tables import columns

_RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
"""From the fastest to the smallest."""
_MICRO_BATCHES = range(1, 9)
"""Sequences."""
_CONTEXTS = (1, 2, 4, 8, 16)
_LEAST_PART = 2048
"""Tokens of a sequence that a context-parallel rank has at least."""
_MOST_STAGES, _MOST_CHUNKS = 32, 8
"""Of a pipeline, and of a stage."""

_LAYER_KERNELS, _EXPERT_KERNELS = 80, 15
"""Kernels of a layer, and of each expert of a rank, forward and backward: counted in simulated runs."""
_BYTES_MOVED = 9.0
"""Bytes that kernels move of a layer's forward and backward pass, products apart, for each that it keeps: likewise."""
_STEP_BYTES, _UPDATE_BYTES = 16.0, 36.5
"""Bytes that a step moves once for each parameter of a rank, and beyond that for each that it updates: likewise."""


@dataclass(frozen=True)
class Layout:
    """A way to share the model, by its closed estimates."""

    config: RunConfig
    """The run with it."""
    memory: MemoryEstimate
    """Of the fullest rank."""
    step: StepEstimate
    """Of the slowest stage."""

    @property
    def way(self) -> tuple[int, ...]:
        """The sizes by which ranks share the model."""
        parallel = self.config.parallel
        return parallel.tensor, parallel.pipeline, parallel.context, parallel.expert

    @property
    def overrides(self) -> list[str]:
        """The settings as words for the command line, those that differ from the defaults."""
        default, parallel, training = ParallelSettings(), self.config.parallel, self.config.training
        words = [
            f"parallel.{name}={_yaml(getattr(parallel, name))}"
            for name in _VARIED
            if getattr(parallel, name) != getattr(default, name)
        ]
        words.append(f"training.micro_batch_size={training.micro_batch_size}")
        return [*words, f"training.recompute={training.recompute}"]


_VARIED = (
    "tensor",
    "sequence",
    "pipeline",
    "virtual_pipeline",
    "context",
    "expert",
    "distributed_optimizer",
    "overlap_grad_reduce",
    "overlap_param_gather",
)


def _yaml(value: object) -> str:
    return str(value).lower()


def search_layouts(config: RunConfig, shape: ModelShape, card: Card, world_size: int) -> list[Layout]:
    """The layouts that fit a card, the fastest by the closed estimate first.

    Of layouts that differ in recomputation alone, the one that recomputes least is kept. All other settings are those
    of `config`.

    Args:
        world_size: ranks of the run.
    """
    found = []
    for shared in _shared(config, shape, card, world_size):
        for recompute in _RECOMPUTE:
            one = replace(shared, training=replace(shared.training, recompute=recompute))
            if config_faults(one, world_size) or model_faults(one, shape):
                continue
            memory = memory_per_rank(shape, one, world_size)
            if memory.total <= card.usable_memory:
                found.append(Layout(one, memory, closed_step(one, shape, card, world_size)))
                break
    return sorted(found, key=lambda layout: layout.step.seconds)


def _shared(config: RunConfig, shape: ModelShape, card: Card, world_size: int) -> Iterator[RunConfig]:
    """Ways to share the model and a step's sequences. Some break rules of a run."""
    length, batch = config.data.sequence_length, config.training.global_batch_size
    tensors = [size for size in _powers(card.per_machine) if shape.heads % size == 0]
    pipelines = [size for size in range(1, min(shape.layers, _MOST_STAGES) + 1) if shape.layers % size == 0]
    contexts = [size for size in _CONTEXTS if size == 1 or length // size >= _LEAST_PART]
    experts = [size for size in _powers(shape.experts) if shape.experts % size == 0] or [1]
    for tensor, pipeline, context in product(tensors, pipelines, contexts):
        model_ranks = tensor * pipeline * context
        if world_size % model_ranks:
            continue
        replicas = world_size // model_ranks
        chunks = [
            n for n in range(1, _MOST_CHUNKS + 1) if shape.layers // pipeline % n == 0 and (pipeline > 1 or n == 1)
        ]
        for virtual, expert, micro_batch in product(chunks, experts, _MICRO_BATCHES):
            if replicas * context % expert or batch % (micro_batch * replicas):
                continue
            sizes = {"pipeline": pipeline, "virtual_pipeline": virtual, "context": context, "expert": expert}
            parallel = gpu_layout(replicas * context > 1, tensor=tensor, **sizes)
            yield replace(config, parallel=parallel, training=replace(config.training, micro_batch_size=micro_batch))


def _powers(most: int) -> list[int]:
    """Powers of two up to a number."""
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def closed_step(config: RunConfig, shape: ModelShape, card: Card, world_size: int) -> StepEstimate:
    """The time of a step of the slowest stage, the last one, which has the output layer too."""
    return estimate_step(config, closed_rank(config, shape, card, world_size), card)


def closed_rank(config: RunConfig, shape: ModelShape, card: Card, world_size: int) -> SimulatedRank:
    """What a simulated rank of the last stage would show, as far as an estimate of its time needs it."""
    parallel, training = config.parallel, config.training
    stage = parallel.pipeline - 1
    replicas = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
    micro_batches = training.global_batch_size // (training.micro_batch_size * replicas)
    dense, experts = stage_parameters(shape, config, stage)
    flops, moved, kernels = _of_micro_batch(config, shape)
    seconds = flops / (card.flops * card.product_share) + moved / (card.bandwidth * card.bandwidth_share)
    shards = replicas * parallel.context if parallel.distributed_optimizer else 1
    updated = dense / shards + experts / max(1, shards // parallel.expert)
    update = _STEP_BYTES * (dense + experts) + _UPDATE_BYTES * updated
    update_seconds = update / (card.bandwidth * card.bandwidth_share)
    transfers = (
        *_within_step(config, shape, micro_batches, world_size),
        *_of_gradients(config, dense, experts, replicas, world_size),
    )
    return SimulatedRank(
        rank=0,
        world_size=world_size,
        stage=stage,
        parameters=dense + experts,
        memory={},
        lines=(),
        step=StepCounts(
            flops=micro_batches * flops,
            moved=micro_batches * moved + update,
            kernels=round(micro_batches * kernels),
            seconds=micro_batches * seconds + update_seconds,
            micro_batch_seconds=seconds,
            micro_batch_kernels=kernels,
            transfers=transfers,
            syncs=(),
        ),
        micro_batches=micro_batches,
        groups=0,
    )


def _of_micro_batch(config: RunConfig, shape: ModelShape) -> tuple[float, float, float]:
    """FLOPs, bytes that kernels move beside products, and kernels of a micro batch, forward and backward."""
    parallel, training, length = config.parallel, config.training, config.data.sequence_length
    layers = shape.layers // parallel.pipeline
    tokens = training.micro_batch_size * length / parallel.context
    output = 6.0 * shape.vocabulary * shape.hidden
    of_layers = (flops_per_token(shape, length) - output) / parallel.pipeline
    again = {"none": 0.0, "selective": _mlp_share(shape) / 3, "full": 1 / 3}[training.recompute]
    flops = tokens * (of_layers * (1 + again) + output) / parallel.tensor
    kept = _kept_without_recomputation(config, shape) / parallel.pipeline
    logits = 3 * (BYTES[training.precision] + 4) * shape.vocabulary / parallel.tensor
    moved = tokens * (_BYTES_MOVED * kept * (1 + again) + logits)
    sparse = len(shape.sparse_layers) / shape.layers * layers
    kernels = (1 + again) * (layers * _LAYER_KERNELS + sparse * _EXPERT_KERNELS * shape.experts / parallel.expert)
    return flops, moved, kernels


def _mlp_share(shape: ModelShape) -> float:
    """Of the FLOPs of a dense layer's matrices, those of its MLP."""
    attention = shape.hidden * (2 * shape.query_width + 2 * shape.key_value_width)
    mlp = (3 if shape.gated_mlp else 2) * shape.hidden * shape.ffn_hidden
    return mlp / (attention + mlp)


def _kept_without_recomputation(config: RunConfig, shape: ModelShape) -> float:
    """Bytes that all layers keep of a token."""
    whole = replace(config, training=replace(config.training, recompute="none"))
    return sum(layer_bytes(shape, whole, layer) for layer in range(shape.layers))


def _within_step(config: RunConfig, shape: ModelShape, micro_batches: int, world_size: int) -> Iterator[TransferCount]:
    """Collectives and messages of every micro batch, at the last stage."""
    parallel, training = config.parallel, config.training
    weight, tensor, context = BYTES[training.precision], parallel.tensor, parallel.context
    layers = shape.layers // parallel.pipeline
    tokens = training.micro_batch_size * config.data.sequence_length / context
    states = tokens * shape.hidden * weight
    again = 1 if training.recompute == "full" else 0
    sparse = round(len(shape.sparse_layers) / shape.layers * layers)

    def transfer(operation: str, group: str, ranks: int, span: int, calls: int, size: float) -> TransferCount:
        total = calls * micro_batches
        return TransferCount(operation, group, ranks, span, total, total * size)

    if tensor > 1:
        # Attention and MLP each gather their input, forward and twice backward, and scatter their output's sums; of a
        # layer with experts, the one that all tokens go through.
        parts = 2 * layers + 1 - (0 if shape.shared_expert_ffn_hidden else sparse)
        yield transfer("all_gather", "tensor", tensor, tensor, (3 + again) * parts, states)
        yield transfer("reduce_scatter", "tensor", tensor, tensor, (2 + again) * parts, states)
        if shape.latent_attention:
            # Queries, and keys with values, each gather the layer's input. Latent vectors are gathered whole, and once
            # more as the input of what is made of them (model/latent_attention.py).
            latents = [width * tokens * weight for width in (shape.query_latent, shape.key_value_latent) if width]
            shared = shape.shared_key_dim * tokens * weight
            yield transfer("all_gather", "tensor", tensor, tensor, (2 + again) * layers, states)
            yield transfer("reduce_scatter", "tensor", tensor, tensor, layers, states)
            for latent in latents:
                yield transfer("all_gather", "tensor", tensor, tensor, (4 + 2 * again) * layers, latent)
                yield transfer("reduce_scatter", "tensor", tensor, tensor, layers, latent)
            yield transfer("all_reduce", "tensor", tensor, tensor, layers, shared)
    if context > 1:
        keys = 2 * tokens * context * shape.key_value_width * weight / tensor
        yield transfer("all_gather", "context", context, tensor * context, (1 + again) * layers, keys)
        yield transfer("all_reduce", "context", context, tensor * context, layers, keys)
    if tensor > 1 and sparse:  # the tokens of an expert go to all ranks that share it, there and back
        chosen = states * shape.experts_per_token
        yield transfer("all_gather", "expert tensor", tensor, tensor, (3 + again) * sparse, chosen)
        yield transfer("reduce_scatter", "expert tensor", tensor, tensor, (3 + 2 * again) * sparse, chosen)
    if parallel.expert > 1 and sparse:
        sent = states / tensor * shape.experts_per_token
        yield transfer(
            "all_to_all", "expert", parallel.expert, tensor * parallel.expert, (4 + 2 * again) * sparse, sent
        )
    if parallel.pipeline > 1:
        # The last stage gets states for each of its chunks, and gradients for each but the last, which has the loss.
        received = 2 * parallel.virtual_pipeline - 1
        yield transfer("recv", "pipeline", 2, world_size // parallel.pipeline + 1, received, states / tensor)


def _of_gradients(
    config: RunConfig, dense: int, experts: int, replicas: int, world_size: int
) -> Iterator[TransferCount]:
    """Collectives of a step over the ranks that hold the same parameters."""
    parallel = config.parallel
    sharing = replicas * parallel.context
    span = world_size // parallel.pipeline
    weight = BYTES[config.training.precision]
    # Megatron-Core's optimizers of experts and of all else each gather all parameters, where that is not overlapped.
    gathers = 2 if experts and not parallel.overlap_param_gather else 1
    for group, ranks, count in (
        ("data and context", sharing, dense),
        # Experts that are not divided are on the same ranks as all else, and this group is that of all else.
        ("expert data" if parallel.expert > 1 else "data and context", sharing // parallel.expert, experts),
    ):
        if ranks == 1 or not count:
            continue
        if not parallel.distributed_optimizer:
            yield TransferCount("all_reduce", group, ranks, span, 1, 4.0 * count)
        else:
            yield TransferCount("reduce_scatter", group, ranks, span, 1, 4.0 * count)
            yield TransferCount("all_gather", group, ranks, span, gathers, float(gathers * weight * count))


@dataclass(frozen=True)
class TriedLayout:
    """A layout and what its simulation shows."""

    layout: Layout
    simulation: Simulation
    is_own: bool = False
    """Whether it is that of RUN.yaml."""

    def to_dict(self) -> dict[str, object]:
        """For machines."""
        return {
            "overrides": self.layout.overrides,
            "is_own": self.is_own,
            "estimated_bytes": self.layout.memory.total,
            "estimated_step_seconds": self.layout.step.seconds,
            "peak_bytes": self.simulation.fullest.peak,
            "fits": self.simulation.fits,
            "step_seconds": self.simulation.estimate.seconds,
            "tokens_per_second": self.simulation.tokens_per_second,
            "mfu": self.simulation.mfu,
            "gpu_hours": self.simulation.cost.gpu_hours,
            "money": self.simulation.cost.money,
        }


def distinct_layouts(layouts: Sequence[Layout], count: int) -> list[Layout]:
    """The first few that share the model in different ways: not in micro batch, chunks or recomputation alone."""
    first: dict[tuple[int, ...], Layout] = {}
    for layout in layouts:
        first.setdefault(layout.way, layout)
    return list(first.values())[:count]


def search_lines(found: int, tried: Sequence[TriedLayout], shown: int = 3) -> list[str]:
    """What `plan --search` prints: the simulated layouts that fit, the fastest first, and the settings of a few.

    Args:
        found: layouts that fit by the closed estimate.
    """
    ranked = ranked_layouts(tried)
    priced = any(one.simulation.price is not None for one in tried)
    rows = [["tensor", "pipeline", "chunks", "context", "expert", "micro batch", "recompute", "GiB", "step s",
             "tokens/s", "MFU", "GPU-hours", *["cost"] * priced, "closed: GiB", "step s", ""]]  # fmt: skip
    rows += [_row(one) for one in ranked]
    own = ", and RUN.yaml's own" if any(one.is_own for one in tried) else ""
    best = [f"  {' '.join(one.layout.overrides)}" for one in ranked[:shown] if one.simulation.fits]
    return [
        f"{found:,} layouts fit by the closed estimate. Simulated were {len(tried)}, the fastest of each way to share "
        f"the model{own}; of each a rank of the fullest stage and one of the last:",
        "",
        *(f"  {line}" for line in columns(rows, "rrrrrrl" + "r" * (7 + priced) + "l")),
        "",
        "To try" if best else "None of them fits the card with what is not simulated.",
        *best,
    ]


def ranked_layouts(tried: Sequence[TriedLayout]) -> list[TriedLayout]:
    """Those that fit before those that do not, the fastest first."""
    return sorted(tried, key=lambda one: (not one.simulation.fits, one.simulation.estimate.seconds))


def _row(tried: TriedLayout) -> list[str]:
    parallel, training, simulation = tried.layout.config.parallel, tried.layout.config.training, tried.simulation
    sizes = (parallel.tensor, parallel.pipeline, parallel.virtual_pipeline, parallel.context, parallel.expert)
    return [
        *map(str, sizes),
        str(training.micro_batch_size),
        training.recompute,
        f"{simulation.fullest.peak / GIB:.1f}" + ("" if simulation.fits else " too much"),
        f"{simulation.estimate.seconds:.3g}",
        f"{simulation.tokens_per_second:,.0f}",
        f"{simulation.mfu:.1%}",
        _three_digits(simulation.cost.gpu_hours),
        *([] if simulation.cost.money is None else [_three_digits(simulation.cost.money)]),
        f"{tried.layout.memory.total / GIB:.1f}",
        f"{tried.layout.step.seconds:.3g}",
        "RUN.yaml's own" if tried.is_own else "",
    ]


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
