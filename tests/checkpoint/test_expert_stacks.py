"""Folders with all experts of a layer in one tensor or each by itself: exports have the form that was read."""

import shutil
from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_cpt.checkpoint.convert import transformers_logits
from megatron_cpt.checkpoint.hf_dtypes import parent_dtypes
from megatron_cpt.checkpoint.hf_folder import SINGLE, open_hf_tensors
from megatron_cpt.checkpoint.hf_weights import check_tensors
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.families.shape import places_in_stacks, read_shape
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors, in_one, turned, write_model
from tests.families.folders import MODELS
from tests.ranks import Ranks

STACK = "model.layers.1.mlp.experts"
BLOCK = 8, 12


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """A small Qwen3.5 whose experts are each by themselves."""
    return write_model(tmp_path / "apart", MODELS["qwen3_5_moe_text"], torch.bfloat16)


@pytest.fixture
def folder(apart: Path, tmp_path: Path) -> Path:
    """The same model with all experts of a layer in one tensor."""
    return with_tensors(apart, tmp_path / "hf", in_one(all_tensors(apart)))


def with_tensors(folder: Path, other: Path, tensors: dict[str, Tensor]) -> Path:
    """A folder like another one, with these tensors."""
    other.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    save_file(tensors, other / SINGLE, metadata={"format": "pt"})
    return other


def there_and_back(folder: Path, tmp_path: Path, *words: str) -> Path:
    """The export of a checkpoint of a folder."""
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out"), *words]) == 0
    return tmp_path / "out"


def test_both_forms_are_one_model(one_rank: Ranks, apart: Path, folder: Path, tmp_path: Path) -> None:
    tokens = torch.arange(40).view(1, -1)
    assert torch.equal(transformers_logits(folder, tokens), transformers_logits(apart, tokens))
    with open_hf_tensors(folder) as one, open_hf_tensors(apart) as other:
        check_tensors(one, read_shape(folder))
        assert one.names == other.names
        for name in (f"{STACK}.4.{kind}_proj.weight" for kind in ("gate", "up", "down")):
            assert torch.equal(one.read(name, 0, 3, 7), other.read(name, 0, 3, 7))
            assert torch.equal(one.read(name, 1, 2, 9), other.read(name, 1, 2, 9))
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert main(["convert", "verify", str(tmp_path / "checkpoint"), str(apart)]) == 0


def test_a_checkpoint_tells_the_form(one_rank: Ranks, apart: Path, folder: Path, tmp_path: Path) -> None:
    out = there_and_back(folder, tmp_path, "--shard-gib", "1e-5")
    assert_same_tensors(out, folder)
    wide = ["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "wide"), "--dtype", "float32"]
    assert main(wide) == 0
    assert_same_tensors(
        tmp_path / "wide",
        with_tensors(folder, tmp_path / "w", {name: one.float() for name, one in all_tensors(folder).items()}),
    )


def test_where_nothing_tells_it_is_the_published_one(
    one_rank: Ranks, apart: Path, folder: Path, tmp_path: Path
) -> None:
    assert_same_tensors(there_and_back(apart, tmp_path), apart)
    older = shutil.copytree(tmp_path / "checkpoint/hf", tmp_path / "older")
    assert parent_dtypes(older).stacks == ()
    note = older / "tensor_dtypes.json"
    told = orjson.loads(note.read_bytes())
    del told["stacks"]
    note.write_bytes(orjson.dumps(told))
    shape = read_shape(older)
    places = places_in_stacks(shape, parent_dtypes(older).stacks)
    assert {place.stack for place in places.values()} == {name for name in all_tensors(folder) if ".experts." in name}
    assert places.keys() == {name for name in all_tensors(apart) if ".experts." in name}


def test_a_folder_of_both_forms_becomes_one_that_transformers_reads(one_rank: Ranks, tmp_path: Path) -> None:
    """Of a model that sees, whose names in files begin otherwise than those of the language model alone."""
    stacked = write_model(tmp_path / "stacked", MODELS["qwen3_5_moe"])
    whole, first = all_tensors(stacked), ".layers.0.mlp.experts."
    assert any(first in name for name in whole) and not any(f"{first}0." in name for name in whole)
    mixed = {name: tensor for name, tensor in whole.items() if first not in name}
    mixed |= {name: tensor for name, tensor in each_by_itself(stacked).items() if first in name}
    out = there_and_back(with_tensors(stacked, tmp_path / "mixed", mixed), tmp_path)
    assert_same_tensors(out, stacked)


def each_by_itself(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, those of all experts of a layer apart, under the names that they have in files."""
    with open_hf_tensors(folder) as tensors:
        prefix = tensors.stored_name("model.norm.weight").removesuffix("norm.weight")
        found = {name: tensors.read(name, 0, 0, tensors.size(name)[0]) for name in tensors.names if ".experts." in name}
    others = {name: tensor for name, tensor in all_tensors(folder).items() if ".experts." not in name}
    return others | {prefix + name.removeprefix("model."): tensor.contiguous() for name, tensor in found.items()}


@pytest.mark.parametrize("kind", ["llama4", "gpt_oss"])
def test_experts_by_themselves_are_refused_where_transformers_does_not_read_them(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "hf", MODELS[kind])
    with open_hf_tensors(folder) as tensors:
        check_tensors(tensors, read_shape(folder))
    each = with_tensors(folder, tmp_path / "each", each_by_itself(folder))
    with open_hf_tensors(each) as tensors, pytest.raises(BadInput) as error:
        check_tensors(tensors, read_shape(each))
    assert "in one tensor for a layer alone" in str(error.value)


def test_experts_that_are_there_twice_are_refused(apart: Path, folder: Path, tmp_path: Path) -> None:
    both = with_tensors(apart, tmp_path / "both", all_tensors(apart) | all_tensors(folder))
    with open_hf_tensors(both) as tensors, pytest.raises(BadInput) as error:
        check_tensors(tensors, read_shape(both))
    assert f"{STACK}.down_proj" in str(error.value)
    assert "does not have (8)" in str(error.value)  # two in each of four layers


@pytest.mark.parametrize(
    ("size", "named"),
    [
        ((6, 25, 32), f"{STACK}.gate_up_proj"),  # gate and up cannot have the same rows
        ((6, 24, 31), "and not (12, 32)"),
        ((5, 24, 32), f"{STACK}.5.gate_proj.weight"),
        ((6, 32, 24), "is (16, 24) and not (12, 32)"),  # turned, as in a Qwen3-VL
    ],
)
def test_a_tensor_of_another_size_is_refused(folder: Path, size: tuple[int, ...], named: str) -> None:
    save_file(all_tensors(folder) | {f"{STACK}.gate_up_proj": torch.zeros(size)}, folder / SINGLE)
    with open_hf_tensors(folder) as tensors, pytest.raises(BadInput) as error:
        check_tensors(tensors, read_shape(folder))
    assert named in str(error.value)


def test_matrices_that_are_square_are_not_turned(tmp_path: Path) -> None:
    """As transformers has it, which compares sizes: gate and up are 32 rows of 32 columns here."""
    fields = MODELS["qwen3_vl_moe"]
    fields = fields | {"text_config": fields["text_config"] | {"moe_intermediate_size": 16}}
    folder = write_model(tmp_path / "hf", fields)
    tensors = turned(all_tensors(folder))  # back: down is turned now, and gate and up are
    name = f"{STACK.replace('model.', 'model.language_model.', 1)}".replace("layers.1", "layers.2")
    gate_up, down = (tensors[f"{name}.{kind}_proj"] for kind in ("gate_up", "down"))
    save_file(tensors | {f"{name}.down_proj": down.transpose(1, 2).contiguous()}, folder / SINGLE)
    with open_hf_tensors(folder) as opened:
        check_tensors(opened, read_shape(folder))
        of_table = "model.layers.2.mlp.experts.3"
        assert torch.equal(opened.read(f"{of_table}.up_proj.weight", 0, 0, 16), gate_up[3, 16:])
        assert torch.equal(opened.read(f"{of_table}.down_proj.weight", 0, 0, 32), down[3])


def test_matrices_of_all_experts_in_fp8_are_read_as_bf16(one_rank: Ranks, folder: Path, tmp_path: Path) -> None:
    wide, stored = all_tensors(folder), {}
    generator = torch.Generator().manual_seed(3)
    for name, tensor in wide.items():
        if ".experts." not in name:
            stored[name] = tensor
            continue
        numbers = tensor.to(torch.float8_e4m3fn)
        rows, columns = (-(-size // block) for size, block in zip(tensor.shape[1:], BLOCK, strict=True))
        scales = torch.rand((len(tensor), rows, columns), generator=generator) + 0.5
        of_each = scales.repeat_interleave(BLOCK[0], 1).repeat_interleave(BLOCK[1], 2)
        wide[name] = (numbers.float() * of_each[:, : tensor.size(1), : tensor.size(2)]).bfloat16()
        stored |= {name: numbers, f"{name}_scale_inv": scales}
    config = orjson.loads((folder / "config.json").read_bytes())
    scheme = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
    (folder / "config.json").write_bytes(orjson.dumps(config | {"quantization_config": scheme}))
    save_file(stored, folder / SINGLE, metadata={"format": "pt"})
    with open_hf_tensors(folder) as tensors:
        name = f"{STACK}.2.up_proj.weight"
        assert tensors.dequantized == "8 tensors from fp8"
        assert torch.equal(tensors.read(name, 0, 5, 6), wide[f"{STACK}.gate_up_proj"][2, 17:23])
        assert torch.equal(tensors.read(name, 1, 5, 20), wide[f"{STACK}.gate_up_proj"][2, 12:, 5:25])
    out = there_and_back(folder, tmp_path)
    assert all_tensors(out).keys() == wide.keys()
    assert all(torch.equal(tensor, wide[name]) for name, tensor in all_tensors(out).items())
    assert main(["convert", "verify", str(tmp_path / "checkpoint"), str(folder)]) == 0
