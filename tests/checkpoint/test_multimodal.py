"""Models that read more than text: the language model is trained, and all else comes back bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from megatron_cpt.checkpoint.convert import transformers_logits, verify
from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE, open_hf_tensors
from megatron_cpt.checkpoint.hf_weights import check_tensors
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors, write_model
from tests.families.folders import MODELS, with_vocabulary
from tests.parallel.matrix import VOCABULARY, family_folder
from tests.ranks import Ranks
from tests.tokenizer.kinds import write_kind
from tests.train.runs import refusal, train
from tests.workshop import Workshop

SEES = "gemma3_vision", "mistral3", "qwen3_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl_moe", "llama4"
OF_ITS_OWN = ("vision_tower.", "multi_modal_projector.", "model.visual.", "vision_model.")
SETTINGS = ("training.tokens=2 steps", "schedule.warmup=null", "validation.sets={}", "checkpoint.export_hf.end=true")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Gemma 3 that sees, in bfloat16, with the files of its processor."""
    folder = write_model(tmp_path / "hf", MODELS["gemma3_vision"], torch.bfloat16)
    for name in ("preprocessor_config.json", "processor_config.json", "chat_template.jinja"):
        (folder / name).write_text(f'{{"file": "{name}"}}')
    return folder


def rename(folder: Path, name: str, to: str) -> None:
    """Gives tensors whose names begin so names that begin otherwise."""
    tensors = all_tensors(folder)
    renamed = {key.replace(name, to, 1) if key.startswith(name) else key: value for key, value in tensors.items()}
    save_file(renamed, folder / SINGLE, metadata={"format": "pt"})


def change(folder: Path, name: str) -> None:
    """Changes one bit of a tensor."""
    tensors = all_tensors(folder)
    tensors[name].view(torch.uint8).view(-1)[3] ^= 1
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def first_other(folder: Path) -> str:
    return next(name for name in sorted(all_tensors(folder)) if name.startswith(OF_ITS_OWN))


@pytest.mark.parametrize("kind", SEES)
@pytest.mark.parametrize("names", ["published", "transformers"])
def test_a_folder_comes_back_whole_under_its_own_names(one_rank: Ranks, tmp_path: Path, kind: str, names: str) -> None:
    folder = write_model(tmp_path / "hf", MODELS[kind], torch.bfloat16, published=names == "published")
    if names == "transformers" and kind != "llama4":  # where they are the published ones
        for old, new in (
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            *((name, f"model.{name}") for name in OF_ITS_OWN if not name.startswith("model.")),
        ):
            rename(folder, old, new)
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert main(["convert", "verify", str(tmp_path / "checkpoint"), str(folder)]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--shard-gib", "1e-5"]) == 0
    assert_same_tensors(tmp_path / "out", folder)
    index = orjson.loads((tmp_path / "out" / INDEX).read_bytes())
    bytes_of = sum(tensor.numel() * tensor.itemsize for tensor in all_tensors(folder).values())
    assert index["metadata"]["total_size"] == bytes_of
    assert index["weight_map"].keys() == all_tensors(folder).keys()
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)[1]
    assert not any(found.values()), found
    tokens = torch.arange(40).view(1, -1)
    assert torch.equal(transformers_logits(tmp_path / "out", tokens), transformers_logits(folder, tokens))


def test_a_qwen_whose_config_has_no_text_config_comes_back_as_it_was(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    """Published folders have the language model's fields among the others, and its names without `language_model`."""
    fields = with_vocabulary(MODELS["qwen2_5_vl"], VOCABULARY)
    folder = shutil.copytree(family_folder(workshop, "qwen2_5_vl"), tmp_path / "hf")
    assert any(name.startswith("visual.") for name in all_tensors(folder))
    (folder / "config.json").write_bytes(orjson.dumps(fields | {"dtype": "float32"}))
    run = tmp_path / "run"
    path = workshop.write_config(run, model={"hf": str(folder)})
    positions = "model.rope={max_position_embeddings: 96, scaling: linear, factor: 1.5}"
    for settings in (SETTINGS, (*SETTINGS, f"run.folder={tmp_path / 'wider'}", positions)):
        assert one_rank.call(train, path=path, overrides=settings) == [0]
    [difference] = one_rank.call(agreement, source=run, hf=run / "hf")
    assert difference < 1e-5
    before, after = all_tensors(folder), all_tensors(run / "hf")
    assert {name for name in before if torch.equal(before[name], after[name])} == {
        name for name in before if name.startswith("visual.")
    }
    assert orjson.loads((run / "hf/config.json").read_bytes()) == fields | {"dtype": "float32"}
    wider = orjson.loads((tmp_path / "wider/hf/config.json").read_bytes())
    assert "text_config" not in wider
    assert wider["rope_scaling"] == {"rope_type": "linear", "factor": 1.5, "mrope_section": [1, 1, 2]}
    AutoModelForImageTextToText.from_pretrained(tmp_path / "wider/hf")


def test_the_files_of_the_processor_go_along(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    before = {path.name for path in folder.iterdir()}
    assert before - {path.name for path in (tmp_path / "out").iterdir()} == {SINGLE}  # two files and an index instead
    for name in ("preprocessor_config.json", "processor_config.json", "chat_template.jinja", "config.json"):
        ours, theirs = ((place / name).read_bytes() for place in (tmp_path / "out", folder))
        assert orjson.loads(ours) == orjson.loads(theirs)


def test_a_language_model_in_another_dtype_is_loaded_in_it(folder: Path, tmp_path: Path) -> None:
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    wide = ["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--dtype", "float32"]
    assert main(wide) == 0
    for name, tensor in all_tensors(tmp_path / "out").items():
        assert tensor.dtype == (torch.bfloat16 if name.startswith(OF_ITS_OWN) else torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.lm_head.weight.dtype == torch.float32


def test_the_other_tensors_come_from_where_they_are_now(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    whole = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    words = ["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out")]
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"{folder}: the model's tensors beside its language model are copied from there" in said
    assert "--hf-config of `convert to-hf`" in said
    assert main([*words, "--hf-config", str(whole)]) == 0
    assert_same_tensors(tmp_path / "out", whole)
    change(whole, first_other(whole))
    shutil.rmtree(tmp_path / "out")
    assert main([*words, "--hf-config", str(whole)]) == 3
    assert "not those that the model came with" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "copy"]


def test_models_of_which_one_sees_otherwise_have_no_mean(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    words = ["average", str(folder), str(other), "--output"]
    assert main([*words, str(tmp_path / "mean")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "mean"), str(tmp_path / "out")]) == 0
    assert_same_tensors(tmp_path / "out", folder)
    change(other, first_other(other))
    capsys.readouterr()
    assert main([*words, str(tmp_path / "no")]) == 2
    assert "its tensors beside the language model are not those of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("audio_tower.weight", "audio_tower.weight: these are tensors of a model that reads more than text"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
    ],
)
def test_a_tensor_of_neither_part_is_named(folder: Path, name: str, named: str) -> None:
    save_file(all_tensors(folder) | {name: torch.ones(32)}, folder / SINGLE)
    with open_hf_tensors(folder) as tensors, pytest.raises(BadInput) as error:
        check_tensors(tensors, read_shape(folder))
    assert named in str(error.value)


@pytest.mark.parametrize("kind", SEES)
def test_a_run_trains_the_language_model_alone(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = shutil.copytree(family_folder(workshop, kind), tmp_path / "hf"), tmp_path / "run"
    path = workshop.write_config(run, model={"hf": str(folder)})
    assert main(["plan", str(path)]) == 0
    assert f"holds a {kind.removesuffix('_vision')}: its language model is trained" in capsys.readouterr().out
    settings = (*SETTINGS, "checkpoint.save_interval=1 steps")
    assert one_rank.call(train, path=path, overrides=settings) == [0]
    assert orjson.loads((run / "initial_loss_check.json").read_bytes())["losses"]
    before, after = all_tensors(folder), all_tensors(run / "hf")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == name.startswith(OF_ITS_OWN), name
    found = AutoModelForImageTextToText.from_pretrained(run / "hf", output_loading_info=True)[1]
    assert not any(found.values()), found
    [difference] = one_rank.call(agreement, source=run, hf=run / "hf")
    assert difference < 1e-5
    # A copy in another place is the same model; one that sees otherwise is not.
    moved = folder.rename(tmp_path / "moved")
    longer = (*settings, "training.tokens=3 steps", f"model.hf={moved}")
    assert one_rank.call(train, path=path, overrides=longer) == [0]
    change(moved, first_other(moved))
    [said] = one_rank.call(refusal, path=path, overrides=(*longer, "training.tokens=4 steps"))
    assert f"beside the language model are not those of {run / 'model'}" in said
    start = f"init_from.checkpoint={run / 'checkpoints/step-00000003'}"
    other = workshop.write_config(tmp_path / "other", model={"hf": str(moved)})
    [said] = one_rank.call(refusal, path=other, overrides=(*settings, start))
    assert "step-00000003/hf, which came from" in said


def agreement(source: Path, hf: Path) -> float:
    """A job: the largest difference of a logit of a run and of its export in transformers."""
    groups.init_model_parallel(ParallelSettings())
    found = verify(source, hf)
    assert found is not None
    return found[0].largest


def test_a_run_whose_export_would_lack_tensors_does_not_begin(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    folder = shutil.copytree(family_folder(workshop, "mistral3"), tmp_path / "hf")
    (folder / SINGLE).unlink()
    path = workshop.write_config(tmp_path / "run", model={"hf": str(folder), "weights": "random"})
    [said] = one_rank.call(refusal, path=path, overrides=SETTINGS)
    assert "holds no weights, and an export is to have those beside the language model" in said


def test_words_are_added_and_ids_of_pictures_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields: dict[str, Any] = MODELS["gemma3_vision"]
    folder = write_model(tmp_path / "hf", fields | {"text_config": fields["text_config"] | {"vocab_size": 400}})
    write_kind("byte_level", folder)
    assert main(["convert", "extend", str(folder), str(tmp_path / "out"), "--new-tokens", "myocarditis"]) == 0
    config = orjson.loads((tmp_path / "out/config.json").read_bytes())
    assert config["image_token_index"] == fields["image_token_index"]
    rows = config["text_config"]["vocab_size"]
    assert rows == read_shape(tmp_path / "out").vocabulary
    before, after = all_tensors(folder), all_tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} <= {
        "language_model.model.embed_tokens.weight"
    }
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    write_kind("unigram", tmp_path / "tokenizer")
    capsys.readouterr()
    words = ["convert", "extend", str(folder), str(tmp_path / "no"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(words) == 2
    assert "tokens that stand for pictures by their ids" in capsys.readouterr().err
