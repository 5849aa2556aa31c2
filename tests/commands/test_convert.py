"""`convert` as a user meets it: which folders are refused before any program reads their weights."""

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE
from megatron_cpt.commands.dispatch import main
from megatron_cpt.runs.status import ExitCode
from tests.checkpoint.hf_models import write_llama

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
    sound, spoiled = write_llama(tmp_path / "sound"), write_llama(tmp_path / "spoiled")
    message = spoil(spoiled)
    words = {
        "verify": [str(sound), str(spoiled)],
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
