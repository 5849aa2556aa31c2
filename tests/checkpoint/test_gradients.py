"""Every gradient of every family is the one that transformers' own model gives, under every layout."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from torch import Tensor

from megatron_cpt.checkpoint.hf_folder import open_hf_tensors
from megatron_cpt.checkpoint.hf_weights import constants, load_hf_weights, weights_of
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.data.loader import make_batch
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model, unwrap, wrap_for_training
from megatron_cpt.model.forward import run_micro_batches
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import seed_everything
from tests.checkpoint.hf_models import auto_model, gather_hf_tensors, write_model
from tests.families.folders import DIVIDED, MODELS
from tests.params import quick_among
from tests.ranks import Ranks

Gradients = dict[str, np.ndarray]
"""Gradients under Hugging Face names."""
SEQUENCES, LENGTH = 2, 24
WINDOWS = torch.randint(101, (SEQUENCES, LENGTH + 1), generator=torch.Generator().manual_seed(2))


def gradients(
    folder: Path, windows: Tensor, tensor: int, pipeline: int, transformer: dict[str, Any], precision: str = "fp32"
) -> Gradients:
    """A job: the gradients of the mean loss under Hugging Face names, each on the first rank of its stage."""
    config = config_from_dict(
        {
            "run": {"folder": "run"},
            "model": {"hf": str(folder), "dropout": 0.0},
            "data": {"sequence_length": LENGTH, "sources": {"text": {"paths": ["text"]}}},
            "training": {"tokens": "1 steps", "global_batch_size": SEQUENCES, "precision": precision},
            "schedule": {"peak_lr": 1e-5},
            "parallel": {"tensor": tensor, "pipeline": pipeline, "sequence": divides_sequences(folder, tensor)},
            "megatron": {"transformer": transformer},
        }
    )
    groups.init_model_parallel(config.parallel)
    seed_everything(0)  # divided sequences ask for the ranks' random states, also without dropout
    shape = read_shape(folder)
    bare = build_model(shape, ModelOptions.of_run(config))
    load_hf_weights(bare, shape, folder)
    model = wrap_for_training(bare, ModelOptions.of_run(config))
    for chunk in model:
        chunk.zero_grad_buffer()
    sources = np.zeros(1, dtype=np.int64)
    scored = np.array([LENGTH])
    batches = (make_batch(window[None].numpy(), scored, sources, groups.device()) for window in windows)
    run_micro_batches(model, batches, SEQUENCES, 1, LENGTH, backward=True)
    # Gradients have the layout of the weights: in their place, they are gathered as weights are.
    for parameter in (parameter for chunk in bare for parameter in chunk.parameters()):
        parameter.data.copy_(parameter.main_grad)
    found: dict[str, Tensor] = {}
    for parameter, rule, place in weights_of(unwrap(model), shape):
        if rule.exported and not rule.buffer:
            found |= gather_hf_tensors(parameter, rule, place, shape)
    return {name: gradient.float().numpy() for name, gradient in found.items() if name not in constants(shape)}


def divides_sequences(folder: Path, tensor: int) -> bool:
    """Whether tensor-parallel ranks divide sequences too: where they need to, for experts."""
    return tensor > 1 and read_shape(folder).experts > 0


def transformers_gradients(folder: Path, scratch: Path) -> Gradients:
    """The gradients of the mean loss by transformers' own model, under the names in its folders.

    With experts in fp64: in fp32 those of a DeepSeek-V2 are 9.4e-6 from them, nearly all of what is allowed here.
    """
    config, experts = orjson.loads((folder / "config.json").read_bytes()), read_shape(folder).experts > 0
    dtype = torch.float64 if experts else torch.float32
    reference = auto_model(config).from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    if experts:
        reference.set_experts_implementation("eager")  # the default one has no fp64
    logits = reference(WINDOWS[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), WINDOWS[:, 1:].flatten()).backward()
    # transformers renames and joins tensors as it loads; saved in the weights' place, gradients have the first names.
    for parameter in reference.parameters():
        parameter.data.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    reference.float().save_pretrained(scratch)
    with open_hf_tensors(scratch) as tensors:  # those of a language model alone, by the names of its family
        names = tensors.names - set(constants(read_shape(folder)))
        names = {name for name in names if not name.endswith("e_score_correction_bias")}
        return {name: tensors.read(name, 0, 0, tensors.size(name)[0]).numpy() for name in names}


def check_gradients(
    ranks: Ranks, folder: Path, expected: Gradients, tensor: int = 1, pipeline: int = 1, **transformer: Any
) -> None:
    if read_shape(folder).experts:
        transformer["moe_aux_loss_coeff"] = 0.0  # transformers does not add the balance of experts unless asked to
    results = ranks.call(
        gradients, folder=folder, windows=WINDOWS, tensor=tensor, pipeline=pipeline, transformer=transformer
    )
    found = {name: gradient for result in results for name, gradient in result.items()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        largest = np.abs(gradient).max()
        assert largest > 1e-6, name
        # The terms of a number that a whole layer shares cancel: of an Apertus's alpha_n, on a CPU without AVX-512, the
        # gradient of transformers in fp32 is 1.4e-5 from that in fp64, and ours 2.9e-5.
        tolerance = 1e-5 if gradient.size > 1 else 3e-5
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=tolerance * largest, err_msg=name)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each kind."""
    return write_model(tmp_path_factory.mktemp(request.param) / "hf", MODELS[request.param])


@pytest.fixture(scope="module")
def expected(model: Path) -> Gradients:
    """The gradients of transformers' own model."""
    return transformers_gradients(model, model.with_name("gradients"))


def test_one_process(one_rank: Ranks, model: Path, expected: Gradients) -> None:
    check_gradients(one_rank, model, expected)


@pytest.mark.parametrize("model", quick_among(MODELS, DIVIDED), indirect=True)
def test_in_bf16_they_are_those_of_fp32_but_for_rounding(one_rank: Ranks, model: Path, expected: Gradients) -> None:
    transformer = {"moe_aux_loss_coeff": 0.0} if read_shape(model).experts else {}
    (found,) = one_rank.call(
        gradients, folder=model, windows=WINDOWS, tensor=1, pipeline=1, transformer=transformer, precision="bf16"
    )
    off = np.concatenate([(found[name] - gradient).ravel() for name, gradient in expected.items()])
    whole = np.concatenate([gradient.ravel() for gradient in expected.values()])
    assert np.linalg.norm(off) < 0.25 * np.linalg.norm(whole)  # 0.01 to 0.10, and 0.13 of a qwen3_next


@pytest.mark.parametrize("model", quick_among(MODELS, DIVIDED), indirect=True)
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2)])
def test_two_processes(two_ranks: Ranks, model: Path, expected: Gradients, tensor: int, pipeline: int) -> None:
    check_gradients(two_ranks, model, expected, tensor, pipeline)


@pytest.mark.parametrize(
    "recomputation",
    [
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    ],
)
def test_recomputation_changes_no_gradient_of_a_parallel_layer(
    one_rank: Ranks, tmp_path: Path, recomputation: dict[str, Any]
) -> None:
    folder = write_model(tmp_path / "hf", MODELS["gpt_neox"])
    check_gradients(one_rank, folder, transformers_gradients(folder, tmp_path / "gradients"), **recomputation)
