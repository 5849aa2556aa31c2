"""A resumed run is the run: bit-equal losses, gradient norms and evaluations on the same layout."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.schema import OptimizerSettings
from megatron_cpt.runs.folder import ExitCode
from tests.parallel import matrix
from tests.params import quick_among
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, column, records_of, refusal, train
from tests.workshop import Workshop

# Dropout draws from the random states that a checkpoint keeps; evaluations and saves lie between.
MEASURED = ("validation.weight_updates=true", "validation.gradient_conflict=[general]")
SETTINGS = ("model.dropout=0.1", "checkpoint.keep_last=9", "checkpoint.keep_every=8 steps", *MEASURED)


def cut_back(run: Path, step: int, to: Path) -> None:
    """Copies a run as a kill after a step's checkpoint would have left it, with records beyond it."""
    shutil.copytree(run, to)
    for checkpoint in sorted((to / "checkpoints").iterdir()):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def resumes_exactly(ranks: Ranks, workshop: Workshop, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    # Written while training goes on: what is saved is the state of the step, not what became of it.
    saved = (*SETTINGS, "checkpoint.async_save=true")
    ranks.call(train, path=workshop.write_config(straight), overrides=(*saved, *overrides))
    for step in (4, 8):  # dp_reshardable and fully_reshardable
        cut_back(straight, step, resumed)
        ranks.call(train, path=workshop.write_config(resumed), overrides=(*SETTINGS, *overrides))
        assert records_of(resumed) == records_of(straight)
        assert f"resumed after step {step}" in (resumed / "log.txt").read_text()
        shutil.rmtree(resumed)


@pytest.mark.parametrize("layout", quick_among(LAYOUTS, ["data 2, distributed optimizer"], ["pipeline 2"]))
def test_two_processes_resume_exactly(two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str) -> None:
    resumes_exactly(two_ranks, workshop, tmp_path, LAYOUTS[layout])


@pytest.mark.parametrize("distributed", quick_among(["false", "true"], ["true"]))
def test_one_process_resumes_exactly(one_rank: Ranks, workshop: Workshop, tmp_path: Path, distributed: str) -> None:
    resumes_exactly(one_rank, workshop, tmp_path, (f"parallel.distributed_optimizer={distributed}",))


@pytest.mark.ci
def test_bf16_resumes_exactly(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    resumes_exactly(one_rank, workshop, tmp_path, ("training.precision=bf16",))


@pytest.mark.slow
@pytest.mark.parametrize("name", matrix.ROWS)
def test_a_resume_of_a_resume_is_the_run(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path: Path, name: str
) -> None:
    """20 steps against 7 and 13, and those 13 again cut after 14: records and weights are equal to the last bit."""
    row = matrix.ROWS[name]
    ranks: Ranks = request.getfixturevalue({1: "one_rank", 2: "two_ranks", 4: "four_ranks"}[row.ranks])
    straight, once, twice = (tmp_path / run for run in ("straight", "once", "twice"))
    overrides = (
        *(
            "training.tokens=20 steps",
            "checkpoint.save_interval=7 steps",
            "checkpoint.keep_last=9",
            "model.dropout=0.1",
        ),
        *("checkpoint.async_save=true", "checkpoint.export_hf.end=true"),
        *(*matrix.BASES[row.base], *row.overrides, f"model.hf={matrix.model_of(row, workshop)}"),
    )
    ranks.call(train, path=workshop.write_config(straight), overrides=overrides)
    for before, run, step in ((straight, once, 7), (once, twice, 14)):
        cut_back(before, step, run)
        shutil.rmtree(run / "hf")
        ranks.call(train, path=workshop.write_config(run), overrides=overrides)
        assert f"resumed after step {step}" in (run / "log.txt").read_text()
        assert records_of(run) == records_of(straight)
        files = sorted(path.name for path in (straight / "hf").glob("*.safetensors"))  # pipeline stages write their own
        assert files
        for file in files:
            assert (run / "hf" / file).read_bytes() == (straight / "hf" / file).read_bytes()


def test_a_resume_that_would_see_other_data_is_refused(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps",))
    before = records_of(tmp_path / "run")
    later = "data.phases=[{from_tokens: 0, replay_ratio: 0.3}, {from_tokens: 2 steps, replay_ratio: 0.1}]"
    for override, named in [
        ("run.seed=6", "seed: 5 before, 6 now"),
        (
            "data.replay_ratio=0.5",
            "phases.0: from_tokens 0, domain 70.00 %, general 30.00 % before, "
            "from_tokens 0, domain 50.00 %, general 50.00 % now",
        ),
        (later, "phases.1: not there before, from_tokens 512, domain 90.00 %, general 10.00 % now"),
        ("data.sequence_length=16", "sequence_length: 32 before, 16 now"),
        (
            "data.sources.general.paths=['" + workshop.prefix("general") + ".validation']",
            "general.validation in place of",
        ),
        ("training.global_batch_size=4", "its 4 steps took 32 sequences, and here they take 16"),
        ("model.frozen.bottom=2", "model.frozen: {'bottom': 0"),
        ("model.rope={max_position_embeddings: 96, rope_theta: 5000}", "rotary positions of base"),
    ]:
        for command in ("plan", "train"):  # before any rank starts
            assert main([command, str(path), override, "validation.sets={}"]) == ExitCode.BAD_INPUT
            assert named in capsys.readouterr().err
        said = one_rank.call(refusal, path=path, overrides=(override, "validation.sets={}"))[0]
        assert named in said
    assert records_of(tmp_path / "run") == before


def test_what_a_run_has_read_is_not_asked_of_data_that_are_elsewhere(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workshop.write_config(tmp_path / "run", validation={"sets": {}})
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps",))
    gone = ["data.sources.general.paths=[elsewhere]", "--assume", "general=5M"]
    assert main(["plan", str(path), *gone]) == ExitCode.DONE
    assert "whether a run that has begun read these files is checked where they are" in capsys.readouterr().out
    assert main(["plan", str(path), "run.seed=6", *gone]) == ExitCode.BAD_INPUT
    assert "seed: 5 before, 6 now" in capsys.readouterr().err


def test_a_longer_run_goes_on_where_the_shorter_ended(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    constant = ("schedule.kind=constant", "schedule.final_lr=0", "validation.eval_interval.end=false")
    whole, extended = tmp_path / "whole", tmp_path / "extended"
    one_rank.call(train, path=workshop.write_config(whole), overrides=constant)
    path = workshop.write_config(extended)
    one_rank.call(train, path=path, overrides=(*constant, "training.tokens=6 steps"))
    one_rank.call(train, path=path, overrides=constant)
    assert records_of(extended) == records_of(whole)


def test_a_longer_run_is_told_that_its_rate_jumps(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run", validation={"sets": {}})
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps",))
    one_rank.call(train, path=path, overrides=("training.tokens=6 steps",))
    # A cosine from 2e-3 at step 3 to 1e-4: its end at step 4 of 4, a third of the way at step 4 of 6.
    assert (
        "step 4 was trained at learning rate 0.0001, and would now have 0.001525"
        in (tmp_path / "run/log.txt").read_text()
    )


@pytest.mark.ci
def test_a_run_goes_on_with_an_appended_phase(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """Whether the phase was planned from the beginning or appended after step 6, the records are the same."""
    constant = ("schedule.kind=constant", "schedule.final_lr=0", "validation.eval_interval.end=false")
    phases = "data.phases=[{from_tokens: 0}, {from_tokens: 6 steps, replay_ratio: 0.75}]"
    planned, appended = tmp_path / "planned", tmp_path / "appended"
    one_rank.call(train, path=workshop.write_config(planned), overrides=(*constant, phases))
    path = workshop.write_config(appended)
    one_rank.call(train, path=path, overrides=(*constant, "training.tokens=6 steps"))
    one_rank.call(train, path=path, overrides=(*constant, phases))
    assert records_of(appended) == records_of(planned)
    given = [record["source_tokens"]["general"] for record in records_of(planned, "train")]
    assert (given[5], given[11]) == (14 * 32, 50 * 32)
    too_early = phases.replace("6 steps", "11 steps")
    said = one_rank.call(refusal, path=path, overrides=(*constant, too_early, "training.tokens=13 steps"))[0]
    assert "phases.1: from_tokens 1536, " in said and " before, from_tokens 2816, " in said


@pytest.mark.ci
def test_a_longer_run_is_told_where_a_phase_that_followed_the_rate_began(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    follows = "data.phases=[{from_tokens: 0}, {from_lr: 0.5 of peak, replay_ratio: 0.75}]"
    path = workshop.write_config(tmp_path / "run", validation={"sets": {}})
    one_rank.call(train, path=path, overrides=("training.tokens=8 steps", follows))
    said = one_rank.call(refusal, path=path, overrides=("training.tokens=16 steps", follows))[0]
    assert "Phase 1 follows the learning rate" in said
    tokens = int(said.split("write `from_tokens: ")[1].split("`")[0])
    pinned = follows.replace("from_lr: 0.5 of peak", f"from_tokens: {tokens}")
    one_rank.call(train, path=path, overrides=("training.tokens=16 steps", pinned))
    assert len(records_of(tmp_path / "run", "train")) == 16


# Over 8 steps, with a warm-up of 2.
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "infinite": (
        {"plateau_lr": 4e-4, "final_lr": 1e-4, "cooldown": "2 steps", "decay": "2 steps"},
        [5e-4, 1e-3, 7e-4, 4e-4, 4e-4, 4e-4, 2e-4, 1e-4],
    ),
    "wsd": (
        {"final_lr": 0.0, "decay": "4 steps", "decay_shape": "1-sqrt"},
        [5e-4, 1e-3, 1e-3, 1e-3, 5e-4, 2.928932e-4, 1.339746e-4, 0.0],
    ),
    "piecewise": (
        {"pieces": [{"from_tokens": "3 steps", "lr": 3e-4}, {"from_tokens": "5 steps", "lr": 1e-4}]},
        [5e-4, 1e-3, 1e-3, 3e-4, 3e-4, 1e-4, 1e-4, 1e-4],
    ),
}


@pytest.mark.parametrize("kind", quick_among(SCHEDULES, ["piecewise"]))
def test_a_schedule_goes_on_over_a_resume(one_rank: Ranks, workshop: Workshop, tmp_path: Path, kind: str) -> None:
    settings, expected = SCHEDULES[kind]
    run = tmp_path / "run"
    schedule = {"kind": kind, "peak_lr": 1e-3, "warmup": "2 steps", "final_lr": 0.0, **settings}
    path = workshop.write_config(run, schedule=schedule, validation={"sets": {}})
    overrides = ("training.tokens=8 steps", "checkpoint.keep_last=9")
    one_rank.call(train, path=path, overrides=overrides)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    one_rank.call(train, path=path, overrides=overrides)
    assert "resumed after step 4" in (run / "log.txt").read_text()
    assert column(records_of(run, "train"), "learning_rate") == pytest.approx(expected)


def equal_to_rounding(resumed: Path, straight: Path) -> None:
    """The same records but for rounding: the same data, losses within 2e-6."""
    ours, theirs = (records_of(run, "train") for run in (resumed, straight))
    assert [record["source_tokens"] for record in ours] == [record["source_tokens"] for record in theirs]
    assert column(ours, "loss") == pytest.approx(column(theirs, "loss"), abs=2e-6)
    ours, theirs = (records_of(run, "validation") for run in (resumed, straight))
    assert [(record["set"], record["step"]) for record in ours] == [
        (record["set"], record["step"]) for record in theirs
    ]
    assert column(ours, "loss") == pytest.approx(column(theirs, "loss"), abs=2e-6)


DISTRIBUTED = ("parallel.distributed_optimizer=true", "checkpoint.keep_every=4 steps")
# Ranks and settings that wrote the checkpoint, ranks and settings that go on from it.
RESHARDED: dict[str, tuple[int, tuple[str, ...], int, tuple[str, ...]]] = {
    "data 2 to 1": (2, (), 1, ()),
    "tensor 1 to 2": (1, (), 2, ("parallel.tensor=2",)),
    "pipeline 2 to tensor 2": (2, ("parallel.pipeline=2",), 2, ("parallel.tensor=2",)),
    "data 2 to 1, distributed": (2, DISTRIBUTED, 1, DISTRIBUTED),
    "tensor 1 to 2, distributed": (1, DISTRIBUTED, 2, (*DISTRIBUTED, "parallel.tensor=2")),
    "data 2 to pipeline 2, distributed": (2, DISTRIBUTED, 2, (*DISTRIBUTED, "parallel.pipeline=2")),
    "data 2 to 1, dp_reshardable": (2, DISTRIBUTED[:1], 1, DISTRIBUTED[:1]),
}


@pytest.mark.parametrize(
    "case",
    quick_among(RESHARDED, ["pipeline 2 to tensor 2"], ["data 2 to 1, distributed", "tensor 1 to 2, distributed"]),
)
def test_another_layout_goes_on_with_the_same_data_and_losses(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path, case: str
) -> None:
    ranks = {1: one_rank, 2: two_ranks}
    writers, written, readers, read = RESHARDED[case]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    shared = ("checkpoint.keep_last=9",)
    ranks[writers].call(train, path=workshop.write_config(straight), overrides=(*shared, *written))
    cut_back(straight, 4, resumed)
    ranks[readers].call(train, path=workshop.write_config(resumed), overrides=(*shared, *read))
    assert "resumed after step 4" in (resumed / "log.txt").read_text()
    equal_to_rounding(resumed, straight)


@pytest.mark.ci
def test_another_precision_goes_on_with_weights_and_moments(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    """From main weights, not from rounded ones: one process and two, which hold other parts of them, then agree."""
    written = tmp_path / "written"
    path = workshop.write_config(written, validation={"sets": {}})
    bf16, fp32 = ((*DISTRIBUTED, "checkpoint.keep_last=9", f"training.precision={name}") for name in ("bf16", "fp32"))
    two_ranks.call(train, path=path, overrides=(*bf16, "training.tokens=8 steps"))
    for ranks, run in ((one_rank, tmp_path / "one"), (two_ranks, tmp_path / "two")):
        cut_back(written, 8, run)
        ranks.call(train, path=workshop.write_config(run, validation={"sets": {}}), overrides=fp32)
    losses = [column(records_of(tmp_path / run, "train"), "loss") for run in ("one", "two")]
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)
    two_ranks.call(train, path=workshop.write_config(tmp_path / "two"), overrides=(*bf16, "training.tokens=14 steps"))
    assert len(records_of(tmp_path / "two", "train")) == 14


@pytest.mark.ci
def test_a_precision_that_the_optimizer_state_does_not_fit_is_refused(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    path = workshop.write_config(tmp_path / "run", validation={"sets": {}})
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps", "training.precision=bf16"))
    said = one_rank.call(refusal, path=path, overrides=("training.precision=fp32",))[0]
    assert "written with training.precision = bf16; this run has fp32" in said
    start = {"checkpoint": str(tmp_path / "run/checkpoints/step-00000004"), "load_optimizer": False}
    start |= {"load_schedule": True, "load_data_position": True}
    other = workshop.write_config(tmp_path / "other", validation={"sets": {}}, init_from=start)
    one_rank.call(train, path=other, overrides=("training.precision=fp32", "training.tokens=6 steps"))
    assert column(records_of(tmp_path / "other", "train"), "step") == [5, 6]


@pytest.mark.ci
def test_a_layout_that_the_optimizer_state_does_not_fit_is_refused(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run)
    distributed = "parallel.distributed_optimizer=true"
    one_rank.call(train, path=path, overrides=("training.tokens=8 steps", distributed))
    shutil.rmtree(run / "checkpoints" / "step-00000008")  # the last, which any layout could go on from
    said = two_ranks.call(refusal, path=path, overrides=(distributed, "parallel.tensor=2"))
    assert all("saved as dp_reshardable" in text and "`checkpoint.keep_every`" in text for text in said)
    said = one_rank.call(refusal, path=path, overrides=())
    assert "Go on with parallel.distributed_optimizer=true" in said[0]


def without_unread(records: list[Any]) -> list[Any]:
    """Training records without the sources that have given nothing yet."""
    return [
        record
        | {
            field: {name: value for name, value in record[field].items() if record["source_tokens"][name]}
            for field in ("source_tokens", "source_losses", "source_scored_tokens", "source_epochs")
        }
        for record in records
    ]


@pytest.mark.ci
def test_a_source_that_was_not_read_comes_and_goes(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """One of weight 0 is added and taken out, and one comes with an appended phase: all as if planned so at once."""
    constant = ("schedule.kind=constant", "schedule.final_lr=0", "validation.sets={}", "data.replay_ratio=null")
    new = f"data.sources.new={{paths: ['{workshop.prefix('general')}.validation'], weight: 0}}"
    phases = "data.phases=[{from_tokens: 0}, {from_tokens: 6 steps, weights: {new: 1}}]"
    planned, appended = tmp_path / "planned", tmp_path / "appended"
    one_rank.call(train, path=workshop.write_config(planned), overrides=(*constant, new, phases))
    path = workshop.write_config(appended)
    one_rank.call(train, path=path, overrides=(*constant, "training.tokens=3 steps"))
    one_rank.call(train, path=path, overrides=(*constant, "training.tokens=5 steps", new))
    one_rank.call(train, path=path, overrides=(*constant, "training.tokens=6 steps"))
    one_rank.call(train, path=path, overrides=(*constant, new, phases))
    assert without_unread(records_of(appended, "train")) == without_unread(records_of(planned, "train"))
    assert records_of(appended, "train")[-1]["source_tokens"]["new"] > 0


# What each field of `optimizer` is changed to at a resume: it changes the next update, or is refused by these words.
CHANGED_OPTIMIZER = {
    "beta1": ("0.5", None),
    "beta2": ("0.5", None),
    "epsilon": ("1e-3", None),
    "weight_decay": ("5", None),
    "clip_grad": ("0.05", None),
    "no_weight_decay": ("[]", "optimizer.no_weight_decay"),
    "lr_multipliers": ("{embedding: 0.5}", "optimizer.lr_multipliers"),
    "moment_warmup_steps": ("2", "optimizer.moment_warmup_steps"),
}


@pytest.mark.ci
@pytest.mark.parametrize("distributed", quick_among(["false", "true"], ["true"]))
def test_every_optimizer_setting_changed_at_a_resume_counts_or_is_refused(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, distributed: str
) -> None:
    assert set(CHANGED_OPTIMIZER) == {field.name for field in fields(OptimizerSettings)}
    before, settings = tmp_path / "before", (f"parallel.distributed_optimizer={distributed}", "validation.sets={}")
    shared = (*settings, "training.tokens=6 steps")
    one_rank.call(train, path=workshop.write_config(before), overrides=(*shared, "checkpoint.keep_last=9"))
    results = {}
    for name, (value, refused) in {"nothing": ("", None), **CHANGED_OPTIMIZER}.items():
        run = tmp_path / name
        cut_back(before, 4, run)
        words = (*shared, *([f"optimizer.{name}={value}"] if value else []))
        if refused is None:
            one_rank.call(train, path=workshop.write_config(run), overrides=words)
            results[name] = column(records_of(run, "train"), "loss")
        else:
            assert refused in one_rank.call(refusal, path=workshop.write_config(run), overrides=words)[0]
    same = results.pop("nothing")
    for name, losses in results.items():
        assert losses[:5] == same[:5], name  # the loss of step 5 is of the weights that were loaded
        assert losses[5] != same[5], name


@pytest.mark.ci
def test_optimizer_state_that_is_kept_is_used_with_the_new_settings(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    short = ("validation.sets={}", "training.tokens=4 steps")
    one_rank.call(train, path=workshop.write_config(base), overrides=short)
    taken = (*short, f"init_from.checkpoint={base / 'checkpoints/step-00000004'}", "init_from.load_optimizer=true")
    losses = {}
    for name in ("0.95", "0.5"):
        path = workshop.write_config(tmp_path / name)
        one_rank.call(train, path=path, overrides=(*taken, f"optimizer.beta2={name}"))
        losses[name] = column(records_of(tmp_path / name, "train"), "loss")
    assert losses["0.95"][0] == losses["0.5"][0]
    assert losses["0.95"][1] != losses["0.5"][1]


# The others are parts or mixtures of these.
RESUMED = "data 3, several, of 65536; dp_reshardable"
RESUMED_IN_CI = (
    "data 2, one a parameter; dp_reshardable",
    "data 3, several, bf16; fully_reshardable; data 2, several, bf16",
)


@pytest.mark.parametrize("name", quick_among(matrix.RESUMES, [RESUMED], RESUMED_IN_CI))
def test_a_resume_with_padded_buckets(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    chosen = matrix.RESUMES[name]
    pools = {size: f"{word}_ranks" for size, word in {2: "two", 3: "three", 4: "four"}.items()} | {1: "one_rank"}
    writers, readers = (request.getfixturevalue(pools[row.ranks]) for row in (chosen.written, chosen.read))
    uncut = tmp_path_factory.mktemp("uncut") / "run"
    matrix.run_uncut(writers, workshop, uncut, chosen.written)
    found = matrix.resumed_difference(readers, workshop, uncut, uncut.parent / "resumed", chosen)
    assert found <= chosen.bound
