"""`megatron-cpt audit`: the tables, the JSON, and what is no blend."""

import json
from pathlib import Path

import pytest

from megatron_cpt.commands.dispatch import main
from tests.planning.small_run import write_dataset


@pytest.fixture
def blend(tmp_path: Path) -> str:
    law, web = (write_dataset(tmp_path / name, tokens, None) for name, tokens in (("law", 10_000), ("web", 50_000)))
    return f"0.7 {law} 0.3 {web}"


def test_the_tables_are_printed(blend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--data-path", blend, "--train-samples", "1K", "--seq-length", "32", "--split", "1,0,0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[1:] == ["70.00", "%", "10.0K", "700", "704", "2.240", "3", "2"]
    assert lines[2].split()[1:] == ["30.00", "%", "50.0K", "300", "302", "0.192", "1", "1"]
    label, *shares = lines[5].replace("%", "").split()[1:]
    assert label == "unseen"
    assert [float(share) for share in shares] == pytest.approx([51.78, 19.28, 2.52, 0], abs=0.5)


def test_a_blend_that_never_starts_is_refused(blend: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--data-path", blend, "--train-samples", "1K", "--seq-length", "32"]) == 2
    assert "law: its validation split has no tokens" in capsys.readouterr().err


def test_json(blend: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["audit", "--data-path", blend, "--train-samples", "1000", "--seq-length", "32"]
    assert main([*words, "--split", "1,0,0", "--json"]) == 0
    law, web = json.loads(capsys.readouterr().out)
    assert (law["requested"], web["requested"], law["tokens"]) == (700, 300, 10_000)
    assert len(law["unseen"]) == len(web["repeated"]) == 4


@pytest.mark.parametrize(
    ("path", "split", "said"),
    [
        ("0.7 a b", "1,0,0", "a blend is"),
        ("0.7 a b c", "1,0,0", "a blend is"),
        ("a b", "1,0,0", "b.idx: is not there"),
        ("0.5 a 0.5 b", "0,1", "the first above 0"),
        ("0.5 a 0.5 b", "nan,1", "the first above 0"),
        ("-1 a 0.5 b", "1,0,0", "finite weights above 0 alone"),
        ("nan a 0.5 b", "1,0,0", "finite weights above 0 alone"),
    ],
)
def test_what_is_no_blend(path: str, split: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--data-path", path, "--train-samples", "9", "--seq-length", "4", "--split", split]) == 2
    assert said in capsys.readouterr().err
