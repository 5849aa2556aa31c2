from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.eval_schedule import evaluation_steps
from megatron_cpt.config.schema import EvalIntervalSettings
from megatron_cpt.config.units import Batches, Duration, Ramp, RampPiece, ramp_up
from tests.config.examples import config_with

# 8 sequences at first, then 16, then 24 for good.
RAMPED = Batches(24, (RampPiece(5, 8), RampPiece(3, 16)))

ramps = st.lists(st.builds(RampPiece, st.integers(1, 9), st.integers(1, 50)), max_size=4).map(tuple)
all_batches = st.builds(Batches, st.integers(1, 50), ramps)


def test_steps_and_what_they_take_by_numbers() -> None:
    assert [RAMPED.total(steps) for steps in (0, 1, 5, 6, 8, 9, 100)] == [0, 8, 40, 56, 88, 112, 2296]
    assert [RAMPED.of_step(step) for step in (1, 5, 6, 8, 9, 100)] == [8, 8, 16, 16, 24, 24]
    assert [RAMPED.whole_steps(amount) for amount in (0, 7, 8, 39, 40, 55, 56, 87, 88, 111, 112)] == [
        *(0, 0, 1, 4, 5, 5, 6, 7, 8, 8, 9)
    ]
    assert [RAMPED.nearest_step(amount) for amount in (0, 3, 4, 43, 47, 48, 99, 100)] == [0, 0, 1, 5, 5, 6, 8, 9]
    assert [RAMPED.next_end(amount) for amount in (1, 8, 9, 41, 88, 89)] == [8, 8, 16, 56, 88, 112]
    assert [RAMPED.last_end(amount) for amount in (7, 8, 41, 88, 111)] == [0, 8, 40, 88, 88]
    assert RAMPED.times(32) == Batches(768, (RampPiece(5, 256), RampPiece(3, 512)))


def test_a_ramp_goes_up_evenly_over_its_tokens() -> None:
    # Two pieces of 48 sequences each: 6 steps of 8, and 3 of 16, of which none is cut.
    assert ramp_up(8, 8, 96 * 32, 24, 32) == (RampPiece(6, 8), RampPiece(3, 16))
    # The bound of a piece, 50 sequences, is passed within its last step: 7 steps of 8, 3 of 16 from 56 to beyond 100.
    assert ramp_up(8, 8, 100 * 32, 24, 32) == (RampPiece(7, 8), RampPiece(3, 16))
    # Pieces of 5 sequences: the second is over before the first step has ended.
    assert ramp_up(16, 16, 20 * 32, 80, 32) == (RampPiece(1, 16), RampPiece(1, 64))
    assert ramp_up(24, 8, 100, 24, 32) == ()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 6), st.integers(1, 6_000))
def test_a_step_has_the_size_due_at_the_sequences_before_it(
    start: int, increment: int, pieces: int, tokens: int
) -> None:
    size, length = start + pieces * increment, 8
    batches = Batches(size, ramp_up(start, increment, tokens, size, length))
    consumed = step = 0
    while consumed * length <= tokens + size * length:
        passed = min(pieces, consumed * length * pieces // tokens)
        step += 1
        assert batches.of_step(step) == start + passed * increment
        consumed += batches.of_step(step)
        assert batches.total(step) == consumed


@given(all_batches, st.integers(0, 5000))
def test_whole_and_nearest_steps_are_those_of_a_count(batches: Batches, amount: int) -> None:
    ends = [batches.total(steps) for steps in range(amount + 2)]
    assert batches.whole_steps(amount) == max(step for step, end in enumerate(ends) if end <= amount)
    nearest = batches.nearest_step(amount)
    assert abs(ends[nearest] - amount) == min(abs(end - amount) for end in ends)
    assert batches.last_end(amount) <= amount < batches.next_end(amount + 1)
    assert {batches.last_end(amount), batches.next_end(amount + 1)} <= set(ends) | {batches.total(amount + 2)}


@given(st.integers(1, 1000), st.integers(0, 10**9))
def test_without_a_ramp_all_is_one_product(size: int, amount: int) -> None:
    batches = Batches(size)
    assert batches.total(amount) == amount * size
    assert batches.whole_steps(amount) == amount // size
    assert batches.nearest_step(amount) == (amount + size // 2) // size


def test_a_run_counts_its_steps_and_tokens_through_the_ramp() -> None:
    # 16 sequences of 256 tokens in the end; 4, 8 and 12 over 48 sequences: 4 steps, 2 steps, 2 steps (56 sequences).
    ramp = {"start": 4, "increment": 4, "tokens": 48 * 256}
    config = config_with(training__batch_size_rampup=ramp, schedule={"peak_lr": 1e-3, "warmup": "10K"})
    assert config.batches == Batches(16, (RampPiece(4, 4), RampPiece(2, 8), RampPiece(2, 12)))
    assert config.total_steps == 8 + 247  # 1,024,000 tokens are 4,000 sequences, of which 3,944 come after the ramp
    assert config.total_tokens == (56 + 247 * 16) * 256
    assert [config.sequences_at(step) for step in (0, 1, 4, 5, 6, 8, 9)] == [0, 4, 16, 24, 32, 56, 72]
    assert [config.tokens_at(step) for step in (0, 1, 8, 255)] == [0, 4 * 256, 56 * 256, config.total_tokens]
    assert config_with(
        training={"tokens": "9 steps", "global_batch_size": 16, "batch_size_rampup": ramp}
    ).total_tokens == (72 * 256)
    assert not config_faults(config, world_size=1)


def test_places_of_marks_are_tokens_and_distances_steps() -> None:
    ramp: Ramp = RAMPED.ramp
    marks = EvalIntervalSettings(
        at=[Duration(56), Duration(2, "steps")], every=Duration(48), log_spaced="1 per decade to 112 tokens"
    )
    assert evaluation_steps(marks, 12, RAMPED.size, ramp) == (0, 1, 2, 4, 6, 8, 10, 12)
    assert evaluation_steps(EvalIntervalSettings(log_spaced="1 per decade to 112 tokens"), 12, RAMPED.size, ramp) == (
        0,
        1,
        12,
    )
    assert evaluation_steps(EvalIntervalSettings(log_spaced="1 per decade to 136 tokens"), 12, RAMPED.size, ramp) == (
        0,
        1,
        10,
        12,
    )


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"start": 16, "increment": 4, "tokens": "10K"}, "training.batch_size_rampup.start = 16: it should be below"),
    ({"start": 4, "increment": 8, "tokens": "10K"}, "increment = 8: it does not lead from 4 to"),
    ({"start": 6, "increment": 2, "tokens": "10K"}, "start = 6: every batch of the ramp should be a multiple of 4"),
]


@pytest.mark.parametrize(("ramp", "said"), FAULTS)
def test_ramps_that_lead_nowhere_are_refused(ramp: dict[str, Any], said: str) -> None:
    config = config_with(training__batch_size_rampup=ramp, schedule={"peak_lr": 1e-3})
    assert any(said in str(fault) for fault in config_faults(config, world_size=1))


def test_every_batch_size_fills_an_interleaved_pipeline() -> None:
    parallel = {"pipeline": 2, "virtual_pipeline": 2}
    config = config_with(
        training__batch_size_rampup={"start": 4, "increment": 4, "tokens": "10K"},
        parallel=parallel,
        schedule={"peak_lr": 1e-3},
    )
    shown = [str(fault).partition(":")[0] for fault in config_faults(config, world_size=2)]
    assert shown == ["1 micro batches in a step", "3 micro batches in a step"]


def test_a_schedule_in_steps_is_refused_with_its_tokens() -> None:
    config = config_with(training__batch_size_rampup={"start": 4, "increment": 4, "tokens": 48 * 256})
    [fault] = config_faults(config)
    assert str(fault) == (
        "schedule.warmup = 10 steps: with training.batch_size_rampup steps are of several sizes, and the rate follows "
        "the tokens. Give it in tokens (the first 10 steps of this run take 22528)."
    )
