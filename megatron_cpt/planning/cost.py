"""Hours, GPU-hours and money of what is left of a run: from what it has measured, else from FLOPs and a GPU's peak.

And whether it fits the GPU.

The share (MFU) is an assumption of the user's. What was measured on as many ranks is preferred.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.units import short_count
from megatron_cpt.planning.cards import USED_MEMORY, card_of
from megatron_cpt.planning.plan import RunPlan
from megatron_cpt.planning.text_tables import size
from megatron_cpt.runs.folder import RunFolder, read_json_object
from megatron_cpt.runs.records import read_records, short_time

_MEASURED_STEPS = 100
"""The last of a run, whose median throughput is taken."""


@dataclass(frozen=True)
class CostEstimate:
    """What is left of a run, as time and money."""

    steps: int
    """Optimizer steps that are left."""
    tokens: int
    """Tokens that are left."""
    tokens_per_second: float
    """Of all ranks together, evaluations apart."""
    basis: str
    """Where that comes from, in words."""
    evaluation_share: float
    """Compute of the evaluations as a share of that of training."""
    ranks: int
    """GPUs of the run."""
    price: float | None
    """Of one GPU for an hour; None: not given."""

    @property
    def hours(self) -> float:
        """Wall time."""
        return self.tokens * (1 + self.evaluation_share) / self.tokens_per_second / 3600

    @property
    def gpu_hours(self) -> float:
        """Of all ranks."""
        return self.hours * self.ranks

    @property
    def money(self) -> float | None:
        """In the currency of the price."""
        return None if self.price is None else self.gpu_hours * self.price

    def lines(self) -> list[str]:
        """What is printed beside the plan."""
        money = "" if self.money is None else f", cost {self.money:,.2f} at {self.price:g} per GPU-hour"
        time, spent = short_time(self.hours * 3600), _three_digits(self.gpu_hours)
        return [
            f"Left     {self.steps:,} steps, {short_count(self.tokens)} tokens",
            f"Time     {time} on {self.ranks:,} {'GPU' if self.ranks == 1 else 'GPUs'}: {spent} GPU-hours{money}",
            f"         at {short_count(self.tokens_per_second)} tokens/s: {self.basis}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The figures."""
        return asdict(self) | {"hours": self.hours, "gpu_hours": self.gpu_hours, "money": self.money}


def cost_estimate(plan: RunPlan, gpu: str, mfu: float, price: float | None = None) -> CostEstimate:
    """What is left of a run, from its newest checkpoint on.

    Args:
        gpu: kind of GPU (planning/cards.py).
        mfu: share of its peak that training reaches.
        price: of one GPU for an hour.
    Raises:
        BadInput: no such card, a share that is none, a price below 0.
    """
    if not 0 < mfu <= 1:
        raise BadInput(Fault(f"--mfu {mfu:g}", "is a share of the peak above 0, to 1.", "Write one, such as 40%."))
    refuse(price_faults(price))
    card = card_of(gpu)
    done = plan.resume.step if plan.resume is not None else plan.start.step
    measured = _measured(plan)
    if measured is None:
        # Weights by losses take a forward pass more: a third of what a step takes, and none of what it is for.
        after = plan.config.reweighted_after(plan.start.step)
        reweighted = 0 if after is None else max(0, plan.steps - max(after, done))
        passes = 1 + reweighted / max(1, plan.steps - done) / 3
        rate = mfu * card.flops * plan.world_size / (passes * plan.model.flops_per_token)
        basis = f"{mfu:.0%} of the peak of {gpu}, an assumption (--gpu, --mfu)"
    else:
        rate, basis = measured, f"the median of the last {_MEASURED_STEPS} steps of this run, on as many ranks"
    return CostEstimate(
        steps=plan.steps - done,
        tokens=plan.tokens - plan.config.tokens_at(done),
        tokens_per_second=rate,
        basis=basis,
        evaluation_share=sum(one.compute_share for one in plan.evaluations),
        ranks=plan.world_size,
        price=price,
    )


def memory_warnings(plan: RunPlan, gpu: str) -> Iterator[str]:
    """A run that does not fit a kind of GPU by the estimate. Raises BadInput for no such card."""
    card, estimate = card_of(gpu), plan.model.memory.total
    if estimate <= card.usable_memory:
        return
    parallel, training = plan.config.parallel, plan.config.training
    ways = ["raise parallel.tensor or parallel.pipeline"]
    if plan.model.active_parameters < plan.model.parameters:
        ways.append("raise parallel.expert")
    if not parallel.distributed_optimizer:
        ways.append("set parallel.distributed_optimizer")
    if training.recompute != "full":
        ways.append("set training.recompute: full")
    if training.micro_batch_size > 1:
        ways.append("lower training.micro_batch_size")
    yield (
        f"memory: {size(estimate)} are estimated for the fullest rank, and {gpu} has {card.memory:g} GiB, of which an "
        f"estimate may fill {USED_MEMORY:.0%}: the run would end out of memory. Plan more GPUs (--nproc) or a larger "
        f"one (--gpu), {', '.join(ways)}."
    )


def price_faults(price: float | None) -> list[Fault]:
    """A price that is none."""
    if price is None or 0 <= price < math.inf:
        return []
    return [Fault(f"--price {price:g}", "is below 0, or no number.", "Give what a GPU costs for an hour.")]


def _measured(plan: RunPlan) -> float | None:
    """Tokens per second that the run had last on as many ranks; None where it has none."""
    folder = RunFolder(plan.folder)
    before = read_json_object(folder.plan) if folder.plan.is_file() else None
    if before is None or before.get("world_size") != plan.world_size or not folder.records.is_file():
        return None
    rates = [
        record["tokens_per_second"]
        for record in read_records(folder.records)
        if record["kind"] == "train" and record.get("tokens_per_second")
    ]
    return median(rates[-_MEASURED_STEPS:]) if rates else None


def _three_digits(number: float) -> str:
    return short_count(number) if number >= 1000 else f"{number:.3g}"
