"""What must hold on a machine with CUDA."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_cpt.parallel import cpu_platform
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import Workshop

pytestmark = pytest.mark.gpu


def test_the_cpu_platform_does_nothing() -> None:
    assert not cpu_platform.installed()
    assert sys.modules["megatron.core.utils"].torch is torch


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_gives_the_losses_that_transformers_gives(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, precision: str
) -> None:
    one_rank.call(train, path=workshop.write_config(tmp_path / "run"), overrides=(f"training.precision={precision}",))
    baseline = [record for record in records_of(tmp_path / "run", "validation") if record["step"] == 0]
    # The workshop's fp32 losses; the CPU test holds them to transformers' own.
    expected = {"domain": 5.7610, "general": 5.7839}
    for record in baseline:
        assert record["loss"] == pytest.approx(expected[record["set"]], abs=1e-3 if precision == "fp32" else 2e-2)
    losses = column(records_of(tmp_path / "run", "train"), "loss")
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2


def test_a_gpu_run_resumes(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    shorter = ("schedule.kind=constant", "schedule.final_lr=0")
    one_rank.call(train, path=path, overrides=(*shorter, "training.tokens=4 steps"))
    one_rank.call(train, path=path, overrides=shorter)
    assert column(records_of(tmp_path / "run", "train"), "step") == list(range(1, 13))
