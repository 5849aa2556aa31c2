"""Our core attention against Megatron-Core's own."""

from typing import Any

import pytest
import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.model.attention import ScaledDotProductAttention
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
