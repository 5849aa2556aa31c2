"""Our core attention against Megatron-Core's own."""

from functools import partial
from typing import Any

import pytest
import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.model.attention import ScaledDotProductAttention, WindowedAttention
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import seed_everything
from tests.ranks import Ranks


def both(heads: int, query_groups: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Output and gradients of ours and of Megatron-Core's attention on the same random input."""
    groups.init_model_parallel(ParallelSettings())
    config = TransformerConfig(
        num_layers=1, hidden_size=16 * heads, num_attention_heads=heads, num_query_groups=query_groups,
        attention_dropout=0.0, masked_softmax_fusion=False, attention_softmax_in_fp32=True,
    )  # fmt: skip
    seed_everything(0)
    states = [torch.randn(33, 2, count, 16) for count in (heads, query_groups, query_groups)]
    upstream = torch.randn(33, 2, heads * 16)
    mask = torch.ones(1, 1, 33, 33, dtype=torch.bool).triu(1)
    results = []
    for kind, given in ((ScaledDotProductAttention, None), (DotProductAttention, mask)):
        attention = kind(config, 1, AttnMaskType.causal, "self")
        inputs = [state.clone().requires_grad_() for state in states]
        output = attention(*inputs, given)
        output.backward(upstream)
        results.append([output.detach(), *(state.grad for state in inputs)])
    return results[0], results[1]


@pytest.mark.parametrize("query_groups", [4, 2, 1])
def test_agrees_with_dot_product_attention_to_rounding(one_rank: Ranks, query_groups: int) -> None:
    ours, theirs = one_rank.call(both, heads=4, query_groups=query_groups)[0]
    for left, right in zip(ours, theirs, strict=True):
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, rtol=0, atol=2e-6)


def both_with_sinks(
    window: int | None, dtype: torch.dtype, queries: int, keys: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Output and gradients, in fp32, of our attention with sinks, and of scores that all stand in memory, in fp64."""
    groups.init_model_parallel(ParallelSettings())
    config = TransformerConfig(
        num_layers=1, hidden_size=64, num_attention_heads=4, num_query_groups=2, softmax_type="learnable",
        params_dtype=dtype,
    )  # fmt: skip
    seed_everything(0)
    kind = ScaledDotProductAttention if window is None else partial(WindowedAttention, window=window)
    attention = kind(config, 1, AttnMaskType.causal, "self", softmax_scale=0.3)
    attention.softmax_offset.data.copy_(torch.tensor([-1.2, 0.3, 2.7, 6.1]))
    sizes = ((queries, 4), (keys, 2), (keys, 2))
    inputs = [torch.randn(length, 2, heads, 16, dtype=dtype).requires_grad_() for length, heads in sizes]
    upstream = torch.randn(queries, 2, 64, dtype=dtype)
    output = attention.attend(*inputs, dropout=0.0)
    output.backward(upstream)
    ours = [output.detach(), *(state.grad for state in inputs), attention.softmax_offset.grad]
    wide = [state.detach().double().requires_grad_() for state in (*inputs, attention.softmax_offset)]
    query, key, value = (state.permute(1, 2, 0, 3) for state in wide[:3])
    scores = query @ key.repeat_interleave(2, dim=1).mT * (0.3 if window is None else 0.25)
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    scores = scores.masked_fill((distance < 0) | (distance >= (window or keys)), -torch.inf)
    sinks = wide[3].view(1, -1, 1, 1).expand(2, -1, queries, 1)
    weights = torch.cat([sinks, scores], dim=-1).softmax(dim=-1)[..., 1:]
    expected = (weights @ value.repeat_interleave(2, dim=1)).permute(2, 0, 1, 3).flatten(2)
    expected.backward(upstream.double())
    theirs = [expected.detach(), *(state.grad for state in wide)]
    return [state.float() for state in ours], [state.float() for state in theirs]


@pytest.mark.parametrize(
    ("window", "queries", "keys"), [(None, 33, 33), (None, 20, 33), (5, 33, 33), (150, 300, 300), (150, 140, 290)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_sinks_take_part_in_the_softmax(
    one_rank: Ranks, window: int | None, queries: int, keys: int, dtype: torch.dtype, tolerance: float
) -> None:
    given = {"window": window, "dtype": dtype, "queries": queries, "keys": keys}
    ours, theirs = one_rank.call(both_with_sinks, **given)[0]
    for left, right in zip(ours, theirs, strict=True):
        assert left.shape == right.shape
        assert float((left - right).abs().max() / right.abs().max()) < tolerance


def refusals() -> list[str]:
    groups.init_model_parallel(ParallelSettings())
    config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=1)
    said: list[str] = []

    def refused(call: Any) -> None:
        with pytest.raises(ValueError) as error:
            call()
        said.append(str(error.value))

    refused(lambda: ScaledDotProductAttention(config, 1, AttnMaskType.padding, "self"))
    attention = ScaledDotProductAttention(config, 1, AttnMaskType.causal, "self")
    states = torch.zeros(4, 1, 1, 16)
    refused(lambda: attention(states, states, states, torch.zeros(1, 1, 4, 4, dtype=torch.bool)))
    return said


def test_refuses_what_it_would_ignore(one_rank: Ranks) -> None:
    padding, mask = one_rank.call(refusals)[0]
    assert "causal" in padding
    assert "no mask" in mask
