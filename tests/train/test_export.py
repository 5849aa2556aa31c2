"""Hugging Face folders that a run writes on its way and at its end."""

import shutil
from pathlib import Path

import orjson
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_cpt.checkpoint.convert import hf_from_checkpoint
from megatron_cpt.checkpoint.hf_folder import SINGLE, model_files
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors
from tests.ranks import Ranks
from tests.train.runs import refusal, train
from tests.workshop import Workshop

ONE_STEP = (
    "training.tokens=1 steps",
    "schedule.kind=constant",
    "schedule.warmup=null",
    "checkpoint.save_interval=1 steps",
    "validation.sets={}",
)
OTHER_DTYPE = ("checkpoint.export_hf.dtype=float16", "checkpoint.export_hf.dtype = float16 would make it float16")
SETTINGS = ("training.tokens=4 steps", "checkpoint.export_hf.every=2 steps", "validation.sets={}", "parallel.tensor=2")


def to_hf(checkpoint: Path, output: Path) -> None:
    """Job: a checkpoint to a folder, on one process."""
    groups.init_model_parallel(ParallelSettings())
    hf_from_checkpoint(checkpoint, output, shard_bytes=20_000)


def test_a_run_exports_on_its_way_and_at_its_end(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run)
    two_ranks.call(train, path=path, overrides=SETTINGS)
    assert sorted(folder.name for folder in (run / "hf_steps").iterdir()) == ["step-00000002", "step-00000004"]
    assert_same_tensors(run / "hf_steps/step-00000004", run / "hf")
    half_way, end = all_tensors(run / "hf_steps/step-00000002"), all_tensors(run / "hf")
    assert not torch.equal(half_way["model.norm.weight"], end["model.norm.weight"])
    lineage = orjson.loads((run / "hf_steps/step-00000002/lineage.json").read_bytes())
    assert lineage["tokens"] == 2 * 8 * 32

    model = AutoModelForCausalLM.from_pretrained(run / "hf")
    tokenizer = AutoTokenizer.from_pretrained(run / "hf")
    assert model(tokenizer("the river ran", return_tensors="pt").input_ids).logits.isfinite().all()

    one_rank.call(to_hf, checkpoint=run / "checkpoints/step-00000004", output=tmp_path / "later")
    assert_same_tensors(tmp_path / "later", run / "hf")
    assert len(list((tmp_path / "later").glob("*.safetensors"))) > 3
    for folder, name in ((run / "hf", "run"), (tmp_path / "later", "later")):
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: transformers\n")
        assert f"# {name}\n" in card
        assert "1,024 tokens in 4 steps" in card
        assert "Learning rate: peak 0.002, at the end 0.0001." in card
        assert "| domain | 704 | 68.8% |" in card
        assert "| general | 320 | 31.2% |" in card


def test_an_export_that_is_there_is_not_written_again(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run)
    settings = ("training.tokens=2 steps", "validation.sets={}", "schedule.warmup=null")
    half = (*settings, "checkpoint.export_hf.dtype=bfloat16")
    one_rank.call(train, path=path, overrides=half)
    before = (run / "hf/model.safetensors").stat().st_mtime_ns
    assert {tensor.dtype for tensor in all_tensors(run / "hf").values()} == {torch.bfloat16}
    one_rank.call(train, path=path, overrides=(*half, "checkpoint.export_hf.every=1 steps"))
    assert f"{run / 'hf'} is there, of step 2: it is not written again" in (run / "log.txt").read_text()
    kept = (run / "config.yaml").read_text()
    for other, asked in (("checkpoint.export_hf={}", "the parent's tensors would make it float32"), OTHER_DTYPE):
        said = one_rank.call(refusal, path=path, overrides=(*settings, other))[0]
        assert f"{run / 'hf'}: it is there already, in bfloat16; {asked}" in said
    assert (run / "config.yaml").read_text() == kept
    assert (run / "hf/model.safetensors").stat().st_mtime_ns == before


def test_an_export_has_the_dtypes_of_the_parents_tensors_whatever_its_config_says(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    parent, run = tmp_path / "parent", tmp_path / "run"
    shutil.copytree(workshop.hf, parent)
    tensors = {
        name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in all_tensors(workshop.hf).items()
    }
    save_file(tensors, parent / SINGLE, metadata={"format": "pt"})
    config = orjson.loads((parent / "config.json").read_bytes())
    # Words that transformers fails over, and fields that it does not read.
    config |= {"dtype": "auto", "torch_dtype": "torch.float16", "is_llama_config": True, "rope_interleaved": False}
    (parent / "config.json").write_bytes(orjson.dumps(config))
    path = workshop.write_config(run, model={"hf": str(parent)}, data={"sequence_length": 32})
    one_rank.call(train, path=path, overrides=(*ONE_STEP, "checkpoint.export_hf.end=true"))
    one_rank.call(to_hf, checkpoint=run / "checkpoints/step-00000001", output=tmp_path / "later")
    assert_same_tensors(tmp_path / "later", run / "hf")
    for name, tensor in all_tensors(run / "hf").items():
        assert tensor.dtype is tensors[name].dtype, name
    written = orjson.loads((run / "hf/config.json").read_bytes())
    # Loaded in this dtype, no tensor is rounded.
    assert written == config | {"dtype": "float32", "torch_dtype": "float32"}
    assert AutoModelForCausalLM.from_pretrained(run / "hf").dtype is torch.float32
    said = (run / "log.txt").read_text()
    assert (
        "exports: in the dtype of the parent's tensors; rounded from what is trained: 29 tensors from float32" in said
    )
    [warning] = [each for each in orjson.loads((run / "plan.json").read_bytes())["warnings"] if "config.json" in each]
    assert "is_llama_config, rope_interleaved" in warning


def test_no_file_of_the_parent_is_lost(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    parent, run = tmp_path / "parent", tmp_path / "run"
    shutil.copytree(workshop.hf, parent)
    kept = ["LICENSE.txt", "NOTICE", "USE_POLICY.md", "tekken.json", "generation_config.json", "modeling_llama.py"]
    kept += ["additional_chat_templates/rag.jinja", "chat_template.jinja"]
    (parent / "additional_chat_templates").mkdir()
    for name in kept:
        (parent / name).write_text(f'{{"name": "{name}"}}')
    (parent / "consolidated.safetensors").write_bytes(b"the same weights in another form")
    config = orjson.loads((parent / "config.json").read_bytes())
    assert not [path for path in model_files(parent) if path.suffix == ".py"]  # a program that happens to lie there
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_llama.Llama"}
    (parent / "config.json").write_bytes(orjson.dumps(config))
    path = workshop.write_config(run, model={"hf": str(parent), "rope": {"max_position_embeddings": 128}})
    one_rank.call(train, path=path, overrides=(*ONE_STEP, "checkpoint.export_hf.end=true"))
    one_rank.call(to_hf, checkpoint=run / "checkpoints/step-00000001", output=tmp_path / "later")
    for output in (run / "hf", tmp_path / "later"):
        for name in kept:
            assert (output / name).read_text() == f'{{"name": "{name}"}}'
        assert orjson.loads((output / "config.json").read_bytes())["auto_map"] == config["auto_map"]
        assert not (output / "consolidated.safetensors").exists()


def test_an_export_is_of_the_state_that_it_names(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run, checkpoint={"save_interval": "2 steps", "keep_last": 9})
    words = ("validation.sets={}", "checkpoint.export_hf.end=true", "schedule.kind=constant")
    one_rank.call(train, path=path, overrides=(*words, "training.tokens=4 steps"))
    shorter = all_tensors(run / "hf")
    # Longer in the same folder: what was the end is now on the way.
    every = "checkpoint.export_hf.every=2 steps"
    one_rank.call(train, path=path, overrides=(*words, every, "training.tokens=8 steps"))
    assert orjson.loads((run / "hf/lineage.json").read_bytes())["tokens"] == 8 * 8 * 32
    assert "2,048 tokens in 8 steps" in (run / "hf/README.md").read_text()
    one_rank.call(to_hf, checkpoint=run / "checkpoints/step-00000008", output=tmp_path / "later")
    assert_same_tensors(tmp_path / "later", run / "hf")
    moved = all_tensors(run / "hf_steps/step-00000004")
    assert all(torch.equal(moved[name], tensor) for name, tensor in shorter.items())
    assert "of step 4, is now" in (run / "log.txt").read_text()

    # Back at step 4: the end is no longer this run's, and what was on the way to it is made anew.
    for step in (6, 8):
        shutil.rmtree(run / f"checkpoints/step-0000000{step}")
    other = (*words, every, "training.tokens=8 steps", "schedule.peak_lr=1e-3")
    before = all_tensors(run / "hf_steps/step-00000006")
    assert "holds the model of step 8" in one_rank.call(refusal, path=path, overrides=other)[0]
    assert orjson.loads((run / "hf/lineage.json").read_bytes())["peak_learning_rate"] == 2e-3
    shutil.rmtree(run / "hf")
    one_rank.call(train, path=path, overrides=other)
    after = all_tensors(run / "hf_steps/step-00000006")
    assert not any(torch.equal(before[name], after[name]) for name in after)
    one_rank.call(to_hf, checkpoint=run / "checkpoints/step-00000006", output=tmp_path / "six")
    assert_same_tensors(tmp_path / "six", run / "hf_steps/step-00000006")
    # A card is of its checkpoint's own rates, not of the run's end.
    decayed = workshop.write_config(tmp_path / "decayed", checkpoint={"save_interval": "6 steps"})
    one_rank.call(train, path=decayed, overrides=("validation.sets={}",))
    one_rank.call(to_hf, checkpoint=tmp_path / "decayed/checkpoints/step-00000006", output=tmp_path / "half")
    assert "at the end 0.00152" in (tmp_path / "half/README.md").read_text()
