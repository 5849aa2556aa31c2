"""A run that starts from another run's checkpoint takes what its switches say, and nothing else."""

import shutil
from pathlib import Path

import orjson
import pytest

from megatron_cpt.checkpoint.position import read_position
from megatron_cpt.config.errors import BadInput
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import Workshop

ALL_KEPT = ("start.optimizer=kept", "start.schedule=kept", "start.data=kept")


@pytest.fixture(scope="module")
def base(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with a checkpoint at 4."""
    run = tmp_path_factory.mktemp("base") / "run"
    settings = ("model.dropout=0.1", "checkpoint.keep_last=9")
    one_rank.call(train, path=workshop.write_config(run), overrides=settings)
    return run


def started(ranks: Ranks, workshop: Workshop, run: Path, base: Path, *overrides: str, step: int = 4) -> Path:
    checkpoint = base / "checkpoints" / f"step-{step:08}"
    words = ("model.dropout=0.1", f"start.checkpoint={checkpoint}", *overrides)
    ranks.call(train, path=workshop.write_config(run), overrides=words)
    return run


def test_all_kept_is_a_resume_in_another_folder(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path
) -> None:
    run = started(one_rank, workshop, tmp_path / "run", base, *ALL_KEPT)
    rest = [record for record in records_of(base) if record["step"] > 4]
    assert records_of(run) == rest
    lineage = orjson.loads((run / "lineage.json").read_bytes())
    rates = column(records_of(base, "train"), "learning_rate")
    assert lineage["parent"].endswith("step-00000004")
    assert lineage["parent_forward_area"] == pytest.approx(sum(rates[:4]))
    assert lineage["parent_final_learning_rate"] == rates[3]
    assert lineage["parent_tokens"] == 4 * 8 * 32
    assert lineage["forward_area"] == pytest.approx(sum(rates[4:]))
    assert lineage["tokens"] == 8 * 8 * 32


def test_weights_alone_begin_a_new_run(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    run = started(one_rank, workshop, tmp_path / "run", base, step=12)
    ours, theirs = records_of(run), records_of(base)
    assert column(records_of(run, "train"), "learning_rate") == column(records_of(base, "train"), "learning_rate")
    assert column(records_of(run, "train"), "source_tokens") == column(records_of(base, "train"), "source_tokens")
    # The baseline of the new run is the end of the other.
    ends = {
        record["set"]: record["loss"] for record in theirs if record["kind"] == "validation" and record["step"] == 12
    }
    starts = {
        record["set"]: record["loss"] for record in ours if record["kind"] == "validation" and record["step"] == 0
    }
    assert starts == ends


def test_the_schedule_goes_on_over_new_data(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    constant = ("schedule.kind=wsd", "schedule.decay=4 steps", "training.tokens=8 steps")
    run = started(one_rank, workshop, tmp_path / "run", base, "start.schedule=kept", *constant)
    # Steps 5 to 12 of wsd over 12: the warm-up of 3 steps is past.
    expected = [2e-3] * 4 + [2e-3 - share * (2e-3 - 1e-4) for share in (0.25, 0.5, 0.75, 1)]
    assert column(records_of(run, "train"), "learning_rate") == pytest.approx(expected)
    assert records_of(run, "train")[0]["sequences"] == 8
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    assert read_position(run / "checkpoints" / "step-00000004").schedule_shift == 4 * 8 * 32
    before = records_of(run)
    started(one_rank, workshop, run, base, "start.schedule=kept", *constant)
    assert records_of(run) == before


def test_the_data_go_on_under_a_new_schedule(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    run = started(one_rank, workshop, tmp_path / "run", base, "start.data=kept")
    ours = records_of(run, "train")
    rest = [record for record in records_of(base, "train") if record["step"] > 4]
    for name in ("step", "tokens", "sequences", "source_tokens"):
        assert column(ours, name) == column(rest, name)
    assert column(ours, "learning_rate")[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])


def test_optimizer_state_is_taken_or_left(one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path) -> None:
    losses = {
        kept: column(
            records_of(started(one_rank, workshop, tmp_path / kept, base, f"start.optimizer={kept}"), "train"), "loss"
        )
        for kept in ("kept", "fresh")
    }
    assert losses["kept"][0] == losses["fresh"][0]
    assert losses["kept"][2] != losses["fresh"][2]


def refusal(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: what a run that cannot start says."""
    with pytest.raises(BadInput) as error:
        train(path, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("start.data=kept",), "start.data = kept: there is no checkpoint"),
        (("start.checkpoint=/nowhere",), "is not a complete checkpoint"),
        (("start.checkpoint={step}", "start.data=kept", "training.global_batch_size=4"), "Set it to 8."),
        (("start.checkpoint={step}", "start.data=kept", "training.tokens=4 steps"), "stands at 1024 tokens"),
        (("start.checkpoint={step}", *ALL_KEPT, "data.replay_ratio=0.5"), "phases"),
        (("model.frozen.bottom=3", "model.frozen.top=2"), "the model has 4 layers"),
    ],
)
def test_what_cannot_be_taken_is_said(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, base: Path, overrides: tuple[str, ...], said: str
) -> None:
    words = tuple(word.format(step=base / "checkpoints" / "step-00000004") for word in overrides)
    assert said in one_rank.call(refusal, path=workshop.write_config(tmp_path / "run"), overrides=words)[0]
