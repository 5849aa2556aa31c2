"""Estimates from the counts of a simulated rank, by literal numbers."""

from dataclasses import replace

import pytest

from megatron_cpt.planning.cards import Card
from megatron_cpt.planning.simulated import (
    SimulatedRank,
    Simulation,
    StepCounts,
    TransferCount,
    estimate_step,
    transfer_seconds,
    without_left_out,
)
from tests.config.examples import config_with
from tests.families.test_size import LLAMA_3_8B

CARD = Card(flops=1e15, memory=80, bandwidth=1e12, link=100e9, network=10e9, bandwidth_share=0.5, kernel_start=1e-6)
STEP = StepCounts(
    flops=1e15,
    moved=1e12,
    kernels=1000,
    seconds=9.0,
    micro_batch_seconds=2.0,
    micro_batch_kernels=200.0,
    transfers=(),
    syncs=(),
)
RANK = SimulatedRank(
    rank=0,
    world_size=8,
    stage=0,
    parameters=1000,
    memory={"parameters": 10 << 30, "gradients": 20 << 30, "optimizer": 15 << 30, "activations": 5 << 30},
    lines=(),
    step=STEP,
    micro_batches=4,
    groups=3,
)


def transfer(operation: str, group: str, ranks: int = 4, span: int = 4, size: float = 100e9) -> TransferCount:
    return TransferCount(operation=operation, group=group, ranks=ranks, span=span, calls=1, bytes=size)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (transfer("all_gather", "tensor"), 1.5),  # three quarters of 100 GB at 50 GB/s
        (transfer("all_reduce", "tensor"), 3.0),
        (transfer("all_gather", "tensor", span=64), 15.0),  # over the network
        (transfer("recv", "pipeline", ranks=2), 2.0),
        (transfer("send", "pipeline", ranks=2), 0.0),
        (transfer("all_reduce", "tensor", ranks=1), 0.0),
    ],
)
def test_a_ring_moves_what_is_not_its_own(given: TransferCount, seconds: float) -> None:
    assert transfer_seconds(given, CARD) == pytest.approx(seconds)


def test_a_step_is_its_kernels_where_nothing_is_shared() -> None:
    found = estimate_step(config_with(), RANK, CARD)
    assert (found.work, found.exposed, found.bubble) == (9.0, 0.0, 0.0)


def test_the_host_bounds_small_kernels() -> None:
    found = estimate_step(config_with(), RANK, replace(CARD, kernel_start=0.1))
    assert found.work == 100.0  # 1,000 kernels


def test_a_pipeline_waits_for_its_first_and_last_micro_batches() -> None:
    config = config_with(parallel={"pipeline": 4})
    # Three of four micro batches, 2 s each, before the last stage begins and after the first ends.
    assert estimate_step(config, RANK, CARD).bubble == pytest.approx(3 / 4 * 8)
    interleaved = config_with(parallel={"pipeline": 4, "virtual_pipeline": 2})
    assert estimate_step(interleaved, RANK, CARD).bubble == pytest.approx(3 / 8 * 8)


def test_overlap_hides_gradients_behind_a_backward_pass() -> None:
    step = replace(STEP, transfers=(transfer("reduce_scatter", "data and context"),))  # 1.5 s
    rank = replace(RANK, step=step)
    assert estimate_step(config_with(), rank, CARD).exposed == pytest.approx(1.5)
    overlapped = config_with(parallel={"overlap_grad_reduce": True})
    assert estimate_step(overlapped, rank, CARD).exposed == pytest.approx(1.5 - 2 * 2 / 3)


def test_a_step_takes_as_long_as_its_slowest_stage() -> None:
    last = replace(RANK, rank=4, stage=1, memory={"parameters": 1 << 30}, step=replace(STEP, seconds=12.0))
    both = Simulation(config_with(), LLAMA_3_8B, CARD, "a card", (RANK, last))
    assert (both.fullest, both.slowest) == (RANK, last)
    assert both.estimate.seconds == 12.0
    assert "12 s of rank 4" in both.text()


def test_what_no_fake_tensor_follows_is_left_out_and_told() -> None:
    transformer = {"fp8": "hybrid", "moe_grouped_gemm": True, "moe_token_dispatcher_type": "flex"}
    quiet = {"fp4": None, "moe_permute_fusion": False, "moe_aux_loss_coeff": 0.1, "cuda_graph_scope": []}
    optimizer = {"use_precision_aware_optimizer": True, "log_num_zeros_in_grad": False}
    given = config_with(megatron={"transformer": transformer | quiet, "optimizer": optimizer})
    simulated, left_out = without_left_out(given)
    assert left_out == (
        "megatron.transformer.fp8=hybrid",
        "megatron.transformer.moe_grouped_gemm=True",
        "megatron.transformer.moe_token_dispatcher_type=flex",
        "megatron.optimizer.use_precision_aware_optimizer=True",
    )
    assert simulated.megatron.transformer == quiet
    assert simulated.megatron.optimizer == {"log_num_zeros_in_grad": False}
    assert replace(simulated, megatron=given.megatron) == given


def test_what_is_not_simulated_has_room_too() -> None:
    whole = Simulation(config_with(), LLAMA_3_8B, CARD, "a card", (RANK,), price=2.0)
    assert whole.fullest.peak == 50 << 30
    assert whole.fullest.allowance == pytest.approx((1.2 + 3 * 0.1 + 0.04 * 50) * 2**30)
    assert whole.fits
    assert not replace(whole, card=replace(CARD, memory=53)).fits
    assert whole.tokens_per_second == pytest.approx(whole.config.tokens_per_step / 9.0)
    money = whole.config.total_tokens / whole.tokens_per_second / 3600 * 8 * 2.0
    assert whole.cost.money == pytest.approx(money)
    half = replace(whole, done=whole.config.total_steps // 2).cost
    assert half.steps == whole.config.total_steps - whole.config.total_steps // 2
    assert half.money == pytest.approx(money * half.steps / whole.config.total_steps)
    assert "DOES NOT FIT" in replace(whole, card=replace(CARD, memory=53)).text()
