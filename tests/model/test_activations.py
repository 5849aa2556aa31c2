"""The bounded gate of experts, against its formula written out."""

import pytest
import torch
from torch import Tensor

from megatron_cpt.model.activations import bounded_gate

OFFSET, LIMIT = 1.0, 1.3


def written_out(states: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
    """The gate by torch's own operations."""
    gate, other = (states + bias).chunk(2, dim=-1)
    gate, other = gate.clamp(max=LIMIT), other.clamp(-LIMIT, LIMIT)
    return gate * torch.sigmoid(1.702 * gate) * (other + OFFSET) * weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_the_bounds_hold_of_what_has_its_bias(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    states, bias = (2 * torch.randn(*size, generator=generator) for size in ((70, 12), (12,)))
    weights = torch.rand(70, 1, generator=generator)
    both = (states + bias).chunk(2, dim=-1)
    assert all(0.1 < float((half > LIMIT).float().mean()) < 0.5 for half in both)
    assert 0.1 < float((both[1] < -LIMIT).float().mean()) < 0.5
    given = [states.to(dtype), bias.to(dtype), weights]
    ours, theirs = ([one.clone().requires_grad_() for one in given] for _ in range(2))
    theirs = [one.detach().double().requires_grad_() for one in theirs]
    upstream = torch.randn(70, 6, generator=generator).to(dtype)
    output, expected = bounded_gate(*ours, False, OFFSET, LIMIT), written_out(*theirs)
    output.backward(upstream)
    expected.backward(upstream.double())
    found = [output.detach(), *(one.grad for one in ours)]
    wanted = [expected.detach(), *(one.grad for one in theirs)]
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert other is not None
        assert float((one.double() - other).abs().max() / other.abs().max()) < tolerance
    assert output.dtype is dtype
