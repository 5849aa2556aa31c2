"""What a simulated rank of a run shows: memory, collectives, waits of the host; and an estimate of time and cost.

The time of a rank's own work is the sum over its kernels of the larger of FLOPs over peak and bytes over bandwidth
(roofline), or what the host takes to start them. A ring of n ranks moves (n - 1) / n of a tensor, an all-reduce twice
that. What the schedule cannot hide is added. The shares of the peaks that are reached are assumptions of the card's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_cpt.config.passed_fields import engine_only_fields
from megatron_cpt.config.schema import MegatronSettings, RunConfig
from megatron_cpt.config.units import short_count
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.size import flops_per_token, palm_flops_per_token
from megatron_cpt.planning.cards import Card
from megatron_cpt.planning.cost import CostEstimate
from megatron_cpt.planning.text_tables import columns, percent, size

GIB = 2**30
# Passed fields of Megatron-Core's configurations that a simulated rank is built without: what they ask for is
# Transformer Engine's, or a recorded graph or a copy on the host, of which fake tensors have none.
_NOT_SIMULATED = {
    "transformer": (
        "activation_func_fp8_input_store",
        "cpu_offloading",
        "cpu_offloading_num_layers",
        "cross_entropy_fusion_impl",
        "cuda_graph_impl",
        "delay_wgrad_compute",
        "enable_cuda_graph",
        "external_cuda_graph",
        "fine_grained_activation_offloading",
        "fp8_dot_product_attention",
        "moe_enable_deepep",
        "moe_permute_fusion",
        "moe_router_fusion",
        "moe_router_padding_for_fp8",
        "moe_router_padding_for_quantization",
        "moe_token_dispatcher_type",
        "offload_modules",
    ),
    "optimizer": (
        "exp_avg_dtype",
        "exp_avg_sq_dtype",
        "main_grads_dtype",
        "main_params_dtype",
        "optimizer_cpu_offload",
        "store_param_remainders",
        "use_precision_aware_optimizer",
    ),
    "ddp": ("nccl_ub",),
}
# What is not simulated, GiB: CUDA's context, kernels and cuBLAS's workspaces; buffers of NCCL for each group.
_CONTEXT, _NCCL_GROUP = 1.2, 0.1
# Of what is allocated, what the allocator cannot use.
_FRAGMENTATION = 0.04
# Values with which all of these are simulated.
_SIMULATED_VALUES: tuple[Any, ...] = (None, False, 0, [], "none", "native", "alltoall", "allgather")


@dataclass(frozen=True)
class Line:
    """A line of the program and what was counted there."""

    place: str
    """File and line."""
    count: int
    """Bytes, or times."""


@dataclass(frozen=True)
class TransferCount:
    """A kind of collective or message in a step."""

    operation: str
    """all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, recv."""
    group: str
    """What the ranks share: tensor, data, pipeline, context, expert, ..."""
    ranks: int
    """Ranks of the group."""
    span: int
    """Ranks of the world from its first to its last."""
    calls: int
    """How many."""
    bytes: float
    """Of whole tensors, all calls together."""


@dataclass(frozen=True)
class StepCounts:
    """A step of one rank."""

    flops: float
    """Floating-point operations of products and attention; recomputed ones count again."""
    moved: float
    """Bytes that kernels read and write."""
    kernels: int
    """Kernels that the host starts."""
    seconds: float
    """Roofline time of all kernels."""
    micro_batch_seconds: float
    """Of the kernels of one more micro batch."""
    micro_batch_kernels: float
    """How many they are."""
    transfers: tuple[TransferCount, ...]
    """Collectives and messages, those of most bytes first."""
    syncs: tuple[Line, ...]
    """Places where the host waits for the GPU, and how many times."""


@dataclass(frozen=True)
class SimulatedRank:
    """One rank of a run, in a step that is not the first."""

    rank: int
    """Which of the world."""
    world_size: int
    """Ranks of the run."""
    stage: int
    """Its pipeline stage."""
    parameters: int
    """Parameters that it holds."""
    memory: dict[str, int]
    """Bytes at the peak, by kind: parameters, gradients, optimizer, activations (temporaries among them)."""
    lines: tuple[Line, ...]
    """The lines that made these activations, and bytes, most first."""
    step: StepCounts
    """What a step takes."""
    micro_batches: int
    """Micro batches of a step."""
    groups: int
    """Process groups that it is a member of and uses."""

    @property
    def peak(self) -> int:
        """Bytes that are allocated at the peak."""
        return sum(self.memory.values())

    @property
    def syncs(self) -> int:
        """Times that the host waits in a step."""
        return sum(line.count for line in self.step.syncs)

    @property
    def allowance(self) -> float:
        """Bytes that are not simulated: context, buffers of NCCL, fragmentation."""
        return GIB * (_CONTEXT + _NCCL_GROUP * self.groups) + _FRAGMENTATION * self.peak


@dataclass(frozen=True)
class StepEstimate:
    """How long a step takes, seconds."""

    work: float
    """Kernels of the rank."""
    exposed: float
    """Collectives and messages that nothing hides."""
    bubble: float
    """Waiting for other pipeline stages."""

    @property
    def seconds(self) -> float:
        """All together."""
        return self.work + self.exposed + self.bubble


def estimate_step(config: RunConfig, rank: SimulatedRank, card: Card) -> StepEstimate:
    """The time of a step in which every stage takes as long as this rank's."""
    parallel, step, count = config.parallel, rank.step, rank.micro_batches
    once = max(step.micro_batch_seconds, step.micro_batch_kernels * card.kernel_start)
    rest_seconds = max(0.0, step.seconds - count * step.micro_batch_seconds)
    rest = max(rest_seconds, max(0.0, step.kernels - count * step.micro_batch_kernels) * card.kernel_start)
    hidden = {
        "reduce_scatter": once * 2 / 3 if parallel.overlap_grad_reduce else 0.0,
        "all_reduce": once * 2 / 3 if parallel.overlap_grad_reduce else 0.0,
        "all_gather": once / 3 if parallel.overlap_param_gather else 0.0,
    }
    within = after = 0.0
    for transfer in step.transfers:
        seconds = transfer_seconds(transfer, card)
        if transfer.group.startswith("data") or transfer.group.startswith("expert data"):
            cover = min(seconds, hidden.get(transfer.operation, 0.0))
            hidden[transfer.operation] = hidden.get(transfer.operation, 0.0) - cover
            after += seconds - cover
        elif transfer.group == "pipeline" and parallel.virtual_pipeline > 1:
            continue  # messages of interleaved stages are sent while others are computed
        else:
            within += seconds
    ahead = (parallel.pipeline - 1) / (parallel.virtual_pipeline * count)
    return StepEstimate(
        work=count * once + rest,
        exposed=within + after,
        bubble=ahead * (count * once + within),
    )


def transfer_seconds(transfer: TransferCount, card: Card) -> float:
    """The time of all calls of a transfer, as rings of the group's ranks do it."""
    across = transfer.span > card.per_machine
    bandwidth = (card.network if across else card.link) * card.bandwidth_share
    ring = (transfer.ranks - 1) / transfer.ranks
    # A message takes its time at both ends at once: it counts where it comes in.
    factor = {"all_reduce": 2 * ring, "recv": 1.0, "send": 0.0, "broadcast": 1.0}.get(transfer.operation, ring)
    return factor * transfer.bytes / bandwidth if transfer.ranks > 1 else 0.0


def without_left_out(config: RunConfig) -> tuple[RunConfig, tuple[str, ...]]:
    """The run as its ranks are simulated, and the settings that it is simulated without, as on the command line."""
    passed = config.megatron
    of_engine = engine_only_fields(passed)
    kept, words = {}, []
    for section, names in _NOT_SIMULATED.items():
        given = getattr(passed, section)
        asked = [name for name in names if given.get(name) not in _SIMULATED_VALUES]
        left_out = [name for name in given if name in asked or (section == "transformer" and name in of_engine)]
        words += [f"megatron.{section}.{name}={given[name]}" for name in left_out]
        kept[section] = {name: value for name, value in given.items() if name not in left_out}
    return replace(config, megatron=MegatronSettings(**kept)), tuple(words)


@dataclass(frozen=True)
class Simulation:
    """Simulated ranks of a run, and what follows from them."""

    config: RunConfig
    shape: ModelShape
    card: Card
    card_name: str
    ranks: tuple[SimulatedRank, ...]
    price: float | None = None
    """Money for one GPU-hour."""
    left_out: tuple[str, ...] = ()
    """Settings that the ranks were simulated without, as on the command line."""
    done: int = 0
    """Steps of the run that are done."""

    @property
    def fullest(self) -> SimulatedRank:
        """The rank with the highest peak."""
        return max(self.ranks, key=lambda rank: rank.peak)

    @property
    def slowest(self) -> SimulatedRank:
        """The rank whose step takes longest."""
        return max(self.ranks, key=lambda rank: estimate_step(self.config, rank, self.card).seconds)

    @property
    def estimate(self) -> StepEstimate:
        """Of the slowest rank."""
        return estimate_step(self.config, self.slowest, self.card)

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks."""
        return self.config.tokens_per_step / self.estimate.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization, causal attention at half: what a run's records call `mfu`."""
        per_token = flops_per_token(self.shape, self.config.data.sequence_length)
        return per_token * self.tokens_per_second / (self.card.flops * self.fullest.world_size)

    @property
    def _palm_mfu(self) -> float:
        """The same with attention in full."""
        length = self.config.data.sequence_length
        return self.mfu * palm_flops_per_token(self.shape, length) / flops_per_token(self.shape, length)

    @property
    def fits(self) -> bool:
        """Whether peak and allowance fit the card."""
        return self.fullest.peak + self.fullest.allowance <= self.card.memory * GIB

    @property
    def cost(self) -> CostEstimate:
        """Of the steps that are left, evaluations and checkpoints apart."""
        return CostEstimate(
            steps=self.config.total_steps - self.done,
            tokens=self.config.total_tokens - self.config.tokens_at(self.done),
            tokens_per_second=self.tokens_per_second,
            basis="an estimate from simulated ranks; evaluations and checkpoints apart",
            evaluation_share=0.0,
            ranks=self.fullest.world_size,
            price=self.price,
        )

    def to_dict(self) -> dict[str, object]:
        """For machines."""
        full, estimate = self.fullest, self.estimate
        return {
            "gpu": self.card_name,
            "ranks": list(self.ranks),
            "peak_bytes": full.peak,
            "allowance_bytes": full.allowance,
            "fits": self.fits,
            "step_seconds": estimate.seconds,
            "estimate": estimate,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "cost": self.cost.to_dict(),
            "left_out": self.left_out,
        }

    def text(self) -> str:
        """As `plan --simulate` prints it."""
        full = self.fullest
        transfers = columns(
            [
                ["operation", "group", "ranks", "a step", "bytes", "seconds"],
                *(
                    [
                        one.operation,
                        one.group,
                        str(one.ranks),
                        f"{one.calls:,}",
                        size(one.bytes),
                        f"{transfer_seconds(one, self.card):.3f}",
                    ]
                    for one in full.step.transfers
                ),
            ],
            "llrrrr",
        )
        parts = [
            [*self._memory_lines(), *self._time_lines()],
            [
                f"Activations at the peak of rank {full.rank}, by the line that made them",
                *_line_table(full.lines, True),
            ],
            [f"Collectives of rank {full.rank} in a step", *(f"  {line}" for line in transfers)],
            [f"Waits of the host in a step: {full.syncs:,}", *_line_table(full.step.syncs, False)],
        ]
        return "\n\n".join("\n".join(part) for part in parts)

    def _memory_lines(self) -> list[str]:
        full = self.fullest
        kinds = ", ".join(f"{kind} {size(count)}" for kind, count in full.memory.items())
        others = ", ".join(f"rank {one.rank}: {size(one.peak)}" for one in self.ranks if one is not full)
        room = self.card.memory * GIB - full.peak - full.allowance
        verdict = f"fits, {size(room)} left" if self.fits else f"DOES NOT FIT: {size(-room)} too much"
        return [
            f"Rank     {full.rank} of {full.world_size}, pipeline stage {full.stage}: "
            f"{short_count(full.parameters)} parameters, {full.micro_batches} micro batches a step"
            + (f" (simulated too: {others})" if others else ""),
            f"Peak     {size(full.peak)} ({kinds})",
            f"Not simulated  {size(full.allowance)} (allowed for: CUDA context {_CONTEXT} GiB, {full.groups} groups "
            f"of NCCL {_NCCL_GROUP} GiB each, fragmentation {_FRAGMENTATION:.0%})",
            f"Card     {self.card_name}, {self.card.memory:g} GiB: {verdict}",
            *(["Documents  simulated as if attention crossed them"] if self._keeps_documents_apart else []),
            *([f"Settings  simulated as if not set: {', '.join(self.left_out)}"] if self.left_out else []),
        ]

    @property
    def _keeps_documents_apart(self) -> bool:
        return self.config.data.attention == "within_documents"

    def _time_lines(self) -> list[str]:
        estimate, card = self.estimate, self.card
        total = estimate.seconds
        of_rank = f" of rank {self.slowest.rank}" if len(self.ranks) > 1 else ""
        return [
            f"Step     {total:.3g} s{of_rank}, an estimate: kernels {estimate.work:.3g} s, exposed collectives "
            f"{estimate.exposed:.3g} s, pipeline bubble {estimate.bubble:.3g} s ({percent(estimate.bubble / total)})",
            f"Speed    {self.tokens_per_second:,.0f} tokens/s, MFU {self.mfu:.1%} (causal attention at half; in PaLM's "
            f"sense {self._palm_mfu:.1%}; assumed: {card.product_share:.0%} "
            f"of {card.flops / 1e12:g} TFLOP/s, {card.bandwidth_share:.0%} of bandwidths, "
            f"{card.kernel_start * 1e6:g} us to start a kernel)",
            *self.cost.lines(),
        ]


_LINES_SHOWN = 12


def _line_table(lines: Sequence[Line], in_bytes: bool) -> list[str]:
    rows = [[size(line.count) if in_bytes else f"{line.count:,}", line.place] for line in lines[:_LINES_SHOWN]]
    if len(lines) > _LINES_SHOWN:
        rest = sum(line.count for line in lines[_LINES_SHOWN:])
        rows.append([size(rest) if in_bytes else f"{rest:,}", f"{len(lines) - _LINES_SHOWN} other lines"])
    return [f"  {line}" for line in columns(rows, "rl")] if rows else []
