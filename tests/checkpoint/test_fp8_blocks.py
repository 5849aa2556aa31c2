"""Folders in fp8 with scales of blocks: read as bf16, trained, and written as bf16."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_cpt.checkpoint.convert import transformers_logits
from megatron_cpt.checkpoint.hf_folder import SINGLE, open_hf_tensors
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.families.shape import read_shape
from tests.checkpoint.hf_models import all_tensors, write_model
from tests.families.folders import MODELS
from tests.ranks import Ranks

ROWS, COLUMNS = 8, 12  # no multiple of either is a multiple of most sizes here: the last blocks are smaller
SCHEME: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [ROWS, COLUMNS],
}
FURTHER = "model.layers.4.eh_proj.weight"


def quantized(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix in fp8, the scales of its blocks, and what both are in bf16, block by block."""
    rows, columns = -(-matrix.size(0) // ROWS), -(-matrix.size(1) // COLUMNS)
    scales, small, wide = torch.empty(rows, columns), torch.empty_like(matrix), torch.empty_like(matrix).bfloat16()
    for row in range(rows):
        for column in range(columns):
            block = slice(row * ROWS, (row + 1) * ROWS), slice(column * COLUMNS, (column + 1) * COLUMNS)
            scales[row, column] = matrix[block].abs().max() / 448
            numbers = (matrix[block] / scales[row, column]).to(torch.float8_e4m3fn).float()
            small[block], wide[block] = numbers, (numbers * scales[row, column]).bfloat16()
    return small.to(torch.float8_e4m3fn), scales, wide


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small DeepSeek-V3 as it is released: in fp8 but for embeddings, norms and routers."""
    folder = write_model(tmp_path / "hf", MODELS["deepseek_v3"] | {"num_nextn_predict_layers": 1}, torch.bfloat16)
    tensors = all_tensors(folder) | {FURTHER: torch.randn(20, 30)}
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("proj.weight") or name.endswith("mqa.weight"):
            stored[name], stored[f"{name}_scale_inv"], _ = quantized(tensor.float())
        else:
            stored[name] = tensor
    save_file(stored, folder / SINGLE, metadata={"format": "pt"})
    config = orjson.loads((folder / "config.json").read_bytes()) | {"quantization_config": SCHEME}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    return folder


def expected(folder: Path) -> dict[str, Tensor]:
    """What the tensors of a folder are in bf16, block by block."""
    stored = all_tensors(folder)
    found = {name: tensor for name, tensor in stored.items() if not name.endswith("_scale_inv")}
    for name, tensor in found.items():
        if (scales := stored.get(f"{name}_scale_inv")) is not None:
            whole = scales.repeat_interleave(ROWS, 0).repeat_interleave(COLUMNS, 1)
            found[name] = (tensor.float() * whole[: tensor.size(0), : tensor.size(1)]).bfloat16()
    return found


def test_any_rows_and_columns_are_read_as_bf16(folder: Path) -> None:
    name = "model.layers.2.self_attn.kv_b_proj.weight"
    wide = expected(folder)[name]
    with open_hf_tensors(folder) as tensors:
        assert tensors.dtype(name) == "BF16"
        assert not any(each.endswith("_scale_inv") for each in (*tensors.names, *tensors.others))
        assert torch.equal(tensors.read(name, 0, 0, len(wide)), wide)
        assert torch.equal(tensors.read(name, 0, 5, 7), wide[5:12])
        assert torch.equal(tensors.read(name, 1, 3, 10), wide[:, 3:13])


def test_it_comes_out_in_bf16_and_says_so(
    one_rank: Ranks, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert "tensors from fp8 to bfloat16" in capsys.readouterr().out
    assert main(["convert", "verify", str(tmp_path / "checkpoint"), str(folder)]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    ours, theirs = all_tensors(tmp_path / "out"), expected(folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    config = orjson.loads((tmp_path / "out/config.json").read_bytes())
    assert "quantization_config" not in config
    # transformers reads the export by itself; the folder through what is read here.
    tokens = torch.arange(40).view(1, -1)
    assert torch.equal(transformers_logits(tmp_path / "out", tokens), transformers_logits(folder, tokens))


@pytest.mark.parametrize(
    "scheme",
    [
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        SCHEME | {"fmt": "e5m2"},
        SCHEME | {"quant_method": "compressed-tensors"},
    ],
)
def test_other_schemes_are_refused(folder: Path, scheme: dict[str, Any]) -> None:
    config = orjson.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps(config | {"quantization_config": scheme}))
    with pytest.raises(BadInput, match="quantized weights cannot be trained"):
        read_shape(folder)
