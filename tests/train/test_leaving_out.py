"""Loss spikes and gradients that are not finite: skipped, rewound over, or the end, as set."""

from pathlib import Path

import pytest

from megatron_cpt.runs.checkpoint_state import read_state
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, column, records_of, train
from tests.train.test_numerics import train_with_nan
from tests.workshop import Workshop

# A rate at which the loss of the workshop's model jumps, as at step 6; a little above the last two is a spike.
SPIKES = (
    *("training.spike_window=2", "training.spike_sigmas=0.5", "checkpoint.save_interval=2 steps"),
    *("schedule.peak_lr=0.1", "schedule.kind=constant", "schedule.final_lr=0"),
)


@pytest.mark.ci
@pytest.mark.parametrize("layout", ["tensor 2", "data 2, distributed optimizer"])
def test_rewind_goes_back_and_leaves_the_sequences_out(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str
) -> None:
    run = tmp_path / "run"
    overrides = (*LAYOUTS[layout], "training.on_nonfinite=rewind", "model.dropout=0.1", "checkpoint.keep_last=9")
    path = workshop.write_config(run)
    results = two_ranks.call(train_with_nan, path=path, overrides=overrides, steps=(7,), rank=1)
    assert [ended for ended, _, _ in results] == ["done", "done"]
    [event] = records_of(run, "event")
    assert (event["event"], event["step"], event["to_step"]) == ("rewound_not_finite", 7, 4)
    assert event["left_out_sequences"] == [32, 56]
    assert column(records_of(run, "train"), "step") == [1, 2, 3, 4, 8, 9, 10, 11, 12]
    assert 5 not in column(records_of(run, "validation"), "step")  # that of the weights that are gone
    position = read_state(run / "checkpoints" / "step-00000007")
    assert (position.sequences, position.skipped_ranges, position.skipped_in_a_row) == (56, [[32, 56]], 1)
    assert read_state(run / "checkpoints" / "step-00000012").skipped_ranges == [[32, 56]]
    # The weights of step 4, then the sequences from 56 on: the next start does the same.
    records = records_of(run)
    for step in ("08", "12"):
        for file in sorted((run / "checkpoints" / f"step-000000{step}").rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        (run / "checkpoints" / f"step-000000{step}").rmdir()
    two_ranks.call(train, path=path, overrides=overrides)
    assert records_of(run) == records


def test_without_a_checkpoint_there_is_nothing_to_rewind_to(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    path = workshop.write_config(tmp_path / "run")
    overrides = ("training.on_nonfinite=rewind",)
    [(ended, before, after)] = one_rank.call(train_with_nan, path=path, overrides=overrides, steps=(1,), rank=0)
    assert "there is no checkpoint to go back to" in ended
    assert before == after


@pytest.mark.ci
def test_a_spike_is_left_out_before_its_update_and_a_resume_judges_alike(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    overrides = (*SPIKES, "training.on_spike=skip")
    one_rank.call(train, path=workshop.write_config(whole), overrides=overrides)
    events = records_of(whole, "event")
    assert events, "no loss of this run was a spike"
    assert set(column(events, "event")) == {"skipped_spike"}
    assert not set(column(events, "step")) & set(column(records_of(whole, "train"), "step"))
    path = workshop.write_config(pieces)
    one_rank.call(
        train, path=path, overrides=(*overrides, "training.tokens=6 steps", "validation.eval_interval.end=false")
    )
    one_rank.call(train, path=path, overrides=overrides)
    measured = [record for record in records_of(pieces, "train", "event") if record.get("event") != "setting_changed"]
    assert measured == records_of(whole, "train", "event")


def test_spikes_may_end_the_run(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    overrides = (*SPIKES, "training.on_spike=stop")
    [(ended, _, _)] = one_rank.call(train_with_nan, path=path, overrides=overrides, steps=(), rank=0)
    assert "a spike" in ended
