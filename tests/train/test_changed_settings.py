"""What a start changes of a run is told and kept, or refused; nothing changes in silence."""

import shutil
from pathlib import Path

import orjson
import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from megatron_cpt.runs.folder import ExitCode, read_status
from tests.ranks import Ranks
from tests.train.runs import records_of, refusal, train
from tests.train.test_resume import cut_back
from tests.workshop import SEQUENCE_LENGTH, Workshop

KEPT = ("checkpoint.keep_last=9",)


@pytest.fixture(scope="module")
def done(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps with all its checkpoints."""
    run = tmp_path_factory.mktemp("done") / "run"
    one_rank.call(train, path=workshop.write_config(run), overrides=KEPT)
    return run


def told(run: Path) -> list[tuple[int, str, object, object]]:
    """The changes that the records tell of."""
    events = [record for record in records_of(run, "event") if record["event"] == "setting_changed"]
    return [(event["step"], event["key"], event["before"], event["now"]) for event in events]


@pytest.mark.ci
def test_a_run_shorter_than_its_checkpoint_is_refused(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    cut_back(done, 8, run)
    path = workshop.write_config(run)
    shorter = ("training.tokens=6 steps", "checkpoint.export_hf={end: true}")
    before = records_of(run)
    said = one_rank.call(refusal, path=path, overrides=shorter)[0]
    assert "the run ends after step 6, and" in said
    assert "step-00000008 has done 8" in said
    for command in ("plan", "train"):
        assert main([command, str(path), *shorter]) == ExitCode.BAD_INPUT
        assert "the run ends after step 6" in capsys.readouterr().err
    assert records_of(run) == before
    assert not (run / "hf").exists()
    assert one_rank.call(train, path=path, overrides=KEPT) == [ExitCode.DONE]


@pytest.mark.parametrize(
    ("field", "value", "differs"),
    [("num_attention_heads", 8, "heads"), ("rms_norm_eps", 0.1, "norm_epsilon"), ("num_hidden_layers", 1, "layers")],
)
def test_another_model_in_the_same_folder_is_refused(
    workshop: Workshop,
    tmp_path: Path,
    done: Path,
    capsys: pytest.CaptureFixture[str],
    field: str,
    value: float,
    differs: str,
) -> None:
    """Its weights may have the same shapes: nothing else would tell."""
    run, model = tmp_path / "run", tmp_path / "model"
    cut_back(done, 8, run)
    shutil.copytree(workshop.hf, model)
    shape = orjson.loads((model / "config.json").read_bytes())
    if field == "num_attention_heads":
        shape |= {"head_dim": shape["hidden_size"] // value, "num_key_value_heads": 4}
    (model / "config.json").write_bytes(orjson.dumps(shape | {field: value}))
    path = workshop.write_config(run)
    for command in ("plan", "train"):
        assert main([command, str(path), *KEPT, f"model.hf={model}"]) == ExitCode.BAD_INPUT
        said = capsys.readouterr().err
        assert f"model.hf = {model}: is of another model than the run began with: they differ in " in said
        assert differs in said


def test_a_run_that_an_exhausted_source_ends_before_its_checkpoint_is_refused(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, done: Path
) -> None:
    """The tokens asked for are enough, those that there are are not."""
    ends = ("data.when_exhausted=stop", "data.sources.general.max_epochs=0.02")
    run = tmp_path / "run"
    cut_back(done, 8, run)
    said = one_rank.call(refusal, path=workshop.write_config(run), overrides=ends)[0]
    assert "step-00000008 has done 8" in said
    taken = (f"init_from.checkpoint={done / 'checkpoints/step-00000008'}", "init_from.load_data_position=true", *ends)
    said = one_rank.call(refusal, path=workshop.write_config(tmp_path / "new"), overrides=taken)[0]
    assert f"stands at {8 * 8 * SEQUENCE_LENGTH} tokens" in said


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("schedule.peak_lr=0.02", "schedule.peak_lr: 0.002 before, 0.02 now"),
        ("optimizer.weight_decay=0.2", "optimizer.weight_decay: 0.1 before, 0.2 now"),
        ("model.dropout=0.1", "model.dropout: 0.0 before, 0.1 now"),
        ("validation.sets.more={paths: [x]}", ""),
        ("data.when_exhausted=stop", "data.when_exhausted: error before, stop now"),
    ],
)
def test_a_finished_run_is_not_given_other_settings(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, done: Path, override: str, key: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run)
    files = ("config.yaml", "plan.json", "lineage.json", "records.jsonl", "log.txt")
    before = {name: (run / name).read_bytes() for name in files}
    override = override.replace("[x]", f"['{workshop.prefix('domain')}.validation']")
    said = one_rank.call(refusal, path=workshop.write_config(run), overrides=(*KEPT, override))[0]
    assert key in said
    assert "done with another configuration" in said
    assert {name: (run / name).read_bytes() for name in files} == before


def own_lines(run: Path) -> str:
    """The log without the warnings of libraries."""
    return "\n".join(line for line in (run / "log.txt").read_text().splitlines() if " warns: " not in line)


def test_lengths_that_are_written_in_another_unit_are_no_change(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run)
    path = workshop.write_config(run)
    step = 8 * SEQUENCE_LENGTH
    in_tokens = (
        *(f"training.tokens={12 * step}", f"schedule.warmup={3 * step}", f"checkpoint.save_interval={4 * step}"),
        f"validation.eval_interval.at=[{5 * step}]",
    )
    for words in (in_tokens, (f"training.tokens={12 * step + 1}",)):
        assert main(["plan", str(path), *KEPT, *words]) == ExitCode.DONE
        assert "Changes" not in capsys.readouterr().out
    assert one_rank.call(train, path=path, overrides=(*KEPT, *in_tokens)) == [ExitCode.DONE]
    assert told(run) == [] and "changed" not in own_lines(run)
    assert main(["plan", str(path), *KEPT, f"schedule.warmup={3 * step + 1}"]) == ExitCode.BAD_INPUT
    assert f"schedule.warmup: 3 steps before, {3 * step + 1} now" in capsys.readouterr().err


def test_the_command_keeps_what_a_finished_run_says_of_itself(
    workshop: Workshop, tmp_path: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run)
    path = workshop.write_config(run)
    assert main(["train", str(path), *KEPT, "schedule.peak_lr=0.02"]) == ExitCode.BAD_INPUT
    assert "schedule.peak_lr: 0.002 before, 0.02 now" in capsys.readouterr().err
    status = read_status(run / "status.json")
    assert status is not None
    assert (status.state, status.exit_code, status.step) == ("done", 0, 12)
    assert yaml.safe_load((run / "config.yaml").read_text())["schedule"]["peak_lr"] == 2e-3


def test_a_finished_run_may_still_be_exported(one_rank: Ranks, workshop: Workshop, tmp_path: Path, done: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(done, run)
    wanted = (*KEPT, "checkpoint.export_hf={end: true}", "training.micro_batch_size=4")
    assert one_rank.call(train, path=workshop.write_config(run), overrides=wanted) == [ExitCode.DONE]
    assert (run / "hf" / "model.safetensors").exists()
    assert told(run) == []  # no step was made with it
    assert "checkpoint.export_hf: not set before, {" in (run / "log.txt").read_text()


@pytest.mark.ci
def test_every_changed_setting_is_told_and_every_configuration_kept(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    cut_back(done, 4, run)
    path = workshop.write_config(run)
    no_marks = "validation.sets.general.eval_interval={at: []}"
    changed = (*KEPT, "optimizer.weight_decay=0.2", "training.z_loss=1e-4", no_marks)
    assert main(["plan", str(path), *changed]) == ExitCode.DONE
    assert "changed from step 5 on: optimizer.weight_decay: 0.1 before, 0.2 now" in capsys.readouterr().out
    assert main(["plan", str(path), *KEPT, "base_history={tokens: 5B}"]) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "changed for all steps, those done too (lineage.json tells it anew): base_history: not set before, {" in said
    one_rank.call(train, path=path, overrides=(*changed, "stop.after=1s"))  # saves after step 5, at the earliest
    shutil.rmtree(run / "checkpoints")
    cut_back(done, 4, tmp_path / "again")
    shutil.move(tmp_path / "again" / "checkpoints", run / "checkpoints")
    # From the same checkpoint once more: what was tried and is done again leaves no trace.
    one_rank.call(train, path=path, overrides=changed)
    assert told(run)[:2] == [(5, "training.z_loss", 0.0, 1e-4), (5, "optimizer.weight_decay", 0.1, 0.2)]
    assert [change[1] for change in told(run)[2:]] == ["validation.sets.general.eval_interval"]
    line = "changed from step 5 on: training.z_loss: 0.0 before, 0.0001 now"
    assert line in (run / "log.txt").read_text()
    configs = {step: yaml.safe_load((run / f"config.step-{step:08}.yaml").read_text()) for step in (0, 4)}
    assert [configs[step]["optimizer"]["weight_decay"] for step in (0, 4)] == [0.1, 0.2]
    assert yaml.safe_load((run / "config.yaml").read_text()) == configs[4]
    # Back to the step before, with the settings of then: nothing is changed.
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    one_rank.call(train, path=path, overrides=KEPT)
    assert told(run) == []
    assert sorted(item.name for item in run.glob("config.step-*")) == ["config.step-00000000.yaml"]
    assert records_of(run) == records_of(done)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.attention=within_documents", "data.attention: across_documents before, within_documents now"),
        ("data.loss_mask.eod=false", "data.loss_mask.eod: true before, false now"),
        ("data.loss_mask.ignored_token_ids=[7]", "data.loss_mask.ignored_token_ids"),
        ("validation.sets.general.tokens=64", "validation.sets.general: it is no longer what was measured before"),
        ("validation.sets.general.paths=['{domain}']", "validation.sets.general: it is no longer"),
        ("tasks.files.questions.num_fewshot=1", "task first: it is no longer what was measured before"),
        ("init_from.load_schedule=true", "init_from.load_schedule"),
        ("model.weights=random", "model.weights: hf before, random now: it counts where a run begins"),
        (
            "optimizer.moment_warmup_steps=2",
            "optimizer.moment_warmup_steps: 0 before, 2 now: it counts where a run begins",
        ),
    ],
)
def test_what_losses_mean_and_how_a_run_began_is_not_changed(
    one_rank: Ranks,
    workshop: Workshop,
    tmp_path: Path,
    measured: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    said: str,
) -> None:
    run = tmp_path / "run"
    cut_back(measured, 4, run)
    path = workshop.write_config(run, tasks=workshop.tasks)
    word = override.replace("{domain}", f"{workshop.prefix('domain')}.validation")
    assert main(["plan", str(path), *KEPT, word]) == ExitCode.BAD_INPUT
    assert said in capsys.readouterr().err
    assert said in one_rank.call(refusal, path=path, overrides=(*KEPT, word))[0]
    assert records_of(run) == records_of(measured)


@pytest.fixture(scope="module")
def measured(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that scores tasks too, after 8 steps."""
    run = tmp_path_factory.mktemp("measured") / "run"
    path = workshop.write_config(run, tasks=workshop.tasks)
    one_rank.call(train, path=path, overrides=(*KEPT, "training.tokens=8 steps"))
    return run


@pytest.mark.ci
def test_weight_updates_are_not_measured_from_another_folders_weights(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    path = workshop.write_config(run, validation={"weight_updates": True})
    one_rank.call(train, path=path, overrides=(*KEPT, "training.tokens=4 steps"))
    shutil.copytree(workshop.hf, other)
    said = one_rank.call(refusal, path=path, overrides=(*KEPT, f"model.hf={other}"))[0]
    assert f"model.hf: {workshop.hf} before, {other} now: validation.weight_updates measures from its weights" in said
    moved = (*KEPT, f"model.hf={other}", "validation.weight_updates=false")
    assert one_rank.call(train, path=path, overrides=moved) == [ExitCode.DONE]
    for folder in (run, run / "checkpoints/step-00000012/hf"):  # the weights came from where they came from
        assert orjson.loads((folder / "lineage.json").read_bytes())["parent"] == str(workshop.hf)


@pytest.mark.ci
def test_the_report_shows_where_a_set_was_changed(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, done: Path
) -> None:
    run = tmp_path / "run"
    cut_back(done, 8, run)
    path = workshop.write_config(run)
    changed = (
        *KEPT,
        "run.allow_loss_changes=true",
        "data.loss_mask.eod=false",
        "validation.eval_interval.at=[5 steps, 10 steps]",
    )
    one_rank.call(train, path=path, overrides=changed)
    events = {(record["step"], record.get("name")) for record in records_of(run, "event")}
    assert {(9, "validation.sets.general"), (9, "validation.sets.domain")} < events
    assert (9, "data.loss_mask.eod", True, False) in told(run)
    assert main(["report", str(run)]) == ExitCode.DONE
    gap = orjson.loads((run / "gap.json").read_bytes())["runs"][0]["sets"]["general"]
    before = orjson.loads(report_of(done, tmp_path / "whole"))["runs"][0]["sets"]["general"]
    assert gap["baseline"] == before["baseline"]
    assert (gap["final_tokens"], gap["changed_tokens"]) == (5 * 8 * 32, 10 * 8 * 32)
    assert before["changed_tokens"] is None
    assert "other sequences or labels from 2.56K tokens on" in (run / "report.html").read_text()


def report_of(run: Path, output: Path) -> bytes:
    """gap.json of a run."""
    assert main(["report", str(run), "--output", str(output)]) == ExitCode.DONE
    return (output / "gap.json").read_bytes()
