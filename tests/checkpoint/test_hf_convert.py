"""Whole conversions: a folder to a checkpoint and back, and the comparison with transformers."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import torch
from megatron.core.models.common.language_module.language_module import LanguageModule
from safetensors.torch import save_file

from megatron_cpt.checkpoint import convert
from megatron_cpt.checkpoint.convert import (
    LogitDifference,
    checkpoint_from_hf,
    compare,
    hf_from_checkpoint,
    load_model,
    verify,
)
from megatron_cpt.checkpoint.dcp import StoredTensors
from megatron_cpt.checkpoint.hf_folder import SINGLE
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.config.schema import ParallelSettings, Precision
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors, write_llama, write_model
from tests.checkpoint.weights import save_weights
from tests.families.folders import MODELS, write_fields
from tests.ranks import Ranks
from tests.texts import SHARED

STORIES = SHARED / "model_stories260K/hf"


def to_checkpoint(hf: Path, output: Path, tensor: int = 1, pipeline: int = 1) -> type[Exception] | None:
    """A job: from-hf, or on another layout a save of the model. Returns the kind of error that the user would see."""
    groups.init_model_parallel(ParallelSettings(tensor=tensor, pipeline=pipeline))
    try:
        if tensor == pipeline == 1:
            checkpoint_from_hf(hf, output)
        else:
            save_weights(output, load_model(hf, read_shape(hf), "fp32"), hf)
    except (BadInput, IntegrityFault) as error:
        return type(error)
    return None


def to_hf(checkpoint: Path, output: Path, dtype: str | None = None) -> type[Exception] | None:
    """A job: to-hf on one process."""
    groups.init_model_parallel(ParallelSettings())
    try:
        hf_from_checkpoint(checkpoint, output, dtype)
    except (BadInput, IntegrityFault) as error:
        return type(error)
    return None


def difference(source: Path, hf: Path) -> LogitDifference | None:
    """A job: verify on one process."""
    groups.init_model_parallel(ParallelSettings())
    found = verify(source, hf)
    return found and found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_to_a_checkpoint_and_back_changes_no_bit(one_rank: Ranks, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_llama(tmp_path / "hf", dtype)
    assert one_rank.call(to_checkpoint, hf=folder, output=tmp_path / "checkpoint") == [None]
    assert one_rank.call(to_hf, checkpoint=tmp_path / "checkpoint", output=tmp_path / "out") == [None]
    assert_same_tensors(tmp_path / "out", folder)
    assert one_rank.call(to_checkpoint, hf=folder, output=tmp_path / "checkpoint") == [BadInput]


def test_a_parameter_under_several_keys_comes_back_from_any_layout(
    one_rank: Ranks, two_ranks: Ranks, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "hf", MODELS["qwen3_next"], torch.bfloat16)
    for pool, tensor in ((one_rank, 1), (two_ranks, 2)):
        checkpoint, output = tmp_path / f"checkpoint {tensor}", tmp_path / f"out {tensor}"
        assert pool.call(to_checkpoint, hf=folder, output=checkpoint, tensor=tensor) == [None] * tensor
        keys = StoredTensors(checkpoint / "shards").sizes
        assert keys["decoder.layers.0.self_attention.in_proj.weight.query"] == (20, 32)
        assert keys["decoder.layers.0.self_attention.conv1d.weight.value"] == (24, 1, 4)
        assert one_rank.call(to_hf, checkpoint=checkpoint, output=output, dtype="bfloat16") == [None]
        assert_same_tensors(output, folder)


DTYPES_OF_A_FOLDER: dict[str, tuple[dict[str, torch.dtype], dict[str, str | None], str]] = {
    "the config names another": ({}, {"dtype": "bfloat16"}, "float32"),
    "norms are wider": ({"norm": torch.float32, "": torch.bfloat16}, {"dtype": "bfloat16"}, "bfloat16"),
    "norms are wider than anything named": ({"norm": torch.float32, "": torch.bfloat16}, {"dtype": None}, "float32"),
    "none is named": ({"": torch.bfloat16}, {"dtype": None}, "bfloat16"),
    "two are named": ({"": torch.bfloat16}, {"dtype": "float32", "torch_dtype": "bfloat16"}, "bfloat16"),
    "the name is odd": ({"": torch.float16}, {"dtype": "torch.float16"}, "float16"),
    "it is for the weights to say": ({"": torch.bfloat16}, {"dtype": "auto"}, "bfloat16"),
    "two half precisions": ({"norm": torch.float16, "": torch.bfloat16}, {"dtype": "int8"}, "float32"),
    "double": ({"mlp": torch.float64, "": torch.float32}, {"dtype": "float64"}, "float64"),
}


def through_a_checkpoint(folders: list[Path]) -> None:
    """A job: each folder to a checkpoint and back, beside it."""
    for folder in folders:
        to_checkpoint(folder, folder.with_suffix(".checkpoint"))
        to_hf(folder.with_suffix(".checkpoint"), folder.with_suffix(".out"))


def test_each_tensor_keeps_the_dtype_that_it_has_whatever_the_config_says(one_rank: Ranks, tmp_path: Path) -> None:
    original = write_llama(tmp_path / "hf")
    folders = [tmp_path / f"{number}" for number in range(len(DTYPES_OF_A_FOLDER))]
    for folder, (dtypes, words, _) in zip(folders, DTYPES_OF_A_FOLDER.values(), strict=True):
        shutil.copytree(original, folder)
        tensors = {
            name: tensor.to(next((dtype for part, dtype in dtypes.items() if part in name), tensor.dtype))
            for name, tensor in all_tensors(original).items()
        }
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        config = orjson.loads((folder / "config.json").read_bytes()) | words
        (folder / "config.json").write_bytes(orjson.dumps({name: value for name, value in config.items() if value}))
    one_rank.call(through_a_checkpoint, folders=folders)
    for folder, (_, words, word) in zip(folders, DTYPES_OF_A_FOLDER.values(), strict=True):
        assert_same_tensors(folder.with_suffix(".out"), folder)
        written = orjson.loads((folder.with_suffix(".out") / "config.json").read_bytes())
        assert {written[name] for name in ("dtype", "torch_dtype") if name in written} == {word}, words


def test_the_command_says_what_is_rounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_llama(tmp_path / "hf", torch.float64)
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert "checkpoint; rounded: 39 tensors from float64 to float32\n" in capsys.readouterr().out
    narrow = ["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "narrow"), "--dtype", "float16"]
    assert main(narrow) == 0
    assert "narrow; rounded: 39 tensors from float32 to float16\n" in capsys.readouterr().out
    assert main(["convert", "to-hf", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}\n"


@pytest.mark.parametrize("kind", ["llama_tied", "mistral", "qwen2", "qwen3", "gpt_neox"])
def test_a_checkpoint_of_two_ranks_is_read_by_one(one_rank: Ranks, two_ranks: Ranks, tmp_path: Path, kind: str) -> None:
    folder = write_model(tmp_path / "hf", MODELS[kind])
    for name, layout in {"tensor": {"tensor": 2}, "pipeline": {"pipeline": 2}}.items():
        checkpoint, output = tmp_path / name, tmp_path / f"{name}-out"
        assert two_ranks.call(to_checkpoint, hf=folder, output=checkpoint, **layout) == [None, None]
        assert one_rank.call(to_hf, checkpoint=checkpoint, output=output) == [None]
        assert_same_tensors(output, folder)


def test_an_export_in_another_dtype_says_so(one_rank: Ranks, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    one_rank.call(to_checkpoint, hf=folder, output=tmp_path / "checkpoint")
    one_rank.call(to_hf, checkpoint=tmp_path / "checkpoint", output=tmp_path / "out", dtype="bfloat16")
    for name, tensor in all_tensors(folder).items():
        assert torch.equal(all_tensors(tmp_path / "out")[name], tensor.bfloat16())
    assert orjson.loads((tmp_path / "out" / "config.json").read_bytes())["dtype"] == "bfloat16"


def test_a_checkpoint_that_was_cut_short_or_changed_is_refused(one_rank: Ranks, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    checkpoint = tmp_path / "checkpoint"
    one_rank.call(to_checkpoint, hf=folder, output=checkpoint)
    shard = max((checkpoint / "shards").glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert one_rank.call(to_hf, checkpoint=checkpoint, output=tmp_path / "out") == [IntegrityFault]
    (checkpoint / "complete.json").unlink()
    assert one_rank.call(to_hf, checkpoint=checkpoint, output=tmp_path / "out") == [BadInput]
    assert not (tmp_path / "out").exists()


def test_verify_sees_one_changed_weight(one_rank: Ranks, tmp_path: Path) -> None:
    folder, other = write_llama(tmp_path / "hf"), write_llama(tmp_path / "other")
    [same] = one_rank.call(difference, source=folder, hf=other)
    assert same.largest < 1e-5
    assert (same.positions, same.same_choice) == (64, 1.0)
    tensors = all_tensors(other)
    tensors["model.layers.2.self_attn.v_proj.weight"][3, 4] += 1.0
    save_file(tensors, other / SINGLE)
    [changed] = one_rank.call(difference, source=folder, hf=other)
    assert changed.largest > 0.01


def test_a_value_that_transformers_refuses_by_its_type_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "hf", MODELS["qwen3_next"] | {"router_aux_loss_coef": 0.0})
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"router_aux_loss_coef": 0.0', '"router_aux_loss_coef": 0'))
    assert main(["convert", "verify", str(folder), str(folder)]) == 2
    assert "'router_aux_loss_coef' expected float" in capsys.readouterr().err


def test_the_figures_of_a_difference() -> None:
    reference = torch.tensor([[[1.0, 2.0], [3.0, 1.0]]])
    logits = torch.tensor([[[1.0, 2.5], [1.0, 1.5]]])
    found = compare(reference, logits)
    # Softmax of (1, 2), (1, 2.5), (3, 1) and (1, 1.5).
    first = 0.268941 * math.log(0.268941 / 0.182426) + 0.731059 * math.log(0.731059 / 0.817574)
    second = 0.880797 * math.log(0.880797 / 0.377541) + 0.119203 * math.log(0.119203 / 0.622459)
    assert found == LogitDifference(2.0, 0.75, 2, 0.5, divergence=pytest.approx((first + second) / 2, rel=1e-4))


@pytest.mark.skipif(not STORIES.is_dir(), reason="the real model stories260K is not on this machine")
def test_a_real_model_goes_in_and_out(one_rank: Ranks, tmp_path: Path) -> None:
    assert one_rank.call(to_checkpoint, hf=STORIES, output=tmp_path / "checkpoint") == [None]
    assert one_rank.call(to_hf, checkpoint=tmp_path / "checkpoint", output=tmp_path / "out") == [None]
    assert_same_tensors(tmp_path / "out", STORIES)
    [found] = one_rank.call(difference, source=tmp_path / "checkpoint", hf=tmp_path / "out")
    # Its logits reach 20 and more: float32 rounding alone is a few 1e-5.
    assert found.largest < 1e-4
    assert found.same_choice == 1.0


def test_the_command_prints_the_difference_and_fails_beyond_the_tolerance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_llama(tmp_path / "hf")
    assert main(["convert", "verify", str(folder), str(folder), "--tolerance", "0"]) == 4
    said = capsys.readouterr()
    assert "at 64 positions" in said.out  # the longest that the model was made for
    assert "the models differ by" in said.err


def test_a_window_that_is_one_token_off_is_seen_beyond_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = MODELS["mistral"] | {"sliding_window": 150, "max_position_embeddings": 512}
    words = ["convert", "verify", *[str(write_model(tmp_path / "hf", fields))] * 2]
    assert main(words) == 0
    assert "at 214 positions" in capsys.readouterr().out

    def load_with_a_wider_window(source: Path, shape: ModelShape, precision: Precision) -> list[LanguageModule]:
        assert shape.local_window is not None
        return load_model(source, replace(shape, local_window=shape.local_window + 1), precision)

    monkeypatch.setattr(convert, "load_model", load_with_a_wider_window)
    assert main(words) == 4
    capsys.readouterr()
    assert main([*words, "--sequences", "2", "--length", "64"]) == 0  # as it was checked before
    said = capsys.readouterr().out
    assert "at 128 positions" in said
    assert "no sequence was longer than the model's longest window: --length 214 is longer" in said


def test_a_source_of_another_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The logits would be those of one config twice."""
    fields = MODELS["mistral"]
    folder = write_model(tmp_path / "hf", fields)
    shutil.copytree(folder, tmp_path / "other")
    wider = {"sliding_window": fields["sliding_window"] + 1, "rms_norm_eps": 1e-3}
    config = orjson.loads((folder / "config.json").read_bytes()) | wider
    (tmp_path / "other/config.json").write_bytes(orjson.dumps(config))
    assert main(["convert", "from-hf", str(folder), str(tmp_path / "checkpoint")]) == 0
    for source in (folder, tmp_path / "checkpoint"):
        assert main(["convert", "verify", str(source), str(folder)]) == 0
        assert main(["convert", "verify", str(source), str(tmp_path / "other")]) == 2
        said = capsys.readouterr().err
        assert (
            "describes another model" in said and "norm_epsilon is 1e-05 and 0.001" in said and "local_window" in said
        )


@pytest.mark.parametrize(
    ("words", "named"), [(["--length", "513"], "must be 1 to 512"), (["--sequences", "0"], "must be at least 1")]
)
def test_sequences_that_a_model_was_not_made_for_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    folder = str(write_llama(tmp_path / "hf", max_position_embeddings=512))
    assert main(["convert", "verify", folder, folder, *words]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "changes", "length"),
    [
        ("llama", {}, 128),
        ("mistral", {"sliding_window": 4096}, 4160),
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 4100}, 4100),
        ("mistral", {"sliding_window": 9000}, 128),
        ("phi3_long", {"original_max_position_embeddings": 4096}, 4160),
        ("dynamic_rope", {"max_position_embeddings": 300}, 364),
        ("llama4_text", {"attention_chunk_size": 4096}, 4160),
        # As published: both begin there.
        ("llama4_text", {"attention_chunk_size": 8192, "floor_scale": 8192, "max_position_embeddings": 262_144}, 8256),
    ],
)
def test_a_sequence_is_longer_than_windows_and_original_positions(
    tmp_path: Path, kind: str, changes: dict[str, int], length: int
) -> None:
    fields = MODELS[kind] | {"max_position_embeddings": 8192} | changes
    assert convert.length_beyond_edges(read_shape(write_fields(tmp_path, fields))) == length


def test_bf16_is_judged_beside_transformers_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = write_llama(tmp_path / "hf"), write_llama(tmp_path / "other")
    assert main(["convert", "verify", str(folder), str(other), "--precision", "bf16"]) == 0
    assert "transformers in bf16: divergence" in capsys.readouterr().out
    tensors = all_tensors(other)
    tensors["model.layers.2.self_attn.v_proj.weight"][3] += 1.0
    save_file(tensors, other / SINGLE, metadata={"format": "pt"})
    assert main(["convert", "verify", str(folder), str(other), "--precision", "bf16"]) == 4
    assert "more than bf16 explains" in capsys.readouterr().err


def test_experts_of_any_width_are_compared_in_bf16(tmp_path: Path) -> None:
    """transformers' default product of experts wants rows of 16 bytes or a multiple; 20 numbers in bf16 are 40.

    Rounding sends some tokens to other experts, which few positions would weigh too much.
    """
    folder = write_model(tmp_path / "hf", MODELS["glm4_moe"] | {"moe_intermediate_size": 20})
    assert main(["convert", "verify", str(folder), str(folder), "--precision", "bf16", "--sequences", "32"]) == 0
