"""A gradient that is not finite, on one rank, in one step: no rank makes the update, and what follows is as set."""

import hashlib
from pathlib import Path

import pytest
import torch
from megatron.core.optimizer.clip_grads import get_grad_norm_fp32

from megatron_cpt.config.errors import NumericsFault
from megatron_cpt.config.load import load_config
from megatron_cpt.families.shape import read_shape
from megatron_cpt.model.build import ModelOptions, build_model, wrap_for_training
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.train import loop
from megatron_cpt.train.logger import RunLogger
from megatron_cpt.train.optimizer import build_optimizer
from megatron_cpt.train.run import Run, assemble
from megatron_cpt.train.stop import StopRequest
from megatron_cpt.train.watchdog import Watchdog
from tests.params import quick_among
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, column, records_of, train
from tests.workshop import Workshop

MATRIX, NORM = "mlp.linear_fc1.weight", "final_layernorm.weight"


def train_with_nan(
    path: Path, overrides: tuple[str, ...], steps: tuple[int, ...], rank: int, parameter: str = MATRIX
) -> tuple[str, str, str]:
    """Job: trains; one element of one gradient of one rank is NaN in some steps.

    Returns what ended it, and hashes of the parameters before and after.
    """
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    run = assemble(config, make_plan(config, groups.world_size()), folder)
    if groups.rank() == rank:
        put_nan(run, parameter, steps)
    before = hash_of(run)
    logger = RunLogger(run)
    try:
        request = StopRequest()
        loop.train(run, logger, request, Watchdog(config.timeout, run.folder, request))
        ended = "done"
    except NumericsFault as fault:
        ended = str(fault)
    finally:
        logger.close()
    return ended, before, hash_of(run)


def put_nan(run: Run, name: str, steps: tuple[int, ...]) -> None:
    """Hooks the first parameter of that name, whose gradient comes once a micro batch: its buffer gets the NaN."""
    parameter = next(value for key, value in run.model[0].named_parameters() if key.endswith(name))
    calls = 0

    def spoil(gradient: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        step = run.first_step + (calls - 1) // run.step_shape.micro_batches + 1
        if step in steps:
            parameter.main_grad.view(-1)[3] = torch.nan

    parameter.register_hook(spoil)


def hash_of(run: Run) -> str:
    content = hashlib.sha256()
    for parameter in run.model[0].parameters():
        assert torch.isfinite(parameter).all()
        content.update(parameter.detach().float().numpy().tobytes())
    return content.hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_on_one_rank_stops_all_before_the_first_update(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str
) -> None:
    path = workshop.write_config(tmp_path / "run")
    for ended, before, after in two_ranks.call(
        train_with_nan, path=path, overrides=LAYOUTS[layout], steps=(1,), rank=1
    ):
        assert ended.startswith("step 1: loss ")
        assert before == after
    [event] = records_of(tmp_path / "run", "event")
    assert (event["event"], event["step"], event["grad_norm"]) == ("stopped_not_finite", 1, None)
    assert not list((tmp_path / "run/checkpoints").iterdir())


def test_nan_in_what_the_norm_leaves_out_is_seen(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    # Tensor-parallel ranks hold the gradients of norms alike; the gradient norm counts those of rank 0.
    path = workshop.write_config(tmp_path / "run")
    for ended, before, after in two_ranks.call(
        train_with_nan, path=path, overrides=LAYOUTS["tensor 2"], steps=(1,), rank=1, parameter=NORM
    ):
        assert ended.startswith("step 1: loss ")
        assert before == after
    [event] = records_of(tmp_path / "run", "event")
    assert event["grad_norm"] > 0


@pytest.mark.ci
def test_a_run_stopped_later_goes_on_from_its_last_checkpoint(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    path = workshop.write_config(stopped)
    overrides = LAYOUTS["data 2, distributed optimizer"]
    said = two_ranks.call(train_with_nan, path=path, overrides=overrides, steps=(6,), rank=1)
    assert all(ended.startswith("step 6: loss ") for ended, _, _ in said)
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step-00000004"]
    two_ranks.call(train, path=path, overrides=overrides)
    two_ranks.call(train, path=workshop.write_config(whole), overrides=overrides)
    assert records_of(stopped) == records_of(whole)


@pytest.mark.ci
@pytest.mark.parametrize("layout", quick_among(["tensor 2", "data 2"], ["tensor 2"]))
def test_skip_leaves_the_update_out_and_goes_on(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    overrides = (*LAYOUTS[layout], "training.on_nonfinite=skip")
    path = workshop.write_config(run)
    results = two_ranks.call(train_with_nan, path=path, overrides=overrides, steps=(1, 7), rank=1)
    assert [ended for ended, _, _ in results] == ["done", "done"]
    if layout == "data 2":
        assert results[0][2] == results[1][2]
    two_ranks.call(train, path=workshop.write_config(whole), overrides=overrides)
    ours, theirs = records_of(run, "train"), records_of(whole, "train")
    assert column(records_of(run, "event"), "event") == ["skipped_not_finite"] * 2
    assert column(records_of(run, "event"), "step") == [1, 7]
    assert column(ours, "step") == [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    rest = [record for record in theirs if record["step"] not in (1, 7)]
    for name in ("tokens", "sequences", "learning_rate", "source_tokens"):
        assert column(ours, name) == column(rest, name)
    assert ours[0]["loss"] != rest[0]["loss"]  # the first update was not made


LONG = ("training.tokens=24 steps", "validation.sets={}", "checkpoint.save_interval=null")


@pytest.mark.ci
@pytest.mark.parametrize("step", quick_among([20, 23], [23]))
def test_nan_later_stops_all_before_the_update(two_ranks: Ranks, workshop: Workshop, tmp_path: Path, step: int) -> None:
    path, overrides = workshop.write_config(tmp_path / "run"), (*LONG, *LAYOUTS["tensor 2"])
    said = two_ranks.call(train_with_nan, path=path, overrides=overrides, steps=(step,), rank=1)
    assert all(ended.startswith(f"step {step}: loss ") for ended, _, _ in said)
    assert column(records_of(tmp_path / "run", "train"), "step") == list(range(1, step))
    [event] = records_of(tmp_path / "run", "event")
    assert (event["event"], event["step"]) == ("stopped_not_finite", step)


def test_nan_later_is_skipped_on_all(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path, overrides = workshop.write_config(tmp_path / "run"), (*LONG, "training.on_nonfinite=skip")
    results = two_ranks.call(train_with_nan, path=path, overrides=overrides, steps=(1, 20, 23), rank=1)
    assert [ended for ended, _, _ in results] == ["done", "done"]
    assert results[0][2] == results[1][2]  # replicas end with the same weights
    assert column(records_of(tmp_path / "run", "event"), "step") == [1, 20, 23]
    assert column(records_of(tmp_path / "run", "train"), "step") == [*range(2, 20), 21, 22, 24]


@pytest.mark.ci
def test_skipping_does_not_go_on_for_ever(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    overrides = ("training.on_nonfinite=skip",)
    [(ended, before, after)] = one_rank.call(
        train_with_nan, path=path, overrides=overrides, steps=tuple(range(13)), rank=0
    )
    assert ended.startswith("step 11: loss ")
    assert "11 times in a row" in ended
    assert before == after
    assert len(records_of(tmp_path / "run", "event")) == 11


def optimizer_norm_of(path: Path) -> list[float]:
    """Job: the norm of a large gradient, as an optimizer computes it, and as float64 sums give it."""
    config = load_config(path, ())
    groups.init_model_parallel(config.parallel)
    options = ModelOptions.of_run(config)
    model = wrap_for_training(build_model(read_shape(Path(config.model.hf)), options), options)
    build_optimizer(model, config.optimizer, config.schedule.peak_lr)
    gradient = torch.full((2**25,), 1e-3)
    return [get_grad_norm_fp32([gradient]), float(gradient.double().norm())]


def test_the_norm_of_a_large_gradient_is_right(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """A float32 sum of squares stands still where a square is less than half its last digit: 0.5 % at 65M elements."""
    ours, right = one_rank.call(optimizer_norm_of, path=workshop.write_config(tmp_path / "run"))[0]
    assert ours == pytest.approx(right, rel=1e-6)
