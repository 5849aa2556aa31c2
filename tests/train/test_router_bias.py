"""The bias that balances the experts of a GLM-4.5, and the layers of its folder that are not trained."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_cpt.checkpoint.hf_folder import SINGLE
from megatron_cpt.commands.dispatch import main
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors
from tests.parallel.matrix import LOSS, copy_until, family_folder, largest
from tests.ranks import Ranks
from tests.train.runs import column, records_of, refusal, train
from tests.workshop import Workshop

BIAS = "mlp.gate.e_score_correction_bias"
FURTHER = "model.layers.4."
SETTINGS = (
    *("training.tokens=4 steps", "schedule.warmup=null", "validation.sets={}", "checkpoint.export_hf.end=true"),
    *("checkpoint.save_interval=2 steps", "checkpoint.keep_every=2 steps"),
)
MOVING = "megatron.transformer.moe_router_bias_update_rate=0.001"


def biases(folder: Path) -> dict[str, Tensor]:
    """Those of the model that is trained."""
    tensors = all_tensors(folder)
    found = {name for name in tensors if name.endswith(BIAS) and not name.startswith(FURTHER)}
    assert len(found) == 3
    return {name: tensors[name] for name in found}


def published(workshop: Workshop, folder: Path) -> Path:
    """A folder as GLM-4.5's: bf16 but for the biases, with a layer that predicts a further token."""
    shutil.copytree(family_folder(workshop, "glm4_moe"), folder)
    tensors = {
        name: tensor if name.endswith(BIAS) else tensor.bfloat16() for name, tensor in all_tensors(folder).items()
    }
    rows = tensors["lm_head.weight"]
    tensors |= {
        f"{FURTHER}eh_proj.weight": torch.randn(32, 64).bfloat16(),
        f"{FURTHER}embed_tokens.weight": rows + 1,
        f"{FURTHER}shared_head.head.weight": rows * 2,
        f"{FURTHER}{BIAS}": torch.randn(6),
    }
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


def test_a_published_folder_comes_back(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    folder = published(workshop, tmp_path / "hf")
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert main(["convert", "verify", str(tmp_path / "checkpoint"), str(folder)]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    assert_same_tensors(tmp_path / "out", folder)
    assert main(["average", str(folder), str(tmp_path / "checkpoint"), "--output", str(tmp_path / "mean")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "mean"), str(tmp_path / "same")]) == 0
    assert_same_tensors(tmp_path / "same", folder)


def test_a_folder_without_further_layers_needs_none(workshop: Workshop, tmp_path: Path) -> None:
    folder = family_folder(workshop, "glm4_moe")  # as transformers writes it
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    assert_same_tensors(tmp_path / "out", folder)


@pytest.mark.ci
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_bias_stays_and_so_do_further_layers(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = published(workshop, tmp_path / "hf"), tmp_path / "run"
    path = workshop.write_config(run, model={"hf": str(folder)})
    assert main(["plan", str(path)]) == 0
    assert "layers that predict further tokens (model.layers.4)" in capsys.readouterr().out
    settings = (*SETTINGS, f"training.precision={precision}")
    if precision == "bf16":  # of a random model this small, rounding is more than the check allows
        settings += ("model.initial_loss_check.enabled=false",)
    assert one_rank.call(train, path=path, overrides=settings) == [0]
    before, after = all_tensors(folder), all_tensors(run / "hf")
    assert before.keys() == after.keys()
    same = {name for name, tensor in before.items() if torch.equal(after[name], tensor)}
    assert same >= {name for name in before if name.endswith(BIAS) or name.startswith(FURTHER)}
    assert not any("experts.0." in name for name in same)
    # A folder with another further layer is another model.
    other = shutil.copytree(folder, tmp_path / "other")
    save_file(before | {f"{FURTHER}{BIAS}": torch.zeros(6)}, other / SINGLE, metadata={"format": "pt"})
    [said] = one_rank.call(refusal, path=path, overrides=(*settings, "training.tokens=6 steps", f"model.hf={other}"))
    assert "are not those of" in said


@pytest.mark.ci
def test_a_bias_that_moves_is_resumed_exactly(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    folder, uncut, cut = published(workshop, tmp_path / "hf"), tmp_path / "uncut", tmp_path / "cut"
    settings = (*SETTINGS, MOVING, "validation.gradient_conflict=[]")
    two_ranks.call(train, path=workshop.write_config(uncut, model={"hf": str(folder)}), overrides=settings)
    copy_until(uncut, cut, 2)
    two_ranks.call(train, path=workshop.write_config(cut, model={"hf": str(folder)}), overrides=settings)
    assert "resumed after step 2" in (cut / "log.txt").read_text()
    assert_same_tensors(cut / "hf", uncut / "hf")
    before, after = biases(folder), biases(uncut / "hf")
    for name, bias in before.items():
        moved = after[name] - bias
        assert moved.abs().max() > 9e-4, name
        assert moved.abs().max() < 4.1e-3  # four steps of 0.001
        assert abs(moved.sum()) < moved.abs().sum(), name  # some experts were too busy, others too idle


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["glm4_moe", "deepseek_v3"])
def test_experts_of_two_ranks_train_as_those_of_one(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path, kind: str
) -> None:
    folder = family_folder(workshop, kind)
    layouts: dict[str, tuple[str, ...]] = {
        "one": (),
        "expert": ("parallel.expert=2", "parallel.distributed_optimizer=true"),
        "context": ("parallel.context=2",),
    }
    for name, layout in layouts.items():
        path = workshop.write_config(tmp_path / name, model={"hf": str(folder)})
        (two_ranks if layout else one_rank).call(train, path=path, overrides=(*SETTINGS, MOVING, *layout))
    losses = {name: column(records_of(tmp_path / name, "train"), "loss") for name in layouts}
    moved = {name: biases(tmp_path / name / "hf") for name in layouts}
    for name in ("expert", "context"):
        assert largest(losses[name], losses["one"]) <= LOSS, name
        for bias, expected in moved["one"].items():
            assert torch.equal(moved[name][bias], expected), f"{name}: {bias}"
