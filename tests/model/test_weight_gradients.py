"""Gradients that products add to their buffer: those of the two steps apart, over several micro batches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_cpt.config.load import load_config
from megatron_cpt.model.cpu_kernels import Products
from megatron_cpt.model.forward import run_micro_batches
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.train.optimizer import clear_gradients
from megatron_cpt.train.run import Run, assemble
from tests.ranks import Ranks
from tests.workshop import Workshop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_there_stays(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs, gradient, buffer = torch.randn(9, 5).to(dtype), torch.randn(9, 4).to(dtype), torch.randn(4, 5)
    expected = buffer + gradient.t() @ inputs
    Products.wgrad_gemm_accum_fp32(inputs, gradient, buffer)
    assert buffer.dtype is torch.float32
    torch.testing.assert_close(buffer, expected, rtol=1e-6, atol=1e-6)


def assembled(path: Path, overrides: tuple[str, ...] = ()) -> Run:
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    return assemble(config, make_plan(config, groups.world_size()), folder)


def linear_layers(run: Run) -> list[Any]:
    return [module for module in run.model[0].modules() if hasattr(module, "gradient_accumulation_fusion")]


def adds_in_products(path: Path, overrides: tuple[str, ...]) -> set[bool]:
    """Job: whether the linear layers of the model add to their buffers in products."""
    return {module.gradient_accumulation_fusion for module in linear_layers(assembled(path, overrides))}


def both_ways(path: Path) -> tuple[int, float]:
    """Job: linear layers of the model, and the largest difference of a gradient, in parts of the largest of all."""
    run = assembled(path)
    in_products = gradients(run)
    linear = linear_layers(run)
    for module in linear:
        module.gradient_accumulation_fusion = False
    largest = max(float((ours - theirs).abs().max()) for ours, theirs in zip(in_products, gradients(run), strict=True))
    return len(linear), largest / max(float(gradient.abs().max()) for gradient in in_products)


def gradients(run: Run) -> list[torch.Tensor]:
    """Of every parameter, from the first global batch."""
    clear_gradients(run.model, run.optimizer)
    shape = run.step_shape
    assert shape.micro_batches > 1
    batches = run.data.global_batch(0, groups.device())
    sizes = (shape.micro_batches, shape.micro_batch_size, shape.sequence_length)
    run_micro_batches(run.model, batches, *sizes, backward=True)
    return [parameter.main_grad.clone() for parameter in run.model[0].parameters()]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs Megatron-Core has its own kernels")
def test_a_model_with_tied_embeddings_gets_the_same_gradients(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    linear, difference = one_rank.call(both_ways, path=workshop.write_config(tmp_path / "run"))[0]
    assert linear == 4 * 4 + 1  # of attention two, of the MLP two, in four layers; and the logits'
    assert 0 < difference < 1e-6  # another order of addition


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs Megatron-Core has its own kernels")
def test_it_is_so_unless_the_user_says_otherwise(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    switched_off = ("megatron.transformer.gradient_accumulation_fusion=false",)
    assert one_rank.call(adds_in_products, path=path, overrides=()) == [{True}]
    assert one_rank.call(adds_in_products, path=path, overrides=switched_off) == [{False}]
