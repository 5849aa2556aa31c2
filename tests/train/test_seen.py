"""What is seen of a run: trackers, traces of steps, the log, and the best checkpoint."""

import gc
import gzip
from pathlib import Path

import orjson
import pytest

from megatron_cpt.config.units import profiled_steps
from megatron_cpt.runs.records import RemainingTime, progress_line, read_records
from tests.ranks import Ranks
from tests.train.runs import records_of, train
from tests.workshop import Workshop


@pytest.mark.ci
def test_a_trace_of_chosen_steps_and_the_best_checkpoint(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = (
        "run.profile=3-4",
        "run.peak_flops=1e12",
        "run.log_interval=4 steps",
        "checkpoint.keep_last=1",
        "checkpoint.keep_best=general",
        "validation.eval_interval.every=4 steps",
    )
    one_rank.call(train, path=workshop.write_config(run), overrides=words)
    traces = sorted((run / "profile").iterdir())
    assert [path.name for path in traces] == [f"step-0000000{step}-rank-00000.json.gz" for step in (3, 4)]
    assert orjson.loads(gzip.decompress(traces[0].read_bytes()))["traceEvents"]
    log = (run / "log.txt").read_text()
    assert "MFU = " in log
    assert " ranks x 1e+12 FLOP/s)" in log
    assert "MFU 0.0%" in log
    losses = {record["step"]: record["loss"] for record in records_of(run, "validation") if record["set"] == "general"}
    best = min((4, 8, 12), key=losses.__getitem__)
    kept = [int(path.name.removeprefix("step-")) for path in sorted((run / "checkpoints").iterdir())]
    assert kept == sorted({best, 12})


@pytest.mark.parametrize(("words", "rank"), [((), 0), (("run.profile_ranks=[1]",), 1)])
def test_one_rank_writes_the_trace(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, words: tuple[str, ...], rank: int
) -> None:
    run = tmp_path / "run"
    short = ("run.profile=1", "training.tokens=4 steps", "validation={}", *words)
    two_ranks.call(train, path=workshop.write_config(run), overrides=short)
    assert [path.name for path in (run / "profile").iterdir()] == [f"step-00000001-rank-0000{rank}.json.gz"]


def collections_while_off(path: Path, overrides: tuple[str, ...]) -> list[int]:
    """Job: a run, and the generation of each collection of garbage that was made while no automatic one could be."""
    found: list[int] = []

    def note(phase: str, about: dict[str, int]) -> None:
        if phase == "start" and not gc.isenabled():
            found.append(about["generation"])

    gc.callbacks.append(note)
    train(path=path, overrides=overrides)
    assert gc.isenabled()
    return found


@pytest.mark.ci
def test_ranks_collect_garbage_after_the_same_steps(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """After steps 2, 4 and 6, each with an evaluation: the others would wait for a rank that does it at any moment."""
    words = ("training.tokens=6 steps", "validation.eval_interval={at: [2 steps, 4 steps]}")
    first, second = two_ranks.call(collections_while_off, path=workshop.write_config(tmp_path / "run"), overrides=words)
    assert first == second == [2, 2, 2]


def test_steps_to_profile() -> None:
    assert list(profiled_steps("7")) == [7]
    assert list(profiled_steps("10-12")) == [10, 11, 12]
    for text in ("", "0", "12-10", "a", "1-2-3"):
        with pytest.raises(ValueError, match="no steps"):
            profiled_steps(text)


def train_without_network(path: Path, overrides: tuple[str, ...]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        train(path=path, overrides=overrides)


def test_weights_and_biases_offline(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="optional: pip install wandb")
    run = tmp_path / "run"
    words = ("run.wandb_project=test", "training.tokens=4 steps", "validation.sets={}")
    one_rank.call(train_without_network, path=workshop.write_config(run), overrides=words)
    [written] = (run / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"lm loss" in written.read_bytes()


@pytest.mark.ci
def test_training_is_the_same_whatever_is_watched(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """Evaluations, tasks, traces and logs at every step, or none at all: no bit of training differs."""
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    short = ("training.tokens=4 steps", "model.dropout=0.1")
    everything = (
        *(
            "validation.eval_interval.every=1 steps",
            "validation.weight_updates=true",
            "validation.gradient_conflict=[general]",
        ),
        *(
            "run.log_interval=1 steps",
            "run.profile=2-3",
            "tasks.eval_interval.every=1 steps",
            "checkpoint.save_interval=1 steps",
        ),
    )
    path = workshop.write_config(watched, tasks=workshop.tasks)
    one_rank.call(train, path=path, overrides=(*short, *everything))
    path = workshop.write_config(alone, validation={"sets": {}}, checkpoint={"save_interval": None})
    one_rank.call(train, path=path, overrides=short)
    assert records_of(watched, "train") == records_of(alone, "train")


def test_the_time_left_is_that_of_the_tokens_left_at_the_pace_of_the_steps(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    """A run whose only save comes after the last step: training alone counts until then."""
    run = tmp_path / "run"
    overrides = ("run.log_interval=1 steps", "validation={}", "checkpoint={}", "training.tokens=6 steps")
    one_rank.call(train, path=workshop.write_config(run), overrides=overrides)
    log, pace, before = (run / "log.txt").read_text(), RemainingTime(), 0
    records = [record for record in read_records(run / "records.jsonl") if record["kind"] == "train"]
    for record in records:
        pace.add("tokens", record["tokens"] - before, record["seconds"])
        before = record["tokens"]
        left = pace.seconds({"tokens": records[-1]["tokens"] - before})
        assert left >= 0
        assert progress_line(record, 6, records[-1]["tokens"], left) in log
