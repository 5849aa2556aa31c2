"""Hugging Face to Megatron-Core and back, under every layout."""

from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import save_file

from megatron_cpt.checkpoint.convert import transformers_logits
from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes
from megatron_cpt.checkpoint.hf_folder import INDEX, SINGLE, open_hf_tensors
from megatron_cpt.checkpoint.hf_weights import check_tensors, fill, join_shards
from megatron_cpt.config.errors import BadInput
from megatron_cpt.families.shape import name_table, read_shape
from megatron_cpt.families.weights import local_size
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors, load_and_export, write_llama, write_model
from tests.families.folders import DIVIDED, MODELS
from tests.params import quick_among
from tests.ranks import Ranks

# One of each kind of layer, where what is tried does not hang on the family.
KINDS = [
    *("llama_tied", "gpt_neox", "qwen2_moe", "qwen3_moe_mixed", "olmo2", "olmo3", "gemma2", "gemma3", "phi3_long"),
    *("deepseek_v3", "gpt_oss"),
]
TOKENS = torch.randint(101, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each kind."""
    return write_model(tmp_path_factory.mktemp(request.param) / "hf", MODELS[request.param])


@pytest.fixture(scope="module")
def expected(model: Path) -> np.ndarray:
    """The logits of transformers' own model."""
    logits = transformers_logits(model, TOKENS).numpy()
    assert logits.std() > 0.5
    return logits


def check_layout(
    ranks: Ranks, model: Path, expected: np.ndarray, output: Path, tensor: int, pipeline: int
) -> list[str]:
    """In, logits, out; returns the names of the safetensors."""
    results = ranks.call(
        load_and_export,
        folder=model,
        output=output,
        tokens=TOKENS,
        tensor=tensor,
        pipeline=pipeline,
        shard_bytes=40_000,
    )
    logits = [result for result in results if result is not None]
    assert len(logits) == len(results) // pipeline
    for ours in logits:
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    assert_same_tensors(output, model)
    return sorted(path.name for path in output.glob("*.safetensors"))


def test_one_process(one_rank: Ranks, model: Path, expected: np.ndarray, tmp_path: Path) -> None:
    files = check_layout(one_rank, model, expected, tmp_path / "out", tensor=1, pipeline=1)
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 2


@pytest.mark.parametrize("model", quick_among(MODELS, DIVIDED), indirect=True)
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2)])
def test_two_processes(
    two_ranks: Ranks, model: Path, expected: np.ndarray, tmp_path: Path, tensor: int, pipeline: int
) -> None:
    check_layout(two_ranks, model, expected, tmp_path / "out", tensor, pipeline)


@pytest.mark.parametrize("model", KINDS, indirect=True)
def test_two_replicas(two_ranks: Ranks, model: Path, expected: np.ndarray, tmp_path: Path) -> None:
    check_layout(two_ranks, model, expected, tmp_path / "out", tensor=1, pipeline=1)


@pytest.mark.parametrize("model", quick_among(MODELS, KINDS), indirect=True)
def test_four_processes(four_ranks: Ranks, model: Path, expected: np.ndarray, tmp_path: Path) -> None:
    check_layout(four_ranks, model, expected, tmp_path / "out", tensor=2, pipeline=2)


def test_slices_of_any_number_of_ranks_join_to_the_same_tensors(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", dtype=torch.bfloat16, num_key_value_heads=4)
    shape, tensors = read_shape(folder), all_tensors(folder)
    with open_hf_tensors(folder) as opened:
        for rule, place in name_table(shape).values():
            for ranks in (1, 2, 4):
                shards = [
                    torch.full(local_size(rule, shape, rank, ranks), torch.nan, dtype=torch.bfloat16)
                    for rank in range(ranks)
                ]
                for rank, shard in enumerate(shards):
                    fill(shard, rule, place, shape, opened, rank, ranks)
                    assert not shard.isnan().any()
                for name, whole in join_shards(shards, rule, place, shape, TensorDtypes("bfloat16")).items():
                    assert torch.equal(whole, tensors[name])


def test_padding_rows_are_the_mean_of_all_rows(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    shape = read_shape(folder)
    rule, place = name_table(shape)["embedding.word_embeddings.weight"]
    shard = torch.zeros(51, 32)
    with open_hf_tensors(folder) as opened:
        fill(shard, rule, place, shape, opened, 1, 2)
    rows = all_tensors(folder)["model.embed_tokens.weight"]
    torch.testing.assert_close(shard[50], rows.mean(dim=0))
    assert torch.equal(shard[:50], rows[51:])


def change_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replaces tensors of a folder of one file; None removes one."""
    tensors = all_tensors(folder) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / SINGLE)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.norm.weight": None}, "model.norm.weight: tensors are missing"),
        ({"model.layers.4.mlp.up_proj.weight": torch.ones(2)}, "model.layers.4.mlp.up_proj.weight: tensors are there"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(40)}, "q_proj.bias: tensors are there"),
        ({"model.layers.1.mlp.up_proj.weight": torch.ones(44, 31)}, "up_proj.weight is (44, 31) and not (44, 32)"),
        ({"lm_head.weight": torch.ones(101, 32, dtype=torch.int8)}, "lm_head.weight is I8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, torch.Tensor | None], named: str) -> None:
    folder = write_llama(tmp_path / "hf")
    change_tensors(folder, changes)
    with pytest.raises(BadInput) as error, open_hf_tensors(folder) as opened:
        check_tensors(opened, read_shape(folder))
    assert named in str(error.value)


@pytest.mark.parametrize("change", [{"beta": torch.tensor(0.6)}, {"eps": None}])
def test_a_constant_of_the_activation_is_no_other(tmp_path: Path, change: dict[str, torch.Tensor | None]) -> None:
    folder = write_model(tmp_path / "hf", MODELS["apertus"], torch.bfloat16)
    change_tensors(folder, {f"model.layers.2.mlp.act_fn.{name}": value for name, value in change.items()})
    with (
        pytest.raises(BadInput, match=rf"layers\.2\.mlp\.act_fn\.{next(iter(change))}: "),
        open_hf_tensors(folder) as opened,
    ):
        check_tensors(opened, read_shape(folder))


def test_frequencies_kept_by_old_folders_are_no_surplus(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    change_tensors(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)})
    with open_hf_tensors(folder) as opened:
        check_tensors(opened, read_shape(folder))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_tensor_that_is_not_finite_is_refused(tmp_path: Path, poison: float) -> None:
    folder = write_llama(tmp_path / "hf")
    weights = all_tensors(folder)["model.layers.2.mlp.down_proj.weight"].clone()
    weights[3, 5] = poison
    change_tensors(folder, {"model.layers.2.mlp.down_proj.weight": weights})
    with open_hf_tensors(folder) as opened, pytest.raises(BadInput, match=r"layers\.2\.mlp\.down_proj.*NaN"):
        opened.read("model.layers.2.mlp.down_proj.weight", 1, 0, 6)


def test_an_export_holds_what_the_parent_held(one_rank: Ranks, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    before = orjson.loads((folder / "config.json").read_bytes())
    output = tmp_path / "out"
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    arguments = {"folder": folder, "output": output, "tokens": tokens, "tensor": 1, "pipeline": 1}
    one_rank.call(load_and_export, **arguments, shard_bytes=10**9)
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["config.json", "generation_config.json", "lineage.json", "model.safetensors", "sha256.json", "tokenizer.json"]
    )
    assert orjson.loads((output / "config.json").read_bytes()) == before
    assert (output / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert orjson.loads((output / "lineage.json").read_bytes()) == {"parent": "base"}
    assert sorted(tmp_path.iterdir()) == [folder, output]
    with pytest.raises(AssertionError, match="there is something here already"):
        one_rank.call(load_and_export, **arguments, shard_bytes=10**9)


def test_the_index_names_the_file_of_every_tensor(one_rank: Ranks, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", shards="50KB")
    output = tmp_path / "out"
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    one_rank.call(load_and_export, folder=folder, output=output, tokens=tokens, tensor=1, pipeline=1, shard_bytes=1)
    ours, theirs = (orjson.loads((place / INDEX).read_bytes()) for place in (output, folder))
    assert set(ours["weight_map"]) == set(theirs["weight_map"])
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    # A parameter is never divided: embedding, output, final norm, and six of each of four layers.
    assert len(set(ours["weight_map"].values())) == 27
