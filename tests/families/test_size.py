from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.size import (
    active_parameter_count,
    flops_per_token,
    non_embedding_parameter_count,
    palm_flops_per_token,
    parameter_count,
)
from tests.checkpoint.hf_models import transformers_count
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
)


@pytest.mark.parametrize("kind", list(MODELS))
def test_the_count_is_that_of_transformers(tmp_path: Path, kind: str) -> None:
    fields = MODELS[kind]
    count = transformers_count(fields)
    shape = read_shape(write_fields(tmp_path, fields))
    assert parameter_count(shape) == count
    embeddings = 101 * 32 * (1 if shape.tied_embeddings else 2)
    assert non_embedding_parameter_count(shape) == count - embeddings


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


def test_flops_are_six_a_matrix_weight_and_half_the_attention_square() -> None:
    norms = 65 * 4096
    matrices = 8_030_261_248 - 128256 * 4096 - norms
    assert flops_per_token(LLAMA_3_8B, 8192) == 6 * matrices + 6 * 32 * 4096 * 8192
    # With a window of 4,096 a query sees 4096 - 4096^2 / 16384 = 3,072 keys in the mean, in place of 4,096.
    local = replace(LLAMA_3_8B, local_window=4096, local_layers=frozenset(range(8)))
    assert flops_per_token(local, 8192) == 6 * matrices + 12 * 4096 * (24 * 4096 + 8 * 3072)
    assert flops_per_token(local, 4096) == flops_per_token(LLAMA_3_8B, 4096)
    # In chunks of 4,096 a query sees 2,048 in the mean; of 8,192 tokens in chunks of 5,000 the last 3,192 see fewer.
    chunks = replace(LLAMA_3_8B, local_chunk=4096, local_layers=frozenset(range(8)))
    assert flops_per_token(chunks, 8192) == 6 * matrices + 12 * 4096 * (24 * 4096 + 8 * 2048)
    uneven = 8 * (5000**2 + 3192**2) / (2 * 8192)
    assert flops_per_token(replace(chunks, local_chunk=5000), 8192) == 6 * matrices + 12 * 4096 * (24 * 4096 + uneven)
    assert flops_per_token(chunks, 4096) == flops_per_token(LLAMA_3_8B, 4096)
    # PaLM counts all keys for every query.
    assert palm_flops_per_token(local, 8192) == 6 * matrices + 12 * 32 * 4096 * 8192
    assert palm_flops_per_token(LLAMA_3_8B, 8192) / flops_per_token(LLAMA_3_8B, 8192) == pytest.approx(1.125, abs=1e-3)
    # Of a gated delta net with 16 states of 128 x 64 numbers, each is read twice and added to once; the square is less.
    sizes = {"delta_layers": frozenset(range(24)), "delta_value_heads": 16, "delta_key_dim": 128, "delta_value_dim": 64}
    delta = replace(LLAMA_3_8B, **sizes)
    attention = 4096 * (2 * 4096 + 2 * 1024)
    states = 24 * 6 * 3 * 16 * 128 * 64
    assert flops_per_token(delta, 8192) == 6 * (matrices - 24 * attention) + 6 * 8 * 4096 * 8192 + states
    assert palm_flops_per_token(delta, 8192) - flops_per_token(delta, 8192) == 6 * 8 * 4096 * 8192
    # Tying takes parameters away, not work.
    assert flops_per_token(replace(LLAMA_3_8B, tied_embeddings=True), 8192) == flops_per_token(LLAMA_3_8B, 8192)
