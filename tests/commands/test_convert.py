"""`convert` as a user meets it: which folders are refused before any program reads their weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE
from megatron_cpt.commands.dispatch import main
from megatron_cpt.runs.folder import ExitCode
from tests.checkpoint.hf_models import write_llama
from tests.families.folders import SMALL
from tests.workshop import Workshop

NORM = "model.norm.weight"


def outside(folder: Path) -> str:
    """A sound model, of which the index says that one tensor lies in a file beside the folder."""
    tensors = load_file(folder / SINGLE)
    save_file({NORM: tensors.pop(NORM)}, folder.parent / "evil.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "rest.safetensors", metadata={"format": "pt"})
    (folder / SINGLE).unlink()
    places = dict.fromkeys(tensors, "rest.safetensors") | {NORM: "../evil.safetensors"}
    (folder / INDEX).write_bytes(orjson.dumps({"metadata": {}, "weight_map": places}))
    return f"{INDEX}: {NORM} in '../evil.safetensors'"


def two_models(folder: Path) -> str:
    """One model in a single file, another one in the files of an index."""
    tensors = load_file(folder / SINGLE)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_bytes(orjson.dumps({"metadata": {}, "weight_map": places}))
    return f"both {SINGLE} and {INDEX}"


def adapter(folder: Path) -> str:
    """An adapter beside the weights, which transformers would add."""
    (folder / "adapter_config.json").write_text("{}")
    return "adapter_config.json: transformers adds the adapter"


def other_weights(folder: Path) -> str:
    """A config that names weights in another file."""
    config = orjson.loads((folder / "config.json").read_bytes())
    save_file(load_file(folder / SINGLE), folder / "second.safetensors")
    (folder / "config.json").write_bytes(orjson.dumps(config | {"transformers_weights": "second.safetensors"}))
    return "transformers_weights = 'second.safetensors'"


def tied_and_different(folder: Path) -> str:
    """Tied embeddings by the config, and an output layer in the weights that is another one."""
    tensors = load_file(folder / SINGLE)
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps(config | {"tie_word_embeddings": True}))
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    return "model.embed_tokens.weight and lm_head.weight: they differ, although config.json ties them (tie_word_emb"


@pytest.mark.parametrize("spoil", [outside, two_models, adapter, other_weights, tied_and_different])
@pytest.mark.parametrize("action", ["verify", "from-hf", "extend"])
def test_weights_that_programs_read_differently_are_refused(
    action: str, spoil: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled = write_llama(tmp_path / "spoiled")
    message = spoil(spoiled)
    words = {
        "verify": [str(spoiled), str(spoiled)],
        "from-hf": [str(spoiled), str(tmp_path / "out")],
        "extend": [str(spoiled), str(tmp_path / "out"), "--tokenizer", str(spoiled)],
    }[action]
    assert main(["convert", action, *words]) == ExitCode.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_index_of_the_single_file_alone_is_read(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    places = dict.fromkeys(load_file(folder / SINGLE), SINGLE)
    (folder / INDEX).write_bytes(orjson.dumps({"metadata": {}, "weight_map": places}))
    assert main(["convert", "verify", str(folder), str(folder)]) == 0


def saved_as(architecture: str, **changes: Any) -> Callable[[Path], None]:
    """A folder that another class of transformers saves."""

    def save(folder: Path) -> None:
        config = transformers.AutoConfig.for_model(**SMALL | changes)
        getattr(transformers, architecture)(config).save_pretrained(folder)

    return save


def rewritten(names: Callable[[str], str]) -> Callable[[Path], None]:
    """A folder whose tensors have other names."""

    def save(folder: Path) -> None:
        write_llama(folder)
        save_file({names(name): tensor for name, tensor in load_file(folder / SINGLE).items()}, folder / SINGLE)

    return save


def adapter_alone(folder: Path) -> None:
    """What peft saves of an adapter."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "llama"}')
    save_file({"base_model.model.model.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")


def quantized(folder: Path) -> None:
    """What bitsandbytes leaves, its note in config.json taken out."""
    write_llama(folder)
    tensors = load_file(folder / SINGLE)
    narrow = {name: tensor.char() for name, tensor in tensors.items() if "proj" in name}
    save_file(tensors | narrow, folder / SINGLE)


def noted_as_quantized(folder: Path) -> None:
    """A config.json that says how the weights are quantized."""
    write_llama(folder)
    config = orjson.loads((folder / "config.json").read_bytes())
    note = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_bytes(orjson.dumps(config | note))


FOREIGN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a classifier": (
        saved_as("LlamaForSequenceClassification"),
        "score.weight: this is a LlamaForSequenceClassification with a head that gives no words",
        "Use the language model that it was made from.",
    ),
    "a tied classifier": (
        saved_as("LlamaForSequenceClassification", tie_word_embeddings=True),
        "score.weight: this is a LlamaForSequenceClassification",
        "Use the language model that it was made from.",
    ),
    "a model without a head": (
        saved_as("LlamaModel"),
        "this is a LlamaModel, a language model without its output layer",
        "Use the folder that has lm_head.weight too",
    ),
    "a tied model without a head": (
        saved_as("LlamaModel", tie_word_embeddings=True),
        "this is a LlamaModel, a language model without its output layer",
        "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)",
    ),
    "an adapter": (adapter_alone, "adapter_config.json: is the description of an adapter", "merge_and_unload()"),
    "an adapter inside": (
        rewritten(lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight")),
        "tensors of an adapter (PEFT)",
        "Merge it first",
    ),
    "GPTQ": (
        rewritten(lambda name: name.replace("proj.weight", "proj.qweight")),
        "quantized weights cannot be trained",
        "Use the model that was quantized",
    ),
    "bitsandbytes": (quantized, "down_proj.weight is I8", "Use the model that was quantized"),
    "noted as quantized": (noted_as_quantized, "quantization_config = 'gptq'", "Use the model that was quantized."),
    "a model that sees": (
        rewritten(lambda name: f"language_model.{name}"),
        "a model that reads more than text",
        "Save its language model as a folder of its own (docs/families.md)",
    ),
}


@pytest.mark.parametrize("name", list(FOREIGN))
def test_what_is_no_language_model_is_told_as_what_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, found, remedy = FOREIGN[name]
    write(tmp_path / "hf")
    capsys.readouterr()  # progress bars
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "out")]) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert found in said
    assert remedy in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("word", ["auto", "torch.bfloat16", "float7"])
def test_a_dtype_that_transformers_fails_over_is_put_right(workshop: Workshop, tmp_path: Path, word: str) -> None:
    shutil.copytree(workshop.hf, tmp_path / "hf")
    config = orjson.loads((workshop.hf / "config.json").read_bytes())
    (tmp_path / "hf/config.json").write_bytes(orjson.dumps(config | {"dtype": word}))
    assert main(["convert", "verify", str(tmp_path / "hf"), str(tmp_path / "hf")]) == 0
    assert main(["convert", "extend", str(tmp_path / "hf"), str(tmp_path / "out"), "--new-tokens", "myocarditis"]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (model.dtype, model.config.vocab_size) == (torch.float32, 321)
