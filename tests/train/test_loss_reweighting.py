"""Sequences weighted by their losses. That gradients are those of the formula, under all layouts: test_answers.py."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.train.loss_reweighting import linupper
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import Workshop


def test_weights_rise_up_to_the_middle() -> None:
    """h = -1, -0.5, 0, 1 of arXiv:2502.06733: f = min(h + 1, 1) = 0, 0.5, 1, 1."""
    losses = torch.tensor([2.0, 2.5, 3.0, 4.0])
    weights = linupper(losses, losses.min(), losses.max(), temperature=1.0)
    np.testing.assert_allclose(math.e * weights, [1, math.e**0.5, math.e, math.e], rtol=1e-6)
    sharper = linupper(losses, losses.min(), losses.max(), temperature=0.5)
    np.testing.assert_allclose(sharper, weights**2, rtol=1e-6)


def test_no_temperature_makes_a_weight_infinite() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    assert linupper(losses, losses.min(), losses.max(), temperature=1e-4).tolist() == [0, 0, 1, 1]


def test_equal_losses_have_equal_weights() -> None:
    losses = torch.full((3,), 2.25)
    assert linupper(losses, losses.min(), losses.max(), temperature=1.0).unique().numel() == 1


@given(st.lists(st.floats(0.1, 12), min_size=2, max_size=9), st.floats(0.1, 4), st.floats(-3, 3))
def test_weights_depend_on_the_place_between_the_ends_alone(values: list[float], scale: float, shift: float) -> None:
    losses = torch.tensor(values, dtype=torch.float64)
    if losses.max() - losses.min() < 1e-3:
        return
    moved = scale * losses + shift
    first, second = (linupper(one, one.min(), one.max(), temperature=1.0) for one in (losses, moved))
    np.testing.assert_allclose(first, second, rtol=1e-6)


CONSTANT = {"kind": "constant", "final_lr": 0}
OVERLAPPED = {"distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}


@pytest.mark.ci
@pytest.mark.parametrize("parallel", [{}, OVERLAPPED], ids=["plain", "overlapped"])
def test_a_run_is_weighted_from_its_start_on_and_resumes_exactly(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, parallel: dict[str, bool]
) -> None:
    weights = {"start": "3 steps", "temperature": 0.1}
    paths = {
        name: workshop.write_config(tmp_path / name, training=training, parallel=parallel, schedule=CONSTANT)
        for name, training in (
            ("plain", {}),
            ("weighted", {"loss_reweighting": weights}),
            ("pieces", {"loss_reweighting": weights}),
        )
    }
    two_ranks.call(train, path=paths["plain"])
    two_ranks.call(train, path=paths["weighted"])
    two_ranks.call(
        train, path=paths["pieces"], overrides=("training.tokens=8 steps", "validation.eval_interval.end=false")
    )
    two_ranks.call(train, path=paths["pieces"])
    assert records_of(tmp_path / "pieces") == records_of(tmp_path / "weighted")
    plain, weighted = (records_of(tmp_path / name, "train") for name in ("plain", "weighted"))
    assert column(weighted[:3], "grad_norm") == column(plain[:3], "grad_norm")
    assert weighted[3]["loss"] == plain[3]["loss"]  # the loss is not weighted
    assert weighted[3]["grad_norm"] != plain[3]["grad_norm"]
