"""Attention within a window, or within chunks, against the whole score matrix with a mask."""

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.model.attention import ChunkedAttention, SoftCappedAttention, WindowedAttention
from megatron_cpt.parallel import groups
from tests.ranks import Ranks


def both(window: int, queries: int, keys: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Output and gradients of the blocks, and of scores that all stand in memory, on the same random input."""
    groups.init_model_parallel(ParallelSettings())
    config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4, num_query_groups=2)
    torch.manual_seed(0)
    states = [torch.randn(length, 2, heads, 8) for length, heads in ((queries, 4), (keys, 2), (keys, 2))]
    upstream = torch.randn(queries, 2, 32)
    results = []
    for kind in (WindowedAttention, SoftCappedAttention):
        attention = kind(config, 1, AttnMaskType.causal, "self", window=window)
        inputs = [state.clone().requires_grad_() for state in states]
        output = attention.attend(*inputs, dropout=0.0)
        output.backward(upstream)
        results.append([output.detach(), *(state.grad for state in inputs)])
    return results[0], results[1]


@pytest.mark.parametrize(
    ("window", "queries", "keys"), [(5, 300, 300), (130, 300, 300), (150, 140, 290), (300, 300, 300), (1, 129, 129)]
)
def test_blocks_give_what_the_whole_matrix_gives(one_rank: Ranks, window: int, queries: int, keys: int) -> None:
    ours, theirs = one_rank.call(both, window=window, queries=queries, keys=keys)[0]
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=3e-6, atol=3e-6)


def in_chunks_and_masked(chunk: int, queries: int, keys: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Output and gradients of chunks, and of all scores with those of other chunks masked, on the same random input."""
    groups.init_model_parallel(ParallelSettings())
    config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4, num_query_groups=2)
    torch.manual_seed(0)
    states = [torch.randn(length, 2, heads, 8) for length, heads in ((queries, 4), (keys, 2), (keys, 2))]
    upstream = torch.randn(queries, 2, 32)
    attention = ChunkedAttention(config, 1, AttnMaskType.causal, "self", chunk=chunk)
    own, key_places = torch.arange(keys - queries, keys)[:, None], torch.arange(keys)
    seen = (key_places <= own) & (key_places // chunk == own // chunk)

    def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention.by_kernel(query, key, value, 0.0, None, seen).flatten(2)

    results = []
    for attend in (lambda *inputs: attention.attend(*inputs, dropout=0.0), masked):
        inputs = [state.clone().requires_grad_() for state in states]
        output = attend(*inputs)
        output.backward(upstream)
        results.append([output.detach(), *(state.grad for state in inputs)])
    return results[0], results[1]


@pytest.mark.parametrize(
    ("chunk", "queries", "keys"),
    # Whole and broken chunks; queries that begin within a chunk, at its beginning, and in the last one; one chunk.
    [(100, 300, 300), (70, 300, 300), (64, 150, 290), (64, 34, 290), (70, 90, 300), (290, 20, 300), (300, 300, 300)],
)
def test_chunks_give_what_the_masked_matrix_gives(one_rank: Ranks, chunk: int, queries: int, keys: int) -> None:
    ours, theirs = one_rank.call(in_chunks_and_masked, chunk=chunk, queries=queries, keys=keys)[0]
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=3e-6, atol=3e-6)
