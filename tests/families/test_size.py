from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.size import (
    active_parameter_count,
    flops_per_token,
    memory_per_rank,
    non_embedding_parameter_count,
    parameter_count,
)
from tests.families.folders import MODELS, write_fields

LLAMA_3_8B = ModelShape(
    family="llama",
    layers=32,
    hidden=4096,
    ffn_hidden=14336,
    heads=32,
    query_groups=8,
    head_dim=128,
    vocabulary=128256,
    max_positions=8192,
    norm_epsilon=1e-5,
    rope_base=5e5,
    dtype="bfloat16",
)


def run_of(world: dict[str, Any], precision: str = "bf16") -> RunConfig:
    """A run with one sequence of 8,192 tokens in each micro batch."""
    return config_from_dict(
        {
            "run": {"folder": "run"},
            "model": {"hf": "hf"},
            "data": {"sequence_length": 8192, "sources": {"text": {"paths": ["text"]}}},
            "training": {"tokens": "1 steps", "global_batch_size": 64, "precision": precision},
            "schedule": {"peak": 1e-5},
            "parallel": world,
        }
    )


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_count_is_that_of_transformers(tmp_path: Path, kind: str) -> None:
    fields = MODELS[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    shape = read_shape(write_fields(tmp_path, fields))
    assert parameter_count(shape) == model.num_parameters()
    embeddings = 101 * 32 * (1 if shape.tied_embeddings else 2)
    assert non_embedding_parameter_count(shape) == model.num_parameters() - embeddings


def test_the_published_count_of_llama_3() -> None:
    assert parameter_count(LLAMA_3_8B) == 8_030_261_248


def test_the_published_counts_of_mixtral() -> None:
    mixtral = replace(
        LLAMA_3_8B, family="mixtral", vocabulary=32000, experts=8, experts_per_token=2, expert_ffn_hidden=14336
    )
    assert parameter_count(mixtral) == 46_702_792_704
    assert active_parameter_count(mixtral) == 12_879_925_248
    # Two of eight experts work for a token, and so do the router and all else.
    norms, embedding = 65 * 4096, 32000 * 4096
    assert flops_per_token(mixtral, 8192) == 6 * (12_879_925_248 - embedding - norms) + 6 * 32 * 4096 * 8192


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


def test_flops_are_six_a_matrix_weight_and_half_the_attention_square() -> None:
    norms = 65 * 4096
    matrices = 8_030_261_248 - 128256 * 4096 - norms
    assert flops_per_token(LLAMA_3_8B, 8192) == 6 * matrices + 6 * 32 * 4096 * 8192
    # Tying takes parameters away, not work.
    assert flops_per_token(replace(LLAMA_3_8B, tied_embeddings=True), 8192) == flops_per_token(LLAMA_3_8B, 8192)


def test_memory_of_one_rank_is_eighteen_bytes_a_parameter_in_bf16() -> None:
    memory = memory_per_rank(LLAMA_3_8B, run_of({}), world_size=1)
    parameters = 8_030_261_248
    assert (memory.parameters, memory.gradients, memory.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters)
    layer = 4 * 4096 + 3 * 4096 + 3 * 1024 + 4 * 14336
    assert memory.activations == 8192 * (32 * layer * 2 + 128256 * (2 + 4))
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
    assert memory.activations == 8192 * 2 * 16 * 2 * (4 * 4096 + (3 * 4096 + 3 * 1024 + 4 * 14336) // 4)


def test_an_mlp_without_a_gate_keeps_half() -> None:
    neox = replace(LLAMA_3_8B, gated_mlp=False)
    run = run_of({})
    spared = memory_per_rank(LLAMA_3_8B, run, 1).activations - memory_per_rank(neox, run, 1).activations
    assert spared == 8192 * 32 * 2 * 2 * 14336
