"""Runs of models with gated delta nets, from folders as they are published: with tensors that are not trained."""

from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import save_file

from megatron_cpt.checkpoint.hf_folder import SINGLE
from megatron_cpt.commands.dispatch import main
from tests.checkpoint.hf_models import all_tensors
from tests.parallel.matrix import family_folder
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop

FURTHER = {"mtp.fc.weight": (32, 64), "mtp.layers.0.input_layernorm.weight": (32,), "mtp.norm.weight": (32,)}
SETTINGS = (
    *("training.tokens=2 steps", "schedule.warmup=null", "validation.sets={}", "checkpoint.export_hf.end=true"),
    "data.attention=within_documents",
)


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["qwen3_next", "qwen3_5", "qwen3_5_moe"])
def test_a_run_begins_at_the_loss_of_transformers_and_keeps_what_is_not_trained(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = tmp_path / "hf", tmp_path / "run"
    folder.mkdir()
    for path in family_folder(workshop, kind).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    further = {name: torch.randn(size) for name, size in FURTHER.items()}
    save_file(all_tensors(folder) | further, folder / SINGLE, metadata={"format": "pt"})
    path = workshop.write_config(run, model={"hf": str(folder)})
    assert main(["plan", str(path)]) == 0
    assert "layers that predict further tokens (mtp)" in capsys.readouterr().out
    assert one_rank.call(train, path=path, overrides=SETTINGS) == [0]
    found = orjson.loads((run / "initial_loss_check.json").read_bytes())
    assert found["ours"] == pytest.approx(found["losses"], abs=1e-5)
    exported, parent = all_tensors(run / "hf"), all_tensors(folder)
    assert exported.keys() == parent.keys()
    same = {name for name in parent if torch.equal(exported[name], parent[name])}
    assert same == {name for name in parent if name.startswith(("mtp.", "model.visual."))}
    assert "attention: gated delta net by torch, in chunks, torch scaled_dot_product" in (run / "log.txt").read_text()
    assert main(["convert", "verify", str(run), str(run / "hf")]) == 0


def test_ranks_cannot_share_a_sequence(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = family_folder(workshop, "qwen3_next")
    path = workshop.write_config(tmp_path / "run", model={"hf": str(hf)})
    assert main(["plan", str(path), "parallel.context=2", "--nproc", "2"]) != 0
    told = capsys.readouterr().err
    assert "parallel.context = 2: a gated delta net takes one token after the other" in told
    assert main(["plan", str(path), "parallel.tensor=4", "parallel.sequence=true", "--nproc", "4"]) != 0
    assert "the model's 2 key heads of a gated delta net cannot be divided" in capsys.readouterr().err
