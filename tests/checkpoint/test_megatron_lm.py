"""Checkpoints that another program wrote with Megatron-Core itself: read by their names, to the last bit."""

import copy
import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_cpt.checkpoint.convert import hf_from_megatron
from megatron_cpt.checkpoint.dcp import TRACKER, Stored, alternatives, find_shards, in_hybrid_layers, match_places
from megatron_cpt.checkpoint.hf_weights import load_hf_weights
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import assert_same_tensors, megatron_config, write_model
from tests.families.folders import MODELS, write_config
from tests.parallel.matrix import HAS_BOTH_MODELS
from tests.ranks import Ranks


def write_foreign(
    hf: Path, root: Path, tensor: int = 1, per_layer_keys: bool = False, norms_alone: bool = False
) -> None:
    """A job: the folder's weights in Megatron-Core's own GPTModel, saved as Megatron-LM saves it: iteration 100.

    One process pads its vocabulary to 128 rows, as Megatron-LM does; beside the weights are an optimizer's tensor, a
    random state that only a full unpickler would read, and a number.
    """
    rows = 128 if tensor == 1 else 102
    groups.init_model_parallel(ParallelSettings(tensor=tensor))
    shape = read_shape(hf)
    config = megatron_config(
        shape,
        add_qkv_bias=shape.query_key_value_bias,
        qk_layernorm=shape.query_key_norm,
        tensor_model_parallel_size=tensor,
    )
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=shape.query_key_norm)
    model = GPTModel(
        config,
        spec,
        vocab_size=rows,
        max_sequence_length=64,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=shape.tied_embeddings,
    )
    if tensor == 1:
        load_padded(model, hf, rows)
    else:
        load_hf_weights([model], shape, hf)
    content = model.sharded_state_dict(metadata={"non_homogeneous_layers": True} if per_layer_keys else None)
    if norms_alone:
        rename(content, "self_attention.linear_qkv.layer_norm_", "input_layernorm.")
        rename(content, "mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")
    folder = root / "iter_0000100"
    if groups.rank() == 0:
        folder.mkdir(parents=True)
        (root / TRACKER).write_text("100\n")
    torch.distributed.barrier()
    random = ShardedObject("rng_state", {"numpy": object}, (1,), (0,), replica_id=groups.rank())
    step = ShardedTensor.from_rank_offsets("optimizer.state.step", torch.ones(1), replica_id=groups.rank())
    dist_checkpointing.save({"model": content, "optimizer": step, "rng_state": random, "iteration": 100}, str(folder))


def write_foreign_hybrid(hf: Path, root: Path) -> None:
    """A job: the folder's weights in Megatron-Core's own HybridModel, a layer for attention and one for its MLP.

    Its specs ask for Transformer Engine; these are of local layers, under the same names.
    """
    hybrid_block = importlib.import_module("megatron.core.models.hybrid.hybrid_block")
    hybrid_model = importlib.import_module("megatron.core.models.hybrid.hybrid_model")
    mlp_layer = importlib.import_module("megatron.core.ssm.mlp_layer")
    groups.init_model_parallel(ParallelSettings())
    shape = read_shape(hf)
    options = ModelOptions(sequence_length=shape.max_positions)
    [ours] = build_model(shape, options)
    load_hf_weights([ours], shape, hf)
    spec = get_gpt_layer_local_spec(
        normalization="RMSNorm", num_experts=shape.experts or None, qk_layernorm=shape.query_key_norm
    ).submodules
    attention = TransformerLayerSubmodules(
        input_layernorm=spec.input_layernorm, self_attention=spec.self_attention, self_attn_bda=spec.self_attn_bda
    )
    mlp = TransformerLayerSubmodules(pre_mlp_layernorm=spec.pre_mlp_layernorm, mlp=spec.mlp, mlp_bda=spec.mlp_bda)
    layers = hybrid_block.HybridStackSubmodules(
        attention_layer=ModuleSpec(TransformerLayer, submodules=attention),
        mlp_layer=ModuleSpec(mlp_layer.MLPLayer, submodules=mlp),
        moe_layer=ModuleSpec(TransformerLayer, submodules=mlp),
    )
    config = replace(ours.config, num_layers=2 * shape.layers, moe_layer_freq=1)
    model = hybrid_model.HybridModel(
        config,
        ModuleSpec(hybrid_block.HybridStack, params={"post_layer_norm": False}, submodules=layers),
        vocab_size=shape.vocabulary,
        max_sequence_length=shape.max_positions,
        hybrid_layer_pattern=("*E" if shape.experts else "*-") * shape.layers,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=shape.tied_embeddings,
    )
    model.decoder.final_norm = copy.deepcopy(ours.decoder.final_layernorm)  # theirs is Transformer Engine's
    for ours_part, its_part in ((ours.embedding, model.embedding), (ours.output_layer, model.output_layer)):
        its_part.load_state_dict(ours_part.state_dict())
    for number, layer in enumerate(model.decoder.layers):
        whole = ours.decoder.layers[number // 2].state_dict()
        layer.load_state_dict({name: whole[name] for name in layer.state_dict()})
    folder = root / "iter_0000100"
    folder.mkdir(parents=True)
    (root / TRACKER).write_text("100\n")
    dist_checkpointing.save({"model": model.sharded_state_dict(), "iteration": 100}, str(folder))


def load_padded(model: GPTModel, hf: Path, rows: int) -> None:
    """Fills a whole model from the folder; the rows of its padding are left as they are."""
    shape = read_shape(hf)
    padded = {value: value.data for value in model.parameters() if value.shape[0] == rows}
    for value in padded:
        value.data = value.data[: shape.vocabulary].clone()
    load_hf_weights([model], shape, hf)
    for value, whole in padded.items():
        whole[: shape.vocabulary] = value.data
        value.data = whole


def rename(content: dict[str, Any], old: str, new: str) -> None:
    """Saves tensors under other keys."""
    for entry in content.values():
        entry.key = entry.key.replace(old, new)


def to_hf(folder: Path, hf_config: Path, output: Path) -> str | None:
    """A job: the checkpoint of another program to a folder. Returns the error that the user would see."""
    groups.init_model_parallel(ParallelSettings())
    try:
        hf_from_megatron(folder, hf_config, output, shard_bytes=20_000)
    except (BadInput, IntegrityFault) as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("per_layer_keys", [False, True])
def test_a_checkpoint_of_megatron_core_itself_is_read_to_the_last_bit(
    one_rank: Ranks, tmp_path: Path, kind: str, per_layer_keys: bool
) -> None:
    hf = write_model(tmp_path / "hf", MODELS[kind])
    one_rank.call(write_foreign, hf=hf, root=tmp_path / "run", per_layer_keys=per_layer_keys)
    config = write_config_of(hf, tmp_path / "config")
    assert one_rank.call(to_hf, folder=tmp_path / "run", hf_config=config, output=tmp_path / "out") == [None]
    assert_same_tensors(tmp_path / "out", hf)


@pytest.mark.skipif(not HAS_BOTH_MODELS, reason="Megatron-Core has no HybridModel before 0.18; this release is older")
@pytest.mark.parametrize("kind", ["llama", "qwen2_tied", "qwen3", "mixtral"])
def test_a_checkpoint_of_a_hybrid_model_is_read_to_the_last_bit(one_rank: Ranks, tmp_path: Path, kind: str) -> None:
    hf = write_model(tmp_path / "hf", MODELS[kind])
    one_rank.call(write_foreign_hybrid, hf=hf, root=tmp_path / "run")
    config = write_config_of(hf, tmp_path / "config")
    assert one_rank.call(to_hf, folder=tmp_path / "run", hf_config=config, output=tmp_path / "out") == [None]
    assert_same_tensors(tmp_path / "out", hf)


def test_layers_of_a_hybrid_model_are_attention_and_mlp_in_turn(tmp_path: Path) -> None:
    shape = read_shape(write_config(tmp_path))
    keys = {
        "decoder.layers.0.self_attention.linear_qkv.weight": "decoder.layers.0.self_attention.linear_qkv.weight",
        "decoder.layers.11.input_layernorm.weight": "decoder.layers.22.input_layernorm.weight",
        "decoder.layers.11.pre_mlp_layernorm.weight": "decoder.layers.23.pre_mlp_layernorm.weight",
        "decoder.layers.3.mlp.router.weight": "decoder.layers.7.mlp.router.weight",
        "decoder.final_layernorm.weight": "decoder.final_norm.weight",
        "output_layer.weight": "output_layer.weight",
    }
    places = {key: Stored(key, (1,), (0,), (1,), (1,)) for key in keys}
    found = in_hybrid_layers(places, shape, tmp_path)
    assert {name: place.key for name, place in found.items()} == keys
    parallel = replace(shape, parallel_residual=True)
    with pytest.raises(BadInput, match="attention and MLP in parallel"):
        in_hybrid_layers(places, parallel, tmp_path)


def write_config_of(hf: Path, folder: Path) -> Path:
    """A folder with the config alone: all that is needed beside the checkpoint."""
    folder.mkdir()
    shutil.copyfile(hf / "config.json", folder / "config.json")
    return folder


def test_a_checkpoint_of_two_ranks_is_read_whole(one_rank: Ranks, two_ranks: Ranks, tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", MODELS["qwen2"])
    two_ranks.call(write_foreign, hf=hf, root=tmp_path / "run", tensor=2)
    assert one_rank.call(to_hf, folder=tmp_path / "run", hf_config=hf, output=tmp_path / "out") == [None]
    assert_same_tensors(tmp_path / "out", hf)


@pytest.mark.parametrize("per_layer_keys", [False, True])
def test_norms_that_are_saved_alone_are_found(one_rank: Ranks, tmp_path: Path, per_layer_keys: bool) -> None:
    hf = write_model(tmp_path / "hf", MODELS["llama"])
    one_rank.call(write_foreign, hf=hf, root=tmp_path / "run", per_layer_keys=per_layer_keys, norms_alone=True)
    assert one_rank.call(to_hf, folder=tmp_path / "run", hf_config=hf, output=tmp_path / "out") == [None]
    assert_same_tensors(tmp_path / "out", hf)


def test_the_command_reads_an_iteration_by_name(one_rank: Ranks, tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", MODELS["llama"])
    one_rank.call(write_foreign, hf=hf, root=tmp_path / "run")
    words = ["convert", "to-hf", str(tmp_path / "run/iter_0000100"), str(tmp_path / "out")]
    assert main(words) == 2
    assert main([*words, "--hf-config", str(hf)]) == 0
    assert_same_tensors(tmp_path / "out", hf)


def test_what_does_not_fit_is_told_in_full(one_rank: Ranks, tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", MODELS["qwen2"])
    one_rank.call(write_foreign, hf=hf, root=tmp_path / "run")
    wrong = write_config(tmp_path / "wrong", model_type="qwen3", intermediate_size=46)
    [told] = one_rank.call(to_hf, folder=tmp_path / "run", hf_config=wrong, output=tmp_path / "out")
    assert "decoder.layers.mlp.linear_fc1.weight is (4, 88, 32)" in told
    assert "config.json calls for (4, 92, 32)" in told
    assert "q_layernorm.weight, decoder.layers.self_attention.k_layernorm.weight" in told
    assert "tensors are missing that config.json calls for (2)" in told
    assert "decoder.layers.self_attention.linear_qkv.bias" in told
    assert "tensors are there that a qwen3 of this config.json does not have (1)" in told
    assert not (tmp_path / "out").exists()


def test_a_changed_table_and_a_torn_file_are_refused(one_rank: Ranks, tmp_path: Path) -> None:
    hf = write_model(tmp_path / "hf", MODELS["llama"])
    one_rank.call(write_foreign, hf=hf, root=tmp_path / "run")
    shards = tmp_path / "run/iter_0000100"
    for file in shards.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    [told] = one_rank.call(to_hf, folder=shards, hf_config=hf, output=tmp_path / "out")
    assert "cannot be read" in told
    (shards / ".metadata").write_bytes(b"no table")
    [told] = one_rank.call(to_hf, folder=shards, hf_config=hf, output=tmp_path / "out")
    assert "not a table of contents" in told
    assert not (tmp_path / "out").exists()


def test_the_tracker_names_the_newest_iteration(tmp_path: Path) -> None:
    for name in ("iter_0000007", "release"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".metadata").touch()
    (tmp_path / TRACKER).write_text("7")
    assert find_shards(tmp_path) == tmp_path / "iter_0000007"
    assert find_shards(tmp_path / "release") == tmp_path / "release"
    (tmp_path / TRACKER).write_text("release\n")
    assert find_shards(tmp_path) == tmp_path / "release"
    for word in ("8", "../iter_0000007", ""):
        (tmp_path / TRACKER).write_text(word)
        with pytest.raises(BadInput, match="Name one of its iteration folders"):
            find_shards(tmp_path)


def test_pickles_of_the_older_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "iter_0000007/mp_rank_00").mkdir(parents=True)
    (tmp_path / TRACKER).write_text("7")
    with pytest.raises(BadInput, match="--ckpt-convert-format torch_dist"):
        find_shards(tmp_path)


def test_a_norm_has_several_names() -> None:
    assert alternatives("decoder.layers.3.input_layernorm.weight") == [
        "decoder.layers.3.input_layernorm.weight",
        "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.3.self_attention.in_proj.layer_norm_weight",
    ]
    assert alternatives("decoder.final_layernorm.weight") == ["decoder.final_layernorm.weight"]


def test_more_rows_are_padding_and_fewer_are_another_model(tmp_path: Path) -> None:
    shape = read_shape(write_config(tmp_path))
    place = Stored("embedding.word_embeddings.weight", (101, 32), (0, 0), (101, 32), (101, 32))
    places = {place.key: place}
    assert match_places(places, {place.key: (128, 32)}, shape, tmp_path) == places
    with pytest.raises(BadInput, match=r"is \(100, 32\)"):
        match_places(places, {place.key: (100, 32)}, shape, tmp_path)
