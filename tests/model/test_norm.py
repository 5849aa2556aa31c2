"""The RMSNorm of a CPU: outputs are torch's bit for bit, gradients are right."""

import pytest
import torch

from megatron_cpt.model.layers import RMSNorm, RootMeanSquare


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5])
def test_outputs_are_torchs_and_gradients_close(epsilon: float) -> None:
    torch.manual_seed(0)
    weight, states, gradient = torch.rand(96), torch.randn(7, 3, 96), torch.randn(7, 3, 96)
    found = []
    for kind in (RMSNorm, torch.nn.RMSNorm):
        norm, leaf = kind(96, eps=epsilon), states.clone().requires_grad_()
        norm.weight.data.copy_(weight)
        output = norm(leaf)
        output.backward(gradient)
        found.append((output.detach(), leaf.grad, norm.weight.grad))
    (ours, of_states, of_weight), (torchs, torchs_of_states, torchs_of_weight) = found
    assert torch.equal(ours, torchs)
    torch.testing.assert_close(of_states, torchs_of_states, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_weight, torchs_of_weight, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_small_differences() -> None:
    torch.manual_seed(0)
    states = torch.randn(4, 2, 8, dtype=torch.float64).transpose(0, 1).requires_grad_()  # not contiguous
    weight = torch.rand(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: RootMeanSquare.apply(x, w, 1e-5), (states, weight))


def test_a_norm_by_hand() -> None:
    norm = RMSNorm(2, eps=0.0)
    assert norm(torch.tensor([[3.0, 4.0]])).tolist() == [pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5])]
