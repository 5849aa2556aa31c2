"""Linear layers by oneDNN: values and gradients of torch's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_cpt.model import cpu_kernels

ALONE: dict[str, Any] = {"gradient_accumulation_fusion": False, "allreduce_dgrad": False, "sequence_parallel": False}

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


def inputs(has_bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(0)
    states, weight = torch.randn(5, 3, 7, requires_grad=True), torch.randn(4, 7, requires_grad=True)
    return states, weight, torch.randn(4, requires_grad=True) if has_bias else None


@pytest.mark.parametrize("has_bias", [False, True])
def test_values_and_gradients_are_torchs(has_bias: bool) -> None:
    of_outputs = torch.randn(5, 3, 4)
    states, weight, bias = inputs(has_bias)
    theirs = functional.linear(states, weight, bias)
    wanted = [leaf for leaf in (states, weight, bias) if leaf is not None]
    expected = torch.autograd.grad(theirs, wanted, of_outputs)
    ours = cpu_kernels.linear(states, weight, bias, **ALONE)
    torch.testing.assert_close(ours, theirs)
    for found, right in zip(torch.autograd.grad(ours, wanted, of_outputs), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_a_gradient_is_added_to_what_the_buffer_holds() -> None:
    states, weight, _ = inputs(has_bias=False)
    weight.main_grad = torch.ones(4, 7)  # type: ignore[attr-defined]
    for _ in range(2):
        cpu_kernels.linear(states, weight, None, **ALONE | {"gradient_accumulation_fusion": True}).sum().backward()
    assert weight.grad_added_to_main_grad  # type: ignore[attr-defined]
    torch.testing.assert_close(weight.main_grad, 1 + 2 * states.detach().sum((0, 1)).expand(4, 7))  # type: ignore[attr-defined]


def test_the_first_layers_inputs_need_no_gradient() -> None:
    states, weight, _ = inputs(has_bias=False)
    cpu_kernels.linear(states.detach(), weight, None, **ALONE).sum().backward()
    assert weight.grad is not None and states.grad is None


def test_outputs_may_be_overwritten() -> None:
    states, weight, _ = inputs(has_bias=False)
    cpu_kernels.linear(states, weight, None, **ALONE).mul_(2).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * states.detach().sum((0, 1)).expand(4, 7))


@pytest.mark.parametrize("changed", ["allreduce_dgrad", "sequence_parallel", "bf16", "no tokens"])
def test_the_rest_is_left_to_megatron_core(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[SimpleNamespace] = []
    monkeypatch.setattr(cpu_kernels, "MCORE_LINEAR", lambda **given: left.append(SimpleNamespace(**given)))
    states, weight, _ = inputs(has_bias=False)
    if changed == "bf16":
        states, weight = states.bfloat16(), weight.bfloat16()
    if changed == "no tokens":
        states = states[:0]
    cpu_kernels.linear(states, weight, None, **ALONE | {changed: True} if changed in ALONE else ALONE, tp_group="ranks")
    [given] = left
    assert given.input is states and given.weight is weight and given.tp_group == "ranks"
    assert [name for name in ALONE if getattr(given, name)] == [changed] * (changed in ALONE)
