"""Memory of a rank, by literal numbers and against what a small model really keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.data.loader import make_batch
from megatron_cpt.families.memory import chunks_in_flight, layer_bytes, memory_per_rank
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.size import parameter_count
from megatron_cpt.model.build import ModelOptions, build_model
from megatron_cpt.model.forward import loss_step
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import seed_everything
from tests.families.folders import MODELS, of_sizes, write_fields
from tests.families.test_size import LLAMA_3_8B
from tests.ranks import Ranks

# Bytes of a token in Llama 3 8B, in bf16: inputs and outputs of norms, attention, angles, MLP; final norm and logits.
LAYER = 2 * (4 * 4096 + 3 * (4096 + 1024) + 3 * 14336) + 4 * 32 + 4 * 2 * 128
LOSS = 4 * 4096 + 128256 * (2 + 4)


def run_of(world: dict[str, Any], precision: str = "bf16", **training: Any) -> RunConfig:
    """A run with one sequence of 8,192 tokens in each micro batch."""
    return config_from_dict(
        {
            "run": {"folder": "run"},
            "model": {"hf": "hf"},
            "data": {"sequence_length": 8192, "sources": {"text": {"paths": ["text"]}}},
            "training": {"tokens": "1 steps", "global_batch_size": 64, "precision": precision, **training},
            "schedule": {"peak_lr": 1e-5},
            "parallel": world,
        }
    )


def test_the_memory_of_a_stage_counts_the_experts_of_its_own_layers() -> None:
    mixed = replace(
        LLAMA_3_8B,
        family="qwen3_moe",
        experts=4,
        experts_per_token=2,
        expert_ffn_hidden=100,
        dense_layers=frozenset(range(16)),
        query_key_norm=True,
    )
    attention = 4096 * (2 * 4096 + 2 * 1024) + 2 * 4096 + 2 * 128
    first = 16 * (attention + 3 * 4096 * 14336) + 128256 * 4096
    last = 16 * (attention + 4 * 3 * 4096 * 100 + 4 * 4096) + 128256 * 4096 + 4096
    memory = memory_per_rank(mixed, run_of({"pipeline": 2}), world_size=2)
    assert memory.parameters == 2 * max(first, last)
    assert parameter_count(mixed) == first + last


def test_memory_of_one_rank_is_eighteen_bytes_a_parameter_in_bf16() -> None:
    memory = memory_per_rank(LLAMA_3_8B, run_of({}), world_size=1)
    parameters = 8_030_261_248
    assert (memory.parameters, memory.gradients, memory.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters)
    assert memory.activations == 8192 * (32 * LAYER + LOSS)
    assert memory.total == 18 * parameters + memory.activations


def test_fp32_needs_no_main_parameters() -> None:
    memory = memory_per_rank(LLAMA_3_8B, run_of({}, "fp32"), world_size=1)
    assert memory.optimizer == 8 * 8_030_261_248
    assert memory.parameters == 4 * 8_030_261_248


def test_the_distributed_optimizer_divides_its_state_by_the_replicas() -> None:
    plain = memory_per_rank(LLAMA_3_8B, run_of({}), world_size=8)
    sharded = memory_per_rank(LLAMA_3_8B, run_of({"distributed_optimizer": True}), world_size=8)
    assert sharded.optimizer == plain.optimizer // 8
    assert (sharded.parameters, sharded.gradients) == (plain.parameters, plain.gradients)


def test_tensor_and_pipeline_divide_the_model() -> None:
    memory = memory_per_rank(LLAMA_3_8B, run_of({"tensor": 4, "pipeline": 2}), world_size=8)
    layer = 4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336)
    ends = 128256 * 4096
    # The first stage, full of micro batches in flight: 16 layers, the embedding, and all norms undivided.
    assert memory.parameters == 2 * (16 * layer // 4 + 16 * 2 * 4096 + ends // 4)
    shared = (2 * 3 * (4096 + 1024) + 4 * 32 + 2 * 3 * 14336) // 4
    kept = 2 * 16 * (2 * 4 * 4096 + 4 * 2 * 128 + shared)
    # What is sent on by two micro batches and one more; the gradients of a layer, and of its widest matrix.
    assert memory.activations == 8192 * (kept + 3 * 2 * 4096 + 4 * 4096 + 2 * 14336 // 4) + 2 * 4096 * 2 * 14336 // 4


def test_an_mlp_without_a_gate_keeps_two_of_three() -> None:
    neox = replace(LLAMA_3_8B, gated_mlp=False)
    run = run_of({})
    spared = memory_per_rank(LLAMA_3_8B, run, 1).activations - memory_per_rank(neox, run, 1).activations
    assert spared == 8192 * 32 * 2 * 14336


def test_latent_attention_keeps_values_as_wide_as_keys() -> None:
    latent = replace(
        LLAMA_3_8B,
        query_groups=32,
        head_dim=192,
        key_value_latent=512,
        query_latent=1536,
        value_head_dim=128,
        shared_key_dim=64,
    )
    # Norms; queries, keys, values and what is made of them; the output; latent vectors, the shared key, angles; MLP.
    numbers = 4 * 4096 + 4 * 32 * 192 + 32 * 128 + 2 * (1536 + 512) + 64 + 4 * 64 + 3 * 14336
    assert layer_bytes(latent, run_of({}), 0) == 2 * numbers + 4 * 32


def test_chunks_and_norms_without_a_weight_are_kept_where_layers_have_them() -> None:
    shape = replace(
        LLAMA_3_8B,
        local_chunk=2048,
        local_layers=frozenset({0, 1}),
        query_key_l2_norm=True,
        unturned_layers=frozenset({1, 2}),
    )
    # The outputs of chunks; queries and keys in fp32, before they are divided.
    chunks, normed = 2 * 4096, 4 * (4096 + 1024)
    assert [layer_bytes(shape, run_of({}), layer) - LAYER for layer in range(3)] == [chunks + normed, chunks, 0]
    assert layer_bytes(replace(shape, local_chunk=8192), run_of({}), 0) == LAYER + normed  # one chunk


def test_sequence_and_context_parallelism_divide_activations() -> None:
    plain = memory_per_rank(LLAMA_3_8B, run_of({"tensor": 4}), world_size=4)
    divided = memory_per_rank(LLAMA_3_8B, run_of({"tensor": 4, "sequence": True}), world_size=4)
    # Norms of all layers and the final one; the output layer gathers its whole input.
    assert plain.activations - divided.activations == 8192 * (32 * 2 * 3 * 4096 + 3 * 4096 - 2 * 4096)
    shared = memory_per_rank(LLAMA_3_8B, run_of({"tensor": 4, "sequence": True, "context": 2}), world_size=8)
    assert 0.5 < shared.activations / divided.activations < 0.55  # keys and values of all
    assert (shared.parameters, shared.optimizer) == (plain.parameters, plain.optimizer)


def test_recomputation_keeps_the_input_of_a_layer() -> None:
    full = memory_per_rank(LLAMA_3_8B, run_of({}, recompute="full"), 1)
    assert full.activations == 8192 * (32 * 2 * 4096 + LOSS)
    selective = memory_per_rank(LLAMA_3_8B, run_of({}, recompute="selective"), 1)
    assert selective.activations == 8192 * (32 * (LAYER - 2 * 3 * 14336) + LOSS)


def test_a_layer_that_is_computed_again_stands_beside_the_inputs_of_all() -> None:
    small = replace(LLAMA_3_8B, vocabulary=256)  # else the logits need more
    full = memory_per_rank(small, run_of({}, recompute="full"), 1)
    again = LAYER - 2 * 4096 + 4 * 4096 + 2 * 14336
    assert full.activations == 8192 * (32 * 2 * 4096 + again) + 2 * 4096 * 2 * 14336


def test_chunks_in_flight_of_an_interleaved_pipeline() -> None:
    # 4 stages of 2 chunks: the first stage runs 2 * 3 + 4 chunks ahead, and has one more under way.
    config = run_of({"pipeline": 4, "virtual_pipeline": 2})
    assert [chunks_in_flight(config, stage, 64) for stage in range(4)] == [11, 9, 7, 5]
    assert chunks_in_flight(config, 0, 4) == 8  # all chunks of all micro batches
    assert [chunks_in_flight(run_of({"pipeline": 4}), stage, 64) for stage in range(4)] == [4, 3, 2, 1]


def test_experts_are_divided_and_their_state_has_fewer_replicas() -> None:
    mixtral = replace(
        LLAMA_3_8B, family="mixtral", vocabulary=32000, experts=8, experts_per_token=2, expert_ffn_hidden=14336
    )
    experts = 32 * 8 * 3 * 4096 * 14336
    whole = memory_per_rank(mixtral, run_of({"distributed_optimizer": True}), world_size=8)
    divided = memory_per_rank(mixtral, run_of({"distributed_optimizer": True, "expert": 4}), world_size=8)
    assert whole.parameters - divided.parameters == 2 * experts * 3 // 4
    # A quarter of the experts over two replicas of them: the same share of the state.
    assert divided.optimizer == whole.optimizer


def kept_and_estimated(folder: Path, recompute: str) -> tuple[int, int]:
    """A job: bytes that autograd keeps of one forward pass, weights apart, and our estimate for layers and logits."""
    length, sequences = 256, 2
    config = config_from_dict(
        {
            "run": {"folder": "run"},
            "model": {"hf": str(folder), "weights": "random"},
            "data": {"sequence_length": length, "sources": {"text": {"paths": ["text"]}}},
            "training": {
                "tokens": "1 steps",
                "global_batch_size": sequences,
                "micro_batch_size": sequences,
                "precision": "fp32",
                "recompute": recompute,
            },
            "schedule": {"peak_lr": 1e-5},
        }
    )
    groups.init_model_parallel(config.parallel)
    seed_everything(1)
    shape = read_shape(folder)
    (model,) = build_model(shape, ModelOptions.of_run(config))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # by the place of their storage: what is kept twice counts once

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    windows = np.random.default_rng(0).integers(0, shape.vocabulary, (sequences, length + 1))
    scored, sources = np.full(sequences, length), np.zeros(sequences, dtype=np.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_step(iter([make_batch(windows, scored, sources, groups.device())]), model)
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    layers = sum(layer_bytes(shape, config, layer) for layer in range(shape.layers))
    return found, round(sequences * length * (layers + 2 * 4 * shape.hidden + 4 * shape.vocabulary))


@pytest.mark.parametrize(
    ("kind", "recompute"),
    [("llama", "none"), ("llama", "selective"), ("llama", "full"), ("gpt_neox", "none"), ("qwen3_5_text", "none")],
)
def test_a_small_model_keeps_what_is_estimated(one_rank: Ranks, tmp_path: Path, kind: str, recompute: str) -> None:
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 6,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "head_dim": 32,
        "num_attention_heads": 4,
        "moe_intermediate_size": 96,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    }
    folder = write_fields(tmp_path, of_sizes(MODELS[kind], sizes))
    ((found, estimated),) = one_rank.call(kept_and_estimated, folder=folder, recompute=recompute)
    assert estimated == pytest.approx(found, rel=0.2)
