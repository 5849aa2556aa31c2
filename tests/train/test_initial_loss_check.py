"""Before the first update the loss is transformers' own, or the run is refused."""

import os
import re
from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from megatron_cpt.checkpoint import convert, hf_weights
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput, NumericsFault
from megatron_cpt.families.shape import read_shape
from megatron_cpt.runs.folder import ExitCode
from megatron_cpt.train import initial_loss_check
from tests.checkpoint.hf_models import all_tensors
from tests.families.folders import DIVIDED
from tests.parallel.matrix import family_folder
from tests.params import quick_among
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, refusal, train
from tests.workshop import VOCABULARY, Workshop, write_model, write_tokenizer_of

ONE_STEP = (
    "training.tokens=1 steps",
    "schedule.kind=constant",
    "schedule.warmup=null",
    "checkpoint.save_interval=1 steps",
    "validation.sets={}",
)


@pytest.mark.parametrize("layout", ["tensor 2", "pipeline 2", "data 2"])
def test_both_losses_stand_in_the_run(two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str) -> None:
    run = tmp_path / "run"
    two_ranks.call(train, path=workshop.write_config(run), overrides=(*ONE_STEP, *LAYOUTS[layout]))
    found = orjson.loads((run / "initial_loss_check.json").read_bytes())
    assert len(found["losses"]) == 8
    # Random weights, but not tiny ones: no sequence has the loss of another.
    assert len({round(loss, 4) for loss in found["losses"]}) == 8
    assert found["ours"] == pytest.approx(found["losses"], abs=1e-5)
    assert "initial loss check: 8 sequences" in (run / "log.txt").read_text()


# A family each whose layers, positions or tables are like no other's.
QUICK = ("phi3_long", "smollm3", "qwen2_moe", "olmo3")


@pytest.mark.parametrize("kind", quick_among(DIVIDED, QUICK))
def test_a_run_of_each_family_starts_as_transformers_model_does(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, kind: str
) -> None:
    run, folder = tmp_path / "run", family_folder(workshop, kind)
    path = workshop.write_config(run, model={"hf": str(folder)}, checkpoint={"export_hf": {"end": True}})
    one_rank.call(train, path=path, overrides=ONE_STEP)
    found = orjson.loads((run / "initial_loss_check.json").read_bytes())
    assert found["ours"] == pytest.approx(found["losses"], abs=1e-5)
    assert len({round(loss, 4) for loss in found["losses"]}) == 8
    assert read_shape(run / "hf") == read_shape(folder)
    assert all_tensors(run / "hf").keys() == all_tensors(folder).keys()


def test_sequences_one_token_beyond_the_original_positions(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """Angles depend on the length that is read, 17 tokens; losses are of 16."""
    run, folder = tmp_path / "run", family_folder(workshop, "phi3_long")
    path = workshop.write_config(run, model={"hf": str(folder)})
    one_rank.call(train, path=path, overrides=(*ONE_STEP, "data.sequence_length=17"))
    found = orjson.loads((run / "initial_loss_check.json").read_bytes())
    assert found["ours"] == pytest.approx(found["losses"], abs=1e-5)


def train_a_spoiled_model(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: a conversion that swaps two matrices of one size; what the run says."""
    fill = hf_weights.fill

    def spoil(parameter: torch.Tensor, rule: hf_weights.Rule, *rest: object) -> None:
        fill(parameter, rule, *rest)
        if rule.names[0].endswith("linear_proj.weight"):
            parameter.copy_(parameter.flip(0))

    hf_weights.fill = spoil
    try:
        train(path, overrides)
        return "trained"
    except NumericsFault as fault:
        return str(fault)
    finally:
        hf_weights.fill = fill


def test_a_model_that_is_converted_wrongly_is_refused(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    for said in two_ranks.call(train_a_spoiled_model, path=path, overrides=ONE_STEP):
        assert "before the first update this is not the model" in said
    assert not (tmp_path / "run/initial_loss_check.json").exists()
    assert not list((tmp_path / "run/checkpoints").iterdir())


def train_without_room(path: Path, overrides: tuple[str, ...]) -> str | None:
    """Job: a run on a machine whose memory transformers' model does not fit; what a refusal says."""
    headroom = convert.HEADROOM
    convert.HEADROOM = 1e9
    try:
        train(path, overrides)
        return None
    except BadInput as fault:
        return str(fault)
    finally:
        convert.HEADROOM = headroom


@pytest.mark.ci
def test_a_model_that_does_not_fit_is_compared_with_a_recording(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    run, recording = tmp_path / "run", tmp_path / "recorded.json"
    path = workshop.write_config(run)
    [refused] = one_rank.call(train_without_room, path=path, overrides=ONE_STEP)
    assert refused is None
    assert "initial loss check: NOT MADE" in (run / "log.txt").read_text()
    assert not (run / "initial_loss_check.json").exists()

    assert main(["convert", "record-reference", str(path), str(recording), *ONE_STEP]) == 0
    other = workshop.write_config(tmp_path / "other")
    named = (*ONE_STEP, f"model.initial_loss_check.reference_file={recording}")
    assert one_rank.call(train_without_room, path=other, overrides=named) == [None]
    assert "(tolerance 0.001)" in (tmp_path / "other/log.txt").read_text()

    elsewhere = workshop.write_config(tmp_path / "elsewhere")
    [refused] = one_rank.call(train_without_room, path=elsewhere, overrides=(*named, "run.seed=6"))
    assert refused is not None
    assert "is not a recording of the first sequences" in refused


@pytest.mark.ci
def test_a_reference_that_would_take_too_long_is_skipped_and_said_beforehand(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=ONE_STEP)
    log = (tmp_path / "run/log.txt").read_text()
    # All of them, though a rank has one thread.
    cores = f"on {len(os.sched_getaffinity(0))} cores, after read"
    assert re.search(rf"transformers computes 8 sequences of 31 tokens on rank 0: about \d+ s {cores}", log)
    path = workshop.write_config(tmp_path / "slow")
    [said] = one_rank.call(train_on_a_slow_machine, path=path, overrides=ONE_STEP)
    assert said is None
    log = (tmp_path / "slow/log.txt").read_text()
    assert re.search(r"NOT MADE: transformers would take about \d+ min on \d+ cores of rank 0's machine, and half", log)


def train_on_a_slow_machine(path: Path, overrides: tuple[str, ...]) -> str | None:
    """Job: a run whose processor is taken to be slow; what a refusal says."""
    initial_loss_check._PASSES, before = 10**9, initial_loss_check._PASSES
    try:
        train(path, overrides)
        return None
    except BadInput as fault:
        return str(fault)
    finally:
        initial_loss_check._PASSES = before


def test_another_weight_is_another_model(workshop: Workshop, tmp_path: Path) -> None:
    write_model(tmp_path / "hf")
    write_tokenizer_of(workshop, tmp_path / "hf")
    path = workshop.write_config(tmp_path / "run", model={"hf": str(tmp_path / "hf")})
    prints = []
    for change in (0.0, 1.0):
        weights = load_file(tmp_path / "hf/model.safetensors")
        weights["model.norm.weight"][0] += change
        save_file(weights, tmp_path / "hf/model.safetensors", metadata={"format": "pt"})
        recorded = tmp_path / f"recorded-{change:g}.json"
        assert main(["convert", "record-reference", str(path), str(recorded), *ONE_STEP]) == 0
        prints.append(orjson.loads(recorded.read_bytes())["model"])
    assert prints[0] != prints[1]


@pytest.mark.ci
def test_a_tokenizer_may_have_ids_without_rows_until_they_are_in_the_data(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Gemma 3 1B and CodeLlama 34B are published."""
    folder, text = tmp_path / "hf", tmp_path / "text.jsonl"
    write_model(folder)
    write_tokenizer_of(workshop, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<image>"])
    assert tokenizer.token_to_id("<image>") == VOCABULARY
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_before = tmp_path / "tokenizer.json"
    tokenizer.save(str(tokenizer_before))
    lines = [{"text": f"the river ran over {number} stones <image>"} for number in range(200)]
    text.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    prepare = ["prepare", str(text), "--tokenizer", str(folder), "--workers", "1", "--output"]
    assert main([*prepare, str(tmp_path / "plain")]) == 0
    assert main([*prepare, str(tmp_path / "parsed"), "--parse-special"]) == 0

    def config(dataset: str, hf: Path) -> Path:
        sources = {"sources": {"domain": {"paths": [str(tmp_path / dataset)]}}, "replay_ratio": None}
        return workshop.write_config(tmp_path / f"{dataset}-{hf.name}", data=sources, model={"hf": str(hf)})

    one_rank.call(train, path=config("plain", folder), overrides=ONE_STEP)
    (said,) = one_rank.call(refusal, path=config("parsed", folder), overrides=ONE_STEP)
    assert f"data.sources.domain: ids up to {VOCABULARY}: model.hf = {folder} has {VOCABULARY} embedding rows" in said
    # The tasks of a file are checked alike, in a run and by `evaluate`.
    tokenizer.add_tokens(["stones"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert main(["evaluate", str(folder), "--tasks", str(text)]) == ExitCode.BAD_INPUT
    assert f"task text: ids up to {VOCABULARY + 1}: the model has" in capsys.readouterr().err
    sources = {"sources": {"domain": {"paths": [str(tmp_path / "plain")]}}, "replay_ratio": None}
    tasks = {"files": {"stones": {"path": str(text)}}}
    path = workshop.write_config(tmp_path / "tasks", data=sources, model={"hf": str(folder)}, tasks=tasks)
    (said,) = one_rank.call(refusal, path=path, overrides=ONE_STEP)
    assert f"task stones: ids up to {VOCABULARY + 1}: the model has {VOCABULARY} embedding rows" in said
    tokenizer_before.replace(folder / "tokenizer.json")
    # The remedy of the message.
    assert main(["convert", "extend", str(folder), str(tmp_path / "more"), "--tokenizer", str(folder)]) == 0
    one_rank.call(train, path=config("parsed", tmp_path / "more"), overrides=ONE_STEP)


def test_a_model_that_is_worse_than_guessing_is_told_or_refused(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    """The comparison with transformers passes, for it reads the same weights."""
    damaged = tmp_path / "hf"
    write_model(damaged)
    write_tokenizer_of(workshop, damaged)
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"] *= 9
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    path = workshop.write_config(tmp_path / "run", model={"hf": str(damaged)})
    one_rank.call(train, path=path, overrides=ONE_STEP)
    log = (tmp_path / "run/log.txt").read_text()
    assert "initial loss check: 8 sequences, loss 6.51740, transformers' 6.51740" in log
    assert "warning: before the first update the loss of 8 sequences is 6.5174 nats" in log
    assert "above ln(320) = 5.7683: worse than guessing" in log

    refuse = ("model.initial_loss_check.worse_than_guessing=refuse", *ONE_STEP)
    assert main(["convert", "from-hf", str(damaged), str(tmp_path / "converted")]) == 0
    again = workshop.write_config(tmp_path / "again", model={"hf": str(damaged)})
    words = (*refuse, f"init_from.checkpoint={tmp_path / 'converted'}")
    assert "worse than guessing" in one_rank.call(numerics_refusal, path=again, overrides=words)[0]
    assert not list((tmp_path / "again/checkpoints").iterdir())

    good = workshop.write_config(tmp_path / "good")
    one_rank.call(train, path=good, overrides=("validation.sets={}", "checkpoint.save_interval=null"))
    words = (*refuse, f"init_from.checkpoint={tmp_path / 'good/checkpoints/step-00000012'}")
    further = workshop.write_config(tmp_path / "further")
    one_rank.call(train, path=further, overrides=words)
    assert "worse than guessing" not in (tmp_path / "further/log.txt").read_text()


def numerics_refusal(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: what a run says that is refused for its numbers."""
    with pytest.raises(NumericsFault) as error:
        train(path, overrides)
    return str(error.value)
