"""`prepare --engine ray` on two nodes, one of which is lost: the bytes of one machine."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.preparation.contamination import EvaluationItem, EvaluationSet
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.preparation.ray_engine import prepare_on_ray
from tests.preparation.test_interruptions import digests
from tests.ray_cluster import HAS_RAY, losing_a_node, needs_ray

SETTINGS = PrepareSettings(holdout=0.1, id_key="id", max_rejected=0.5, parts=3)


@pytest.fixture
def files(tmp_path: Path, texts: list[str]) -> str:
    """Twelve files, a bad line and copies among them."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(12):
        lines = [json.dumps({"text": f"{number} {text}", "id": f"{number}"}) for text in texts * 3]
        (folder / f"{number:02d}.jsonl").write_text("\n".join([*lines, "{broken"]))
    return str(folder)


@needs_ray
@pytest.mark.timeout(1800)
def test_the_command_line_on_a_cluster(
    tmp_path: Path, files: str, tokenizer_folder: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--tokenizer", os.path.relpath(tokenizer_folder), "--max-rejected", "50%", "--quiet"]
    assert main(["prepare", "corpus", *words, "--output", "one/x"]) == 0
    assert (
        main(["prepare", "corpus", *words, "--output", "two/x", "--engine", "ray", "--address", cluster.address]) == 0
    )
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


@needs_ray
@pytest.mark.timeout(1800)
def test_a_lost_node_costs_its_tasks_alone(
    tmp_path: Path, files: str, tokenizer_folder: Path, texts: list[str], cluster: Any
) -> None:
    items = tuple(EvaluationItem(f"q{number}", (text[200:600],)) for number, text in enumerate(texts[::9]))
    evaluation = [EvaluationSet("planted", "planted.jsonl", "0", items)]
    asked = {"evaluation": evaluation, "fast": False}
    prepare([files], tokenizer_folder, tmp_path / "right" / "x", SETTINGS, workers=2, **asked)
    pieces = tmp_path / "out" / "x.pieces"
    with losing_a_node(cluster, lambda: len(list(pieces.glob("*-0*.json")))) as lost:
        prepared = prepare_on_ray(
            [files], tokenizer_folder, tmp_path / "out" / "x", SETTINGS, address=cluster.address, **asked
        )
    assert lost and lost[0] < 12 - 2
    assert len(prepared.parts) == 3 and not prepared.reused
    assert digests(tmp_path / "out") == digests(tmp_path / "right")
    # What the tasks compared with evaluation items is among these files.
    assert prepared.training.contaminated and (tmp_path / "out" / "x.contaminated.jsonl").is_file()
    again = prepare_on_ray(
        [files], tokenizer_folder, tmp_path / "out" / "x", SETTINGS, address=cluster.address, **asked
    )
    assert again.reused
    other = replace(SETTINGS, seed=3)
    with pytest.raises(BadInput, match=r"is a finished dataset that was made otherwise \(other seed\)"):
        prepare_on_ray([files], tokenizer_folder, tmp_path / "out" / "x", other, address=cluster.address, **asked)
    # What a task refuses is told as by one machine.
    with pytest.raises(BadInput, match=r"were rejected, more than 0\.00%"):
        strict = replace(SETTINGS, max_rejected=0.0, parts=1)
        prepare_on_ray([files], tokenizer_folder, tmp_path / "strict" / "x", strict, address=cluster.address)


def test_what_ray_is_not_for(
    tmp_path: Path, files: str, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", files, "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "x"), "--quiet"]
    for more, told in (
        (["--engine", "ray", "--shard", "1/2"], "--engine ray and --shard: contradict"),
        (["--engine", "ray", "--limit", "2"], "--engine ray and --limit: contradict"),
        (["--address", "here:6379"], "--address: is of a Ray cluster"),
    ):
        assert main([*words, *more]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(BadInput, match="cannot be shared among machines"):
        prepare_on_ray(["-"], tokenizer_folder, tmp_path / "x")
    if not HAS_RAY:
        with pytest.raises(BadInput, match=r"--engine ray: needs Ray, not installed"):
            prepare_on_ray([files], tokenizer_folder, tmp_path / "x")
