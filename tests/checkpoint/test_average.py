"""A mean of models is their weighted mean, weight by weight, and a checkpoint like any other."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_cpt.checkpoint.convert import average, hf_from_checkpoint
from megatron_cpt.commands.evaluate import main as evaluate
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel import groups
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop


def averaged(sources: list[Path], shares: list[float], output: Path) -> None:
    """Job: averages."""
    groups.init_model_parallel(ParallelSettings(tensor=groups.world_size()))
    average(sources, shares, output)


def exported(checkpoint: Path, output: Path) -> None:
    """Job: a checkpoint to a folder."""
    groups.init_model_parallel(ParallelSettings())
    hf_from_checkpoint(checkpoint, output)


def evaluated(source: Path, questions: Path, output: Path) -> dict[str, Any]:
    """Job: `megatron-cpt evaluate`."""
    assert evaluate([str(source), "--tasks", str(questions), "--output", str(output)]) == 0
    tasks: dict[str, Any] = orjson.loads(output.read_bytes())["tasks"]
    return tasks


def refusal(sources: list[Path], shares: list[float], output: Path) -> str:
    """Job: what a mean that cannot be taken says."""
    with pytest.raises(BadInput) as error:
        averaged(sources, shares, output)
    return str(error.value)


def test_a_step_back_towards_the_base(one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("training.tokens=4 steps", "checkpoint.export_hf.end=true", "validation.sets={}")
    one_rank.call(train, path=workshop.write_config(run), overrides=settings)
    checkpoint = run / "checkpoints" / "step-00000004"
    two_ranks.call(averaged, sources=[checkpoint, workshop.hf], shares=[3.0, 1.0], output=tmp_path / "mean")
    one_rank.call(exported, checkpoint=tmp_path / "mean", output=tmp_path / "exported")
    trained, base, mean = (
        load_file(folder / "model.safetensors") for folder in (run / "hf", workshop.hf, tmp_path / "exported")
    )
    assert mean.keys() == trained.keys()
    for name, value in mean.items():
        torch.testing.assert_close(value, 0.75 * trained[name] + 0.25 * base[name], rtol=0, atol=1e-7)
    AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    # It is evaluated, and started from, as any checkpoint is: the same numbers as from its export.
    questions = workshop.folder / "questions.jsonl"
    of_mean, of_exported, of_base = (
        one_rank.call(evaluated, source=source, questions=questions, output=tmp_path / f"{source.name}.json")[0]
        for source in (tmp_path / "mean", tmp_path / "exported", workshop.hf)
    )
    assert of_mean == of_exported != of_base
    path = workshop.write_config(tmp_path / "further")
    one_rank.call(train, path=path, overrides=(f"init_from.checkpoint={tmp_path / 'mean'}", "training.tokens=4 steps"))
    said = one_rank.call(refusal, sources=[checkpoint, workshop.hf], shares=[1.0], output=tmp_path / "other")[0]
    assert "is no list of 2 shares" in said
