"""How far the weights have moved, held against the exported weights."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from megatron_cpt.train.weight_updates import edge_layers
from tests.ranks import Ranks
from tests.train.runs import records_of, train
from tests.workshop import Workshop

FOUR_STEPS = ("training.tokens=4 steps", "checkpoint.save_interval=null", "validation.weight_updates=true")


def layers(hf: Path, first: int, last: int) -> np.ndarray:
    """All weights of some layers of a Hugging Face folder, by name."""
    weights = load_file(hf / "model.safetensors")
    chosen = [name for name in sorted(weights) if any(f".layers.{n}." in name for n in range(first, last + 1))]
    return np.concatenate([weights[name].ravel() for name in chosen]).astype(np.float64)


def test_updates_are_those_of_the_weights(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run, checkpoint={"export_hf": {"end": True}})
    one_rank.call(train, path=path, overrides=(*FOUR_STEPS, "validation.sets.domain.eval_interval={at: [2 steps]}"))
    records = records_of(run, "weights")
    assert [record["step"] for record in records] == [2, 4]
    expected = {}
    for end, (first, last) in {"bottom": (0, 1), "top": (2, 3)}.items():
        start, now = layers(workshop.hf, first, last), layers(run / "hf", first, last)
        relative = np.abs(now - start)[start != 0] / np.abs(start[start != 0])
        expected[end] = relative.mean(), np.linalg.norm(now - start) / np.linalg.norm(start)
    for place, name in enumerate(("mean_relative", "norm_ratio")):
        found = records[-1][name]
        assert found["bottom"] == pytest.approx(expected["bottom"][place], rel=1e-5)
        assert found["top"] == pytest.approx(expected["top"][place], rel=1e-5)
        assert found["bottom_over_top"] == pytest.approx(expected["bottom"][place] / expected["top"][place], rel=1e-5)


@pytest.mark.ci
def test_shards_of_main_weights_are_each_counted_once(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """In bf16 the fp32 weights are the optimizer's, whole on each rank or in shards of a distributed optimizer."""
    found = []
    for name in ("false", "true"):
        overrides = (*FOUR_STEPS, "training.precision=bf16", f"parallel.distributed_optimizer={name}")
        two_ranks.call(train, path=workshop.write_config(tmp_path / name), overrides=overrides)
        found.append(records_of(tmp_path / name, "weights")[-1])
    for name in ("mean_relative", "norm_ratio"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)


def test_a_small_model_is_halved() -> None:
    assert [edge_layers(count) for count in (32, 10, 9, 4, 1)] == [5, 5, 4, 2, 0]
