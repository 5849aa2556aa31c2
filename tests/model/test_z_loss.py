"""The z-loss is trained on as plain PyTorch computes it, under every layout, and reported nowhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_cpt.checkpoint.hf_weights import load_hf_weights, weights_of
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.data.loader import make_batch
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model, unwrap, wrap_for_training
from megatron_cpt.model.forward import run_micro_batches
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import all_tensors, gather_hf_tensors, write_llama
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, column, records_of, train
from tests.workshop import Workshop

SEQUENCES, LENGTH, COEFFICIENT = 2, 24, 0.1
# Labels of each sequence that count: what is masked is not penalised either.
SCORED = (24, 10)


def losses_and_gradients(
    folder: Path, windows: Tensor, precision: str, parallel: dict[str, int], attention: str
) -> tuple[float | None, dict[str, np.ndarray]]:
    """A job: the summed nats, on the last stage, and gradients of the mean loss under Hugging Face names."""
    config = config_from_dict(
        {
            "run": {"folder": "run"},
            "model": {"hf": str(folder)},
            "data": {
                "sequence_length": LENGTH,
                "sources": {"text": {"paths": ["text"]}},
                "attention": attention,
            },
            "training": {
                "tokens": "1 steps",
                "global_batch_size": SEQUENCES,
                "precision": precision,
                "z_loss": COEFFICIENT,
            },
            "schedule": {"peak_lr": 1e-5},
            "parallel": parallel,
        }
    )
    groups.init_model_parallel(config.parallel)
    shape = read_shape(folder)
    bare = build_model(shape, ModelOptions.of_run(config))
    load_hf_weights(bare, shape, folder)
    model = wrap_for_training(bare, ModelOptions.of_run(config))
    for chunk in model:
        chunk.zero_grad_buffer()
    starts = [np.zeros(1, dtype=np.int64)] if attention == "within_documents" else None
    batches = (
        make_batch(window[None].numpy(), np.array([scored]), np.zeros(1, dtype=np.int64), groups.device(), starts)
        for window, scored in zip(windows, SCORED, strict=True)
    )
    losses = run_micro_batches(model, batches, SEQUENCES, 1, LENGTH, backward=True)
    for parameter in (parameter for chunk in bare for parameter in chunk.parameters()):
        parameter.data = parameter.main_grad.clone()
    found: dict[str, Tensor] = {}
    for parameter, rule, place in weights_of(unwrap(model), shape):
        if rule.exported:
            found |= gather_hf_tensors(parameter, rule, place, shape)
    return losses and float(losses.nats.sum()), {name: gradient.numpy() for name, gradient in found.items()}


def plain(folder: Path, windows: Tensor, scratch: Path) -> tuple[float, dict[str, np.ndarray]]:
    """The same by transformers' model and torch's own functions."""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    logits = reference(windows[:, :-1]).logits
    counts = torch.arange(LENGTH)[None, :] < torch.tensor(SCORED)[:, None]
    nats = torch.nn.functional.cross_entropy(logits[counts], windows[:, 1:][counts], reduction="sum")
    penalty = COEFFICIENT * torch.logsumexp(logits[counts], dim=-1).square().sum()
    ((nats + penalty) / counts.sum()).backward()
    assert penalty > 0.1 * nats  # it would show
    for parameter in reference.parameters():
        parameter.data.copy_(parameter.grad)
    reference.save_pretrained(scratch)
    return float(nats.detach()), {name: gradient.numpy() for name, gradient in all_tensors(scratch).items()}


@pytest.mark.parametrize(
    ("precision", "parallel", "attention"),
    [
        ("fp32", {}, "across_documents"),
        ("bf16", {}, "across_documents"),
        ("fp32", {}, "within_documents"),
        ("fp32", {"tensor": 2}, "across_documents"),
        ("fp32", {"pipeline": 2}, "within_documents"),
    ],
)
def test_gradients_are_those_of_plain_pytorch(
    one_rank: Ranks, two_ranks: Ranks, tmp_path: Path, precision: str, parallel: dict[str, int], attention: str
) -> None:
    folder = write_llama(tmp_path / "hf", num_hidden_layers=2)  # 101 ids: ranks share them with one row of padding
    torch.manual_seed(2)
    windows = torch.randint(101, (SEQUENCES, LENGTH + 1))
    nats, expected = plain(folder, windows, tmp_path / "gradients")
    results = (two_ranks if parallel else one_rank).call(
        losses_and_gradients,
        folder=folder,
        windows=windows,
        precision=precision,
        parallel=parallel,
        attention=attention,
    )
    tolerance = 1e-5 if precision == "fp32" else 0.05  # of the norm of a gradient
    assert results[-1][0] == pytest.approx(nats, rel=1e-6 if precision == "fp32" else 1e-2)
    found = {name: gradient for _, gradients in results for name, gradient in gradients.items()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert np.linalg.norm(found[name] - gradient) <= tolerance * np.linalg.norm(gradient), name


@pytest.mark.ci
def test_a_run_reports_the_plain_loss_and_is_the_same_on_two_tensor_ranks(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    short = ("training.tokens=4 steps", "schedule.warmup=null")
    penalised = (*short, "training.z_loss=0.01")
    one_rank.call(train, path=workshop.write_config(tmp_path / "plain"), overrides=short)
    one_rank.call(train, path=workshop.write_config(tmp_path / "one"), overrides=penalised)
    two_ranks.call(train, path=workshop.write_config(tmp_path / "two"), overrides=(*penalised, *LAYOUTS["tensor 2"]))
    plain_run, one, two = (tmp_path / name for name in ("plain", "one", "two"))
    losses = {run: column(records_of(run, "train"), "loss") for run in (plain_run, one, two)}
    assert losses[one][0] == losses[plain_run][0]  # before the first update the loss is that of the same weights
    assert losses[one][1:] != losses[plain_run][1:]
    for kind in ("train", "validation"):
        ours, theirs = (column(records_of(run, kind), "loss") for run in (two, one))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
