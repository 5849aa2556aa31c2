"""Losses of rows in the cache are those of torch, whatever the rows that are worked on at a time."""

import math

import pytest
import torch
from torch.nn import functional

from megatron_cpt.model import cpu_kernels
from megatron_cpt.model.cpu_kernels import label_nats


@pytest.mark.parametrize("cached_bytes", [cpu_kernels.CACHED_BYTES, 1, 3 * 11 * 4])  # all rows, one, three at a time
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nats_and_gradients_are_torchs(monkeypatch: pytest.MonkeyPatch, cached_bytes: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(cpu_kernels, "CACHED_BYTES", cached_bytes)
    torch.manual_seed(0)
    given, labels, gradient = torch.randn(4, 2, 11).to(dtype), torch.randint(11, (2, 4)), torch.rand(2, 4)
    given[..., 10] = -math.inf  # a row of padding (model/mcore_patches.py)
    labels.clamp_(max=9)
    leaf, torchs_leaf = given.clone().requires_grad_(), given.clone().requires_grad_()
    nats = label_nats(labels, leaf * 1)
    nats.backward(gradient)
    torchs = functional.cross_entropy(torchs_leaf.float().permute(1, 2, 0), labels, reduction="none")
    torchs.backward(gradient)
    assert nats.dtype is torch.float32 and nats.shape == (2, 4)
    torch.testing.assert_close(nats, torchs, rtol=0, atol=1e-6)
    torch.testing.assert_close(leaf.grad, torchs_leaf.grad, rtol=0, atol=1e-7 if dtype is torch.float32 else 4e-3)


def test_without_a_gradient_logits_stay_as_they_were() -> None:
    logits = torch.tensor([[[0.0, math.log(3)]]])
    with torch.no_grad():
        assert label_nats(torch.tensor([[1]]), logits).item() == pytest.approx(math.log(4 / 3))
    assert logits.tolist() == [[[0.0, pytest.approx(math.log(3))]]]
