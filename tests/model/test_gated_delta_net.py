"""Gated delta nets: the rule against its recurrence token by token, and the layer against Megatron-Core's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.ssm.gated_delta_net import GatedDeltaNet as MegatronGatedDeltaNet
from megatron.core.ssm.gated_delta_net import GatedDeltaNetSubmodules
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from torch import Tensor
from torch.nn import functional

from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.memory import delta_bytes
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, transformer_config
from megatron_cpt.model.gated_delta_net import GatedDeltaNet, causal_convolution, gated_delta_rule
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import seed_everything
from tests.families.folders import MODELS, write_fields
from tests.ranks import Ranks

SEQUENCES, KEY_HEADS, HEADS, KEY_DIM, VALUE_DIM = 2, 2, 4, 10, 6


def inputs(length: int, dtype: torch.dtype, decay: float = 1.0) -> list[Tensor]:
    """Random ones; decays are of many sizes."""
    generator = torch.Generator().manual_seed(length)

    def normal(*size: int) -> Tensor:
        return torch.randn(SEQUENCES, length, *size, generator=generator, dtype=torch.float64)

    drawn = [
        normal(KEY_HEADS, KEY_DIM),
        normal(KEY_HEADS, KEY_DIM),
        normal(HEADS, VALUE_DIM),
        -decay * normal(HEADS).mul(2).exp(),
        normal(HEADS).sigmoid(),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def by_token(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, share: Tensor, documents: Tensor | None
) -> Tensor:
    """The recurrence (arXiv:2412.06464, section 3.1), one token after the other, in fp64."""
    query, key, value, decay, share = (tensor.double() for tensor in (query, key, value, decay, share))
    query, key = (
        (states / (states.square().sum(-1, keepdim=True) + 1e-6).sqrt()).repeat_interleave(HEADS // KEY_HEADS, dim=2)
        for states in (query, key)
    )
    state, outputs = torch.zeros(SEQUENCES, HEADS, KEY_DIM, VALUE_DIM, dtype=torch.float64), []
    for token in range(query.size(1)):
        if documents is not None and token and documents[token] != documents[token - 1]:
            state = torch.zeros_like(state)
        state = state * decay[:, token].exp()[..., None, None]
        known = torch.einsum("bhkv,bhk->bhv", state, key[:, token])
        update = share[:, token, :, None] * (value[:, token] - known)
        state = state + torch.einsum("bhk,bhv->bhkv", key[:, token], update)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, query[:, token]) * KEY_DIM**-0.5)
    return torch.stack(outputs, dim=1)


DOCUMENTS = {
    "one": lambda length: None,
    "some begin in a chunk": lambda length: torch.arange(length) // 29,
    "some begin with a chunk, some are long": lambda length: torch.arange(length) // 128,
    "all are a token": lambda length: torch.arange(length),
}


@pytest.mark.parametrize("documents", list(DOCUMENTS))
@pytest.mark.parametrize("length", [1, 63, 64, 200])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 5e-6)])
def test_chunks_give_what_the_recurrence_gives(
    length: int, documents: str, dtype: torch.dtype, tolerance: float
) -> None:
    numbers = DOCUMENTS[documents](length)
    ours, theirs = inputs(length, dtype), inputs(length, dtype)
    found, expected = gated_delta_rule(*ours, numbers), by_token(*theirs, numbers)
    assert found.dtype is dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found.double() * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        largest = other.grad.abs().max().item()
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=2 * tolerance * largest)


def test_what_decays_at_once_leaves_small_decays_after_it_exact() -> None:
    query, key, value, decay, share = (tensor.detach() for tensor in inputs(60, torch.float32))
    decay[:, :20], decay[:, 20:] = -1000.0, -1e-3
    found = gated_delta_rule(query, key, value, decay, share)
    expected = by_token(query, key, value, decay, share, None)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 * expected.abs().max().item())


def test_no_chunk_has_a_number_that_is_none() -> None:
    tensors = inputs(130, torch.float32, decay=1e4)
    gated_delta_rule(*tensors, torch.arange(130) // 40).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("length", [1, 2, 30])
def test_a_convolution_sees_the_last_tokens_of_its_own_document(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(length, SEQUENCES, 7, generator=generator)
    weight = torch.randn(7, 1, 4, generator=generator)

    def whole(part: Tensor) -> Tensor:
        padded = functional.pad(part.permute(1, 2, 0), (3, 0))
        return functional.conv1d(padded, weight, groups=7).permute(2, 0, 1)

    torch.testing.assert_close(causal_convolution(states, weight), whole(states))
    begins = [0, 1, 3, 17]
    numbers = torch.tensor([sum(begin <= token for begin in begins) for token in range(length)])
    parts = [part for part in states.tensor_split(begins[1:]) if len(part)]
    torch.testing.assert_close(causal_convolution(states, weight, numbers), torch.cat(list(map(whole, parts))))


def against_megatron_core(folder: Path) -> dict[str, object]:
    """A job: our layer, and Megatron-Core's with our rule in the place of fla's, with the same weights."""
    groups.init_model_parallel(ParallelSettings())
    seed_everything(1)
    config = transformer_config(read_shape(folder), ModelOptions(sequence_length=200))
    theirs: dict[str, object] = {
        "HAVE_FLA": True,
        "l2norm": lambda states: states,  # our rule has it
        "chunk_gated_delta_rule": lambda query, key, value, g, beta, **named: (
            gated_delta_rule(query, key, value, g, beta),
            None,
        ),
    }
    submodules = GatedDeltaNetSubmodules(ColumnParallelLinear, WrappedTorchNorm, RowParallelLinear)
    process_groups = ProcessGroupCollection.use_mpu_process_groups()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in theirs.items():
            patch.setitem(MegatronGatedDeltaNet.__init__.__globals__, name, value)
        expected = MegatronGatedDeltaNet(config, submodules, layer_number=1, pg_collection=process_groups)
        ours = GatedDeltaNet(config, WrappedTorchNorm, process_groups)
        ours.load_state_dict({name: value for name, value in expected.state_dict().items() if value is not None})
        states = torch.randn(200, SEQUENCES, config.hidden_size)
        outputs = [layer(states, None)[0] for layer in (ours, expected)]
    for output in outputs:
        output.square().sum().backward()
    places = [
        {
            (part.key, part.global_shape, part.global_offset)
            for entry in layer.sharded_state_dict("layers.0.").values()
            for part in (entry.build() if hasattr(entry, "build") else [entry])
            if hasattr(part, "global_shape")
        }
        for layer in (ours, expected)
    ]
    gradients = [dict(layer.named_parameters()) for layer in (ours, expected)]
    return {
        "outputs": [output.detach().numpy() for output in outputs],
        "gradients": {name: [each[name].grad.numpy() for each in gradients] for name in gradients[1]},
        "names": [[*each] for each in gradients],
        "places": places,
    }


def test_the_layer_is_that_of_megatron_core(one_rank: Ranks, tmp_path: Path) -> None:
    folder = write_fields(tmp_path, MODELS["qwen3_next"])
    [found] = one_rank.call(against_megatron_core, folder=folder)
    np.testing.assert_allclose(*found["outputs"], rtol=0, atol=1e-6 * np.abs(found["outputs"][1]).max())
    assert sorted(found["names"][0]) == sorted(found["names"][1])
    for name, (ours, theirs) in found["gradients"].items():
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max(), err_msg=name)
    assert found["places"][0] == found["places"][1]
    assert {key for key, _, _ in found["places"][0]} >= {
        f"layers.0.{name}" for name in ("in_proj.weight.z", "conv1d.weight.key", "A_log", "out_norm.weight")
    }


def kept_inside(folder: Path) -> float:
    """A job: bytes that the inside of a layer keeps of each token where it is computed again."""
    groups.init_model_parallel(ParallelSettings())
    seed_everything(1)
    config = transformer_config(read_shape(folder), ModelOptions(sequence_length=256))
    layer = GatedDeltaNet(config, WrappedTorchNorm, ProcessGroupCollection.use_mpu_process_groups())
    projected = layer.in_proj(torch.randn(256, SEQUENCES, config.hidden_size))[0].detach().requires_grad_()
    known = {tensor.untyped_storage().data_ptr() for tensor in (projected, *layer.parameters())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer.of_heads(projected, layer.out_norm.weight, None)
    return sum(part.untyped_storage().nbytes() for place, part in kept.items() if place not in known) / 256 / SEQUENCES


def test_the_inside_keeps_what_is_estimated(one_rank: Ranks, tmp_path: Path) -> None:
    sizes = {"linear_key_head_dim": 48, "linear_value_head_dim": 32, "linear_num_value_heads": 8}
    folder = write_fields(tmp_path, MODELS["qwen3_next"] | sizes)
    [found] = one_rank.call(kept_inside, folder=folder)
    assert delta_bytes(read_shape(folder)) == pytest.approx(found, rel=0.2)
