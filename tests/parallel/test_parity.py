"""Whatever the layout, the same data and the same numbers: losses to 2e-6, gradient norms to 1e-5 relative."""

from pathlib import Path

import numpy as np
import pytest

from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, column, records_of, train
from tests.workshop import Workshop

TWENTY_STEPS = (
    "training.tokens=20 steps",
    "checkpoint.every=null",
    "validation.weight_updates=true",
    "validation.stability_gradient=general",
)


@pytest.fixture(scope="module")
def one_process(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process from the shared Hugging Face weights."""
    run = tmp_path_factory.mktemp("parity") / "one"
    one_rank.call(train, path=workshop.write_config(run, tasks=workshop.tasks), overrides=TWENTY_STEPS)
    return run


def assert_same_run(run: Path, reference: Path) -> None:
    """Compares the records of two runs field by field."""
    ours, theirs = records_of(run, "train"), records_of(reference, "train")
    assert column(theirs, "step") == list(range(1, 21))
    for name in ("step", "tokens", "sequences", "learning_rate", "source_tokens", "source_epochs"):
        assert column(ours, name) == column(theirs, name), name
    np.testing.assert_allclose(column(ours, "loss"), column(theirs, "loss"), rtol=0, atol=2e-6)
    np.testing.assert_allclose(column(ours, "grad_norm"), column(theirs, "grad_norm"), rtol=1e-5, atol=0)
    for left, right in zip(column(ours, "source_losses"), column(theirs, "source_losses"), strict=True):
        assert left == pytest.approx(right, abs=1e-5)
    ours, theirs = records_of(run, "validation"), records_of(reference, "validation")
    for name in ("step", "set", "identity", "scored_tokens", "scored_bytes", "sequence_tokens"):
        assert column(ours, name) == column(theirs, name), name
    np.testing.assert_allclose(column(ours, "loss"), column(theirs, "loss"), rtol=0, atol=2e-6)
    for left, right in zip(column(ours, "sequence_nats"), column(theirs, "sequence_nats"), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)
    ours, theirs = records_of(run, "task"), records_of(reference, "task")
    assert column(theirs, "step") == [0, 0, 0, 20, 20, 20]
    for name in ("step", "task", "metric", "shots", "identity", "item_weights"):
        assert column(ours, name) == column(theirs, name), name
    for left, right in zip(column(ours, "item_losses"), column(theirs, "item_losses"), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)
    ours, theirs = records_of(run, "weights", "stability"), records_of(reference, "weights", "stability")
    assert column(theirs, "step") == [0, 5, 5, 20, 20]
    for left, right in zip(ours, theirs, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() & {"gradient_norm", "norm_ratio", "mean_relative"}:
            # Where a gradient is rounding alone, Adam moves a weight either way.
            assert left[name] == pytest.approx(right[name], rel=1e-3 if name == "mean_relative" else 1e-5), name
    assert records_of(run, "task_group") == records_of(reference, "task_group") != []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_give_what_one_gives(
    two_ranks: Ranks, workshop: Workshop, one_process: Path, tmp_path: Path, layout: str
) -> None:
    path = workshop.write_config(tmp_path / "two", tasks=workshop.tasks)
    two_ranks.call(train, path=path, overrides=(*TWENTY_STEPS, *LAYOUTS[layout]))
    assert_same_run(tmp_path / "two", one_process)


def test_tensor_and_pipeline_together_give_what_one_gives(
    four_ranks: Ranks, workshop: Workshop, one_process: Path, tmp_path: Path
) -> None:
    path = workshop.write_config(tmp_path / "four", tasks=workshop.tasks)
    overrides = (*TWENTY_STEPS, "parallel.tensor=2", "parallel.pipeline=2")
    four_ranks.call(train, path=path, overrides=overrides)
    assert_same_run(tmp_path / "four", one_process)


def test_micro_batches_change_nothing(one_rank: Ranks, workshop: Workshop, one_process: Path, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "small", tasks=workshop.tasks)
    one_rank.call(train, path=path, overrides=(*TWENTY_STEPS, "training.micro_batch_size=1"))
    assert_same_run(tmp_path / "small", one_process)
