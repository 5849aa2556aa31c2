"""silu(gate) * up, and its gradients, are those of torch's own operations, bit for bit."""

import pytest
import torch
from torch.nn import functional

from megatron_cpt.model import cpu_kernels


def by_torch(gate_up: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    gate, up = (gate_up if bias is None else gate_up + bias).chunk(2, dim=-1)
    return functional.silu(gate) * up


@pytest.mark.parametrize("with_bias", [False, True])
def test_outputs_and_gradients_are_torchs(with_bias: bool) -> None:
    torch.manual_seed(0)
    given, bias, gradient = torch.randn(5, 2, 64), torch.randn(64), torch.randn(2, 5, 32).transpose(0, 1)
    results = []
    for gate in (cpu_kernels.swiglu, by_torch):
        leaves = [given.clone().requires_grad_(), bias.clone().requires_grad_()]
        output = gate(leaves[0], leaves[1] if with_bias else None)
        output.backward(gradient)
        results += [[output.detach(), leaves[0].grad, *([leaves[1].grad] if with_bias else [])]]
    assert all(torch.equal(ours, torchs) for ours, torchs in zip(*results, strict=True))


def test_a_gate_by_hand() -> None:
    # silu(2) = 2 / (1 + e^-2)
    assert cpu_kernels.swiglu(torch.tensor([[2.0, 3.0]]), None).item() == pytest.approx(3 * 1.7615942)
