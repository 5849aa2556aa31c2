"""Folders in fewer bits, and with all experts of a layer in one tensor: read as bf16, trained, and written as bf16."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from megatron_cpt.checkpoint.convert import transformers_logits
from megatron_cpt.checkpoint.hf_folder import SINGLE, open_hf_tensors
from megatron_cpt.checkpoint.hf_weights import check_tensors
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.families.shape import read_shape
from tests.checkpoint.hf_models import all_tensors, write_model
from tests.families.folders import MODELS, with_vocabulary
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import VOCABULARY, Workshop, write_tokenizer_of

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


MXFP4: dict[str, Any] = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
STACK = "model.layers.1.mlp.experts."


def in_full(folder: Path) -> dict[str, Tensor]:
    """What the tensors of a folder with MXFP4 are in bf16, by transformers."""
    stored = all_tensors(folder)
    found = {name: tensor for name, tensor in stored.items() if not name.endswith(("_blocks", "_scales"))}
    for name, blocks in stored.items():
        if name.endswith("_blocks"):
            whole = name.removesuffix("_blocks")
            found[whole] = convert_moe_packed_tensors(blocks, stored[f"{whole}_scales"])
    return found


RELEASED = MODELS["gpt_oss"] | {"hidden_size": 64, "intermediate_size": 32, "swiglu_limit": 7.0}


@pytest.fixture
def gpt_oss(tmp_path: Path) -> Path:
    """A small GPT-OSS as it is released."""
    return write_released(tmp_path / "hf", RELEASED)


def write_released(folder: Path, fields: dict[str, Any]) -> Path:
    """A GPT-OSS whose experts' matrices are in MXFP4, of random bytes."""
    write_model(folder, fields, torch.bfloat16)
    stored: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(3)
    for name, tensor in all_tensors(folder).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = tensor.shape
            size = (experts, rows, columns // 32, 16)
            stored[f"{name}_blocks"] = torch.randint(256, size, dtype=torch.uint8, generator=generator)
            # Factors of 1/16 to 1/128.
            stored[f"{name}_scales"] = torch.randint(120, 124, size[:3], dtype=torch.uint8, generator=generator)
        else:
            stored[name] = tensor
    save_file(stored, folder / SINGLE, metadata={"format": "pt"})
    config = orjson.loads((folder / "config.json").read_bytes()) | {"quantization_config": MXFP4}
    (folder / "config.json").write_bytes(orjson.dumps(config))
    return folder


def test_mxfp4_is_read_as_transformers_reads_it(gpt_oss: Path) -> None:
    whole = in_full(gpt_oss)
    with open_hf_tensors(gpt_oss) as tensors:
        check_tensors(tensors, read_shape(gpt_oss))
        assert not any(name.endswith(("_blocks", "_scales")) for name in tensors.names)
        gate, up, down = (f"{STACK}4.{name}_proj.weight" for name in ("gate", "up", "down"))
        assert (tensors.dtype(gate), tensors.size(gate), tensors.size(down)) == ("BF16", (32, 64), (64, 32))
        both = whole[f"{STACK}gate_up_proj"][4].T
        assert torch.equal(tensors.read(gate, 0, 0, 32), both[0::2])
        assert torch.equal(tensors.read(up, 0, 3, 9), both[1::2][3:12])
        assert torch.equal(tensors.read(down, 1, 5, 20), whole[f"{STACK}down_proj"][4].T[:, 5:25])
        bias = whole[f"{STACK}gate_up_proj_bias"][4]
        assert torch.equal(tensors.read(f"{STACK}4.up_proj.bias", 0, 2, 8), bias[1::2][2:10])


def test_mxfp4_comes_out_in_bf16_and_says_so(
    one_rank: Ranks, gpt_oss: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "from-hf", str(gpt_oss), str(tmp_path / "checkpoint")]) == 0
    assert "8 tensors from mxfp4 to bfloat16" in capsys.readouterr().out  # two in each of four layers
    assert main(["convert", "verify", str(tmp_path / "checkpoint"), str(gpt_oss)]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    ours, theirs = all_tensors(tmp_path / "out"), in_full(gpt_oss)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    assert "quantization_config" not in orjson.loads((tmp_path / "out/config.json").read_bytes())
    tokens = torch.arange(40).view(1, -1)
    assert torch.equal(transformers_logits(tmp_path / "out", tokens), transformers_logits(gpt_oss, tokens))


@pytest.mark.ci
def test_a_run_from_mxfp4_is_checked_and_exports_bf16(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = write_released(tmp_path / "hf", with_vocabulary(RELEASED, VOCABULARY)), tmp_path / "run"
    write_tokenizer_of(workshop, folder)
    path = workshop.write_config(run, model={"hf": str(folder)})
    assert main(["plan", str(path)]) == 0
    assert "model.hf holds weights in mxfp4: they are read as bf16" in capsys.readouterr().out
    settings = (
        "training.tokens=2 steps",
        "schedule.warmup=null",
        "validation.sets={}",
        "checkpoint.export_hf.end=true",
    )
    assert one_rank.call(train, path=path, overrides=settings) == [0]
    assert "71 tensors from float32 to bfloat16" in (run / "log.txt").read_text()
    check = orjson.loads((run / "initial_loss_check.json").read_bytes())
    assert check["ours"] == pytest.approx(check["losses"], abs=1e-5)
    before, after = in_full(folder), all_tensors(run / "hf")
    assert {name: (one.dtype, one.shape) for name, one in after.items()} == {
        name: (one.dtype, one.shape) for name, one in before.items()
    }
    # The weights of norms are so large that in bf16 two small steps are none.
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert {name for name in before if ".experts." in name} <= moved


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({f"{STACK}gate_up_proj_blocks": None}, "quantized weights cannot be trained"),
        ({f"{STACK}down_proj_bias": None}, "tensors are missing that config.json calls for"),
        ({f"{STACK}down_proj_bias": torch.zeros(6, 63)}, "is (63,) and not (64,)"),
        ({f"{STACK}down_proj_bias": torch.zeros(7, 64)}, "6.down_proj.bias"),
        ({f"{STACK}down_proj_bias": torch.zeros(6)}, "down_proj_bias"),
        ({f"{STACK}down_proj_bias": torch.full((6, 64), torch.nan)}, "a NaN or an infinity"),
    ],
)
def test_a_tensor_of_all_experts_that_does_not_fit_is_refused(
    one_rank: Ranks,
    gpt_oss: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    named: str,
) -> None:
    tensors = {name: tensor for name, tensor in (all_tensors(gpt_oss) | change).items() if tensor is not None}
    save_file(tensors, gpt_oss / SINGLE, metadata={"format": "pt"})
    assert main(["convert", "from-hf", str(gpt_oss), str(tmp_path / "checkpoint")]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "checkpoint").exists()


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
