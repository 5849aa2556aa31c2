"""`megatron-cpt plan`: the table, the JSON, overrides and exit codes."""

import json
import os
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from tests.families.folders import write_config
from tests.planning.small_run import settings
from tests.simulation.ranks import run_settings


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path)))
    return str(path)


def test_the_table_is_printed(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config]) == 0
    printed = capsys.readouterr().out
    assert "100 steps of 8 x 32 = 256 tokens" in printed
    assert "law     domain" in printed


def test_json_with_overrides_and_ranks(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config, "training.tokens=50 steps", "--nproc", "2", "--json", "data.replay_ratio=0.5"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["steps"], content["world_size"]) == (50, 2)
    assert [source["share"] for source in content["blend"]["sources"]] == [0.5, 0.5]


def test_faults_are_printed_once_with_exit_code_2(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", config, "data.sequence_length=256", "training.micro_batch_size=3"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("data.sequence_length = 256") == 1
    assert printed.err.count("training.global_batch_size = 8") == 1


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A run whose model is a config.json alone, and whose data are not there."""
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(run_settings(write_config(tmp_path / "hf"), {"tensor": 2}, length=64)))
    return str(path)


@pytest.mark.ci
def test_a_rank_is_simulated_from_a_config_json_alone(
    bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As in images for GPUs, where Transformer Engine is installed: without one its import may fail.
    (tmp_path / "site/transformer_engine").mkdir(parents=True)
    (tmp_path / "site/transformer_engine/__init__.py").write_text("raise RuntimeError('needs CUDA')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    assert main(["plan", bare, "--simulate", "--nproc", "8", "--rank", "3", "--gpu", "H200-141GB", "--price", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Rank     3 of 8, pipeline stage 0" in printed
    assert "H200-141GB, 139.8 GiB: fits" in printed
    assert "all_reduce  tensor" in printed
    # Of Megatron-Core's own, 0.19.2 has one less.
    waits = 3 if version("megatron-core").startswith("0.16.") else 2
    assert f"Waits of the host in a step: {waits}\n" in printed
    assert " at 2 per GPU-hour" in printed


@pytest.mark.ci
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank", "8"], "the ranks are 0 to 7"),
        (["--gpu", "H100"], "Did you mean H100-80GB"),
        (["parallel.tensor=3"], "parallel.tensor = 3"),
        (["megatron.transformer.no_such_field=1"], "no_such_field"),
        (["megatron.transformer.init_method=5"], "megatron.transformer.init_method: a simulated rank ended with TypeE"),
    ],
)
def test_what_cannot_be_simulated_is_told(
    bare: str, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", bare, "--simulate", "--nproc", "8", *words]) == 2
    printed = capfd.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.ci
def test_a_pipeline_is_simulated_to_its_last_stage_and_what_needs_a_gpu_is_told(
    bare: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = ["parallel.tensor=1", "parallel.pipeline=2", "parallel.distributed_optimizer=true"]
    engine = ["megatron.transformer.fp8=hybrid", "megatron.transformer.moe_grouped_gemm=true"]
    optimizer = "megatron.optimizer.use_precision_aware_optimizer=true"
    assert main(["plan", bare, "--simulate", "--nproc", "2", *layout, *engine, optimizer]) == 0
    printed = capsys.readouterr().out
    assert "(simulated too: rank 1: " in printed or "(simulated too: rank 0: " in printed
    assert " s of rank 1, an estimate" in printed  # it has the output layer
    without = [word.replace("true", "True") for word in (*engine, optimizer)]
    assert f"Settings  simulated as if not set: {', '.join(without)}" in printed


@pytest.mark.ci
def test_layouts_are_searched(bare: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", bare, "--search", "--json", "parallel.tensor=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    best, own = found["simulated"]  # of one rank there is one way to share a model
    assert (best["is_own"], own["is_own"]) == (False, True)
    assert own["overrides"] == ["training.micro_batch_size=1", "training.recompute=none"]
    assert own["step_seconds"] > best["step_seconds"]
    assert best["overrides"][-2:] == ["training.micro_batch_size=8", "training.recompute=none"]
    assert best["fits"]
    assert best["peak_bytes"] < 2**30
    assert found["layouts_that_fit"] == 4  # micro batches of 1, 2, 4 and 8


@pytest.mark.parametrize("ranks", ["0", "-3"])
def test_a_search_needs_a_rank(bare: str, ranks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", bare, "--search", "--nproc", ranks]) == 2
    assert f"{ranks} ranks: a run has at least one." in capsys.readouterr().err


def test_a_search_that_finds_nothing_is_told(bare: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**CARD, "memory": 0.0001}))
    assert main(["plan", bare, "--search", "--nproc", "2", "--gpu", str(tmp_path / "small.yaml")]) == 2
    assert "--nproc 2: no layout of the model fits 2 GPUs" in capsys.readouterr().err


CARD = {"flops": 1e15, "memory": 80, "bandwidth": 3e12, "link": 4e11}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc", "0"], "0 ranks: a run has at least one."),
        (["--nproc", "-2"], "-2 ranks: a run has at least one."),
        (["--price", "inf"], "--price inf: is below 0, or no number."),
        (["--rank", "3"], "--rank 3: it says which rank is simulated, and none is."),
        (["--worst"], "--worst: it says which rank is simulated, and none is."),
        (["--simulate", "--mfu", "200%"], "--mfu 200%: --simulate estimates the speed from what the ranks do"),
        (["--search", "--mfu", "40%"], "--mfu 40%: --search estimates the speed from what the ranks do"),
        (["--simulate", "--assume", "law=5B"], "--assume law=5B: --simulate reads no data"),
        (["--search", "--rank", "1"], "--rank 1: a search simulates the first rank of the fullest stage"),
        (["--search", "--worst"], "--worst: a search simulates the first rank of the fullest stage"),
        (["--search", "--nproc", "2", "parallel.pipeline=3"], "parallel.pipeline = 3"),
        (["--assume", "law=5B", "law=6B"], "--assume law=6B: law is given twice."),
    ],
)
def test_numbers_that_are_none_are_refused(
    config: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config, *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"flops": -1e15}, "flops: a number above 0 is needed"),
        ({"link": 0}, "link: a number above 0 is needed"),
        ({"memory": float("nan")}, "memory: a number above 0 is needed"),
        ({"product_share": 1.5}, "product_share: a number above 0 is needed, and of a share one up to 1"),
        ({"flops": "fast"}, "flops: input should be a valid number"),
    ],
)
def test_a_card_that_cannot_be_is_refused(
    config: str, tmp_path: Path, change: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(CARD | change))
    assert main(["plan", config, "--gpu", str(card)]) == 2
    error = capsys.readouterr().err
    assert said in error and "http" not in error
