"""`megatron-cpt plan`: the table, the JSON, overrides and exit codes."""

import json
from pathlib import Path

import pytest
import yaml

from megatron_cpt.commands.dispatch import main
from tests.planning.small_run import settings


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
