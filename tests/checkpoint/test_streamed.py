"""Checkpoints that are written one parameter at a time are those that Megatron-Core reads, in any layout."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_cpt.checkpoint.convert import checkpoint_from_hf, hf_from_checkpoint, load_model
from megatron_cpt.checkpoint.dcp import Stored, StoredTensors, write_streamed
from megatron_cpt.checkpoint.hf_export import export_hf
from megatron_cpt.checkpoint.hf_folder import SINGLE
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors, write_llama, write_model
from tests.families.folders import MODELS
from tests.ranks import Ranks

# One of each kind of layer, and experts in all layers and in some.
KINDS = ["llama_tied", "qwen2", "gpt_neox", "mixtral", "qwen3_moe_mixed", "olmo2", "gemma2", "gemma3", "apertus"]


def there_and_back(hf: Path, checkpoint: Path, output: Path) -> str | None:
    """A job: from-hf and to-hf. Returns the error that the user would see."""
    groups.init_model_parallel(ParallelSettings())
    try:
        checkpoint_from_hf(hf, checkpoint)
        hf_from_checkpoint(checkpoint, output)
    except BadInput as error:
        return str(error)
    return None


def load_and_export(checkpoint: Path, output: Path) -> None:
    """A job: the checkpoint through Megatron-Core's own loader into two ranks, and out again."""
    groups.init_model_parallel(ParallelSettings(tensor=2))
    shape = read_shape(checkpoint / "hf")
    export_hf(load_model(checkpoint, shape, "fp32"), shape, checkpoint / "hf", output)


@pytest.mark.parametrize("kind", KINDS)
def test_megatron_core_reads_what_was_written(one_rank: Ranks, two_ranks: Ranks, tmp_path: Path, kind: str) -> None:
    hf, checkpoint = write_model(tmp_path / "hf", MODELS[kind]), tmp_path / "checkpoint"
    assert one_rank.call(there_and_back, hf=hf, checkpoint=checkpoint, output=tmp_path / "out") == [None]
    assert_same_tensors(tmp_path / "out", hf)
    two_ranks.call(load_and_export, checkpoint=checkpoint, output=tmp_path / "two")
    assert_same_tensors(tmp_path / "two", hf)


def test_weights_that_are_wider_than_the_config_says_stay_so(one_rank: Ranks, tmp_path: Path) -> None:
    hf = write_llama(tmp_path / "hf", torch.bfloat16)
    exact = all_tensors(hf)["model.norm.weight"].float() + 2**-20
    save_file(all_tensors(hf) | {"model.norm.weight": exact}, hf / SINGLE)
    checkpoint = tmp_path / "checkpoint"
    assert one_rank.call(there_and_back, hf=hf, checkpoint=checkpoint, output=tmp_path / "out") == [None]
    stored = StoredTensors(checkpoint / "shards")
    place = Stored("decoder.final_layernorm.weight", (32,), (0,), (32,), (32,))
    assert torch.equal(stored.read(place), exact)


def test_a_number_that_is_none_is_named_and_nothing_is_left(one_rank: Ranks, tmp_path: Path) -> None:
    hf = write_llama(tmp_path / "hf")
    weights = all_tensors(hf)["model.layers.2.mlp.down_proj.weight"].clone()
    weights[3, 5] = torch.nan
    save_file(all_tensors(hf) | {"model.layers.2.mlp.down_proj.weight": weights}, hf / SINGLE)
    [told] = one_rank.call(there_and_back, hf=hf, checkpoint=tmp_path / "checkpoint", output=tmp_path / "out")
    assert "model.layers.2.mlp.down_proj.weight" in told
    assert "holds a NaN or an infinity" in told
    assert list(tmp_path.iterdir()) == [hf]
    save_file({name: value.nan_to_num() for name, value in all_tensors(hf).items()}, hf / SINGLE)
    assert one_rank.call(there_and_back, hf=hf, checkpoint=tmp_path / "checkpoint", output=tmp_path / "out") == [None]


ROWS = torch.arange(24.0).view(4, 6)
HALVES = {
    "upper": Stored("rows", (4, 6), (0, 0), (2, 6), (2, 6)),
    "lower": Stored("rows", (4, 6), (2, 0), (2, 6), (2, 6)),
}


def write_halves(shards: Path, places: Mapping[str, Stored]) -> StoredTensors:
    """A tensor of 4 rows in chunks of two."""

    def read(name: str) -> Tensor:
        return ROWS[:2] if name == "upper" else ROWS[2:]

    write_streamed(shards, places, {"note/shard_0_1": 3}, dict.fromkeys(places, torch.float32), read)
    return StoredTensors(shards)


def test_any_part_of_a_tensor_is_read_across_its_chunks(tmp_path: Path) -> None:
    stored = write_halves(tmp_path, HALVES)
    assert stored.sizes == {"rows": (4, 6)}
    assert torch.equal(stored.read(Stored("rows", (4, 6), (0, 0), (4, 6), (4, 6))), ROWS)
    assert torch.equal(stored.read(Stored("rows", (4, 6), (1, 2), (2, 3), (2, 3))), ROWS[1:3, 2:5])
    assert torch.equal(stored.read(Stored("rows", (4, 6), (3, 0), (1, 6), (6,))), ROWS[3])
    with pytest.raises(IntegrityFault, match="parts of rows are missing"):
        stored.read(Stored("rows", (4, 6), (3, 0), (2, 6), (2, 6)))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_stored_number_that_is_none_is_told(tmp_path: Path, wrong: float) -> None:
    place = Stored("rows", (1, 2), (0, 0), (1, 2), (1, 2))
    write_streamed(tmp_path, {"rows": place}, {}, {"rows": torch.float32}, lambda name: torch.tensor([[1.0, wrong]]))
    with pytest.raises(IntegrityFault, match="rows holds a NaN or an infinity"):
        StoredTensors(tmp_path).read(place)


def test_a_chunk_that_is_cut_off_is_told(tmp_path: Path) -> None:
    stored = write_halves(tmp_path, HALVES)
    for path in tmp_path.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(IntegrityFault, match="rows cannot be read"):
        stored.read(Stored("rows", (4, 6), (0, 0), (4, 6), (4, 6)))
