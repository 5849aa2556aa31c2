"""Whole heads are turned as Megatron-Core turns them."""

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.model.cpu_kernels import MCORE_ROTATION, Rotation, install_cpu_kernels, rotate
from megatron_cpt.parallel import groups
from tests.ranks import Ranks


def angles(length: int, turned: int) -> torch.Tensor:
    """Radians [length, 1, 1, turned] of positions from 0 on."""
    frequencies = 10_000 ** -(torch.arange(0, turned, 2).float() / turned)
    return torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)[:, None, None]


@pytest.mark.parametrize("turned", [8, 4])  # whole heads, and half of each
def test_states_and_gradients_are_those_of_megatron_core(turned: int) -> None:
    torch.manual_seed(0)
    states, gradient = torch.randn(2, 6, 2, 3, 8)
    results = []
    for apply in (rotate, MCORE_ROTATION):
        leaf = states.clone().requires_grad_()
        output = apply(leaf, angles(6, turned), mscale=1.25)
        output.backward(gradient)
        results += [(output.detach(), leaf.grad)]
    (output, leaf_gradient), (megatrons_output, megatrons_gradient) = results
    assert torch.equal(output, megatrons_output)
    torch.testing.assert_close(leaf_gradient, megatrons_gradient, rtol=0, atol=1e-6)


def turned_by_megatron_core(states: torch.Tensor, turned: int) -> torch.Tensor:
    """A job: the states as the installed Megatron-Core turns them, with ours in place."""
    groups.init_model_parallel(ParallelSettings())
    install_cpu_kernels()
    config = TransformerConfig(num_layers=1, hidden_size=24, num_attention_heads=3)
    return rope_utils.apply_rotary_pos_emb(states, angles(6, turned), config)


@pytest.mark.parametrize("turned", [8, 4])
def test_megatron_core_calls_it_with_its_own_options(one_rank: Ranks, turned: int) -> None:
    torch.manual_seed(0)
    states = torch.randn(6, 2, 3, 8)
    (found,) = one_rank.call(turned_by_megatron_core, states=states, turned=turned)
    assert torch.equal(found, MCORE_ROTATION(states, angles(6, turned)))


def test_neighbouring_dimensions_are_turned_by_megatron_core() -> None:
    pair = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    turned = rotate(pair, torch.full((1, 1, 1, 4), torch.pi / 2), rotary_interleaved=True)
    expected = torch.tensor([-2.0, 1.0, -4.0, 3.0]).reshape(1, 1, 1, 4)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)


def test_a_quarter_turn_by_hand() -> None:
    quarter = torch.full((1, 1, 1, 4), torch.pi / 2)
    states = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    expected = torch.tensor([-3.0, -4.0, 1.0, 2.0]).reshape(1, 1, 1, 4)
    torch.testing.assert_close(rotate(states, quarter), expected, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_differences_also_where_halves_differ() -> None:
    torch.manual_seed(1)
    states, cosine, sine = torch.randn(3, 2, 1, 1, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: Rotation.apply(x, cosine, sine), states.requires_grad_())
