"""Steps that grow at the beginning of a run: the same sequences in the same order, counted and resumed exactly."""

import shutil
from pathlib import Path

import pytest
import torch

from megatron_cpt.config.load import load_config
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.units import RampPiece
from megatron_cpt.data.loader import Slots, TrainingData
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.checkpoint_state import read_state
from tests.ranks import Ranks
from tests.train.runs import column, records_of, refusal, train
from tests.train.test_numerics import train_with_nan
from tests.train.test_resume import cut_back
from tests.workshop import SEQUENCE_LENGTH, Workshop

# Global batches of 2, 4 and 6 sequences over 24, then of 8: 4 steps, 2 steps, 2 steps (to 28 sequences), 8 from there.
RAMP = (
    *("training.batch_size_rampup={start: 2, increment: 2, tokens: 768}", "training.micro_batch_size=1"),
    *("schedule.warmup=300", "model.dropout=0.1", "checkpoint.keep_last=9"),
)
CONSUMED = [2, 4, 6, 8, 12, 16, 22, 28, 36, 44, 52, 60]


def test_the_order_is_that_of_a_run_without_a_ramp(workshop: Workshop, tmp_path: Path) -> None:
    config = load_config(workshop.write_config(tmp_path / "run"), RAMP)
    assert config.batches.ramp == (RampPiece(4, 2), RampPiece(2, 4), RampPiece(2, 6))
    plan = make_plan(config)
    read = []
    for rank in range(2):
        slots = Slots(config.training.global_batch_size, 1, rank, 2)
        streams = [plan.inputs.sources[name] for name in plan.blend.sources]
        data = TrainingData(
            plan.blend.order, streams, slots, SEQUENCE_LENGTH, config.run.seed, ramp=config.batches.ramp
        )
        read.append([[*data.global_batch(first, torch.device("cpu"))] for first in [0, *CONSUMED[:-1]]])
    assert [len(batches) for batches in read[0]] == [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    steady = TrainingData(plan.blend.order, streams, Slots(60, 60, 0, 1), SEQUENCE_LENGTH, config.run.seed)
    [together] = steady.global_batch(0, torch.device("cpu"))
    texts = sorted(
        batch.tokens[row].tolist()
        for rank in read
        for step in rank
        for batch in step
        for row in range(len(batch.tokens))
    )
    assert texts == sorted(together.tokens.tolist())


@pytest.mark.ci
def test_records_count_what_was_read(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run)
    one_rank.call(train, path=path, overrides=RAMP)
    config = load_config(path, RAMP)
    records = records_of(run, "train")
    assert column(records, "sequences") == CONSUMED
    assert column(records, "tokens") == [SEQUENCE_LENGTH * sequences for sequences in CONSUMED]
    for record, before in zip(records, [0, *CONSUMED], strict=False):
        assert sum(record["source_tokens"].values()) == record["tokens"]
        assert sum(record["source_scored_tokens"].values()) == record["tokens"] - SEQUENCE_LENGTH * before
        assert record["learning_rate"] == learning_rate(config.schedule, record["tokens"], 1920, 256)
    assert records[-1]["learning_rate"] == 1e-4
    position = read_state(run / "checkpoints" / "step-00000008")
    assert (position.sequences, position.tokens) == (28, 28 * SEQUENCE_LENGTH)
    assert sum(position.source_sequences.values()) == 28


@pytest.mark.ci
@pytest.mark.parametrize(
    "layout",
    [pytest.param((), id="data 2"), pytest.param(("parallel.tensor=2",), id="tensor 2", marks=pytest.mark.slow)],
)
def test_a_resume_in_the_ramp_is_exact(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: tuple[str, ...]
) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    overrides = (*RAMP, *layout, "checkpoint.save_interval=3 steps")
    two_ranks.call(train, path=workshop.write_config(straight), overrides=overrides)
    for step in (3, 6):  # within a piece, and at the end of one
        cut_back(straight, step, resumed)
        two_ranks.call(train, path=workshop.write_config(resumed), overrides=overrides)
        assert records_of(resumed) == records_of(straight)
        assert f"resumed after step {step}" in (resumed / "log.txt").read_text()
        shutil.rmtree(resumed)


def test_a_resume_with_other_batches_is_refused(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=(*RAMP, "training.tokens=8 steps"))
    before = records_of(tmp_path / "run")
    [said] = one_rank.call(refusal, path=path, overrides=("training.micro_batch_size=1",))
    assert "8 steps took 28 sequences, and here they take 64" in said
    other = (*RAMP, "training.batch_size_rampup.tokens=1536")
    [said] = one_rank.call(refusal, path=path, overrides=other)
    assert "8 steps took 28 sequences, and here they take 16" in said
    assert records_of(tmp_path / "run") == before


@pytest.mark.ci
def test_rewinds_leave_out_what_the_ramp_took(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run)
    overrides = (*RAMP, "training.on_nonfinite=rewind")
    # The hook counts 8 micro batches a step: its step 2 is micro batches 9 to 16, those of steps 5 and 6.
    [(ended, _, _)] = one_rank.call(train_with_nan, path=path, overrides=overrides, steps=(2,), rank=0)
    assert ended == "done"
    events = records_of(run, "event")
    assert column(events, "to_step") == [4, 5]
    assert column(events, "left_out_sequences") == [[8, 12], [12, 16]]
    assert column(records_of(run, "train"), "sequences") == [2, 4, 6, 8, 22, 28, 36, 44, 52, 60]
    assert read_state(run / "checkpoints" / "step-00000012").skipped_ranges == [[8, 16]]


def test_a_larger_global_batch_follows_by_a_ramp(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """The refusal of another batch size names the ramp with which a run goes on in larger steps, and that works."""
    run = tmp_path / "run"
    path = workshop.write_config(run, validation={"sets": {}}, schedule={"warmup": 300})
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps", "optimizer.weight_decay=0"))
    longer = ("training.tokens=8 steps", "training.global_batch_size=12", "optimizer.weight_decay=0")
    said = one_rank.call(refusal, path=path, overrides=longer)[0]
    assert "its 4 steps took 32 sequences, and here they take 48" in said
    assert "Set it to 8. Or, for 12 a step from there on, set" in said
    ramp = said.split("`training.batch_size_rampup: ")[1].split("`")[0]
    one_rank.call(train, path=path, overrides=(*longer, f"training.batch_size_rampup={ramp}"))
    assert column(records_of(run, "train"), "sequences") == [8, 16, 24, 32, 44, 56, 68, 80]


def test_a_ramp_that_was_taken_out_is_named(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """Also where its steps took as many sequences as steps of one size might have."""
    path = workshop.write_config(tmp_path / "run", validation={"sets": {}}, schedule={"warmup": 300})
    ramp = "training.batch_size_rampup={start: 4, increment: 4, tokens: 256}"  # 2 steps of 4, then of 8: 24 after 4
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps", ramp))
    said = one_rank.call(refusal, path=path, overrides=("training.tokens=8 steps",))[0]
    assert "Set `training.batch_size_rampup: {start: 4, increment: 4, tokens: 256}`, as it was." in said
    assert "Set it to" not in said
