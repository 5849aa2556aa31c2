"""Whatever the layout, the same data and the same numbers: losses to 2e-6, gradient norms to 1e-5 relative."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from megatron.core.transformer.moe.experts import SequentialMLP

from tests.parallel import matrix
from tests.params import quick_among
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import Workshop

TWENTY_STEPS = (
    "training.tokens=20 steps",
    "checkpoint.save_interval=null",
    "validation.weight_updates=true",
    "validation.gradient_conflict=[general]",
)


Reference = Callable[[str], Path]
"""The run of one process, by name (matrix.BASES)."""


@pytest.fixture(scope="module")
def one_process(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The runs of one process from the shared Hugging Face weights, each made when it is first asked for."""

    @cache
    def reference(base: str) -> Path:
        run = tmp_path_factory.mktemp("parity") / base
        matrix.run_row(one_rank, workshop, run, matrix.Row(1, (), base))
        return run

    return reference


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
    for name in ("step", "task", "metric", "num_fewshot", "identity", "item_weights"):
        assert column(ours, name) == column(theirs, name), name
    for left, right in zip(column(ours, "item_losses"), column(theirs, "item_losses"), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)
    ours, theirs = records_of(run, "weights", "gradients"), records_of(reference, "weights", "gradients")
    assert column(theirs, "step") == [5, 5, 20, 20]
    for left, right in zip(ours, theirs, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() & {"gradient_norm", "training_gradient_norm", "norm_ratio", "mean_relative"}:
            # Where a gradient is rounding alone, Adam moves a weight either way.
            assert left[name] == pytest.approx(right[name], rel=1e-3 if name == "mean_relative" else 1e-5), name
        for name in left.keys() & {"cosine", "predicted_change", "change"}:
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-5), name
    assert records_of(run, "task_group") == records_of(reference, "task_group") != []


# One row for each kind of sharing; the others, which are parts or mixtures of these, take longer than they tell.
SHORT = (
    "data 2, distributed optimizer, both overlaps",
    "tensor 2, pipeline 2",
    "context 2",
    "recomputation, selective",
)
IN_CI = (
    "tensor 2, sequence",
    "pipeline 2 x 2 chunks",
    "experts, expert 2, context 2",
    "experts, sequence balance, 8 micro batches",
)


@pytest.mark.parametrize("name", quick_among(matrix.ROWS, SHORT, IN_CI))
def test_a_row_of_the_matrix(
    request: pytest.FixtureRequest, workshop: Workshop, one_process: Reference, tmp_path: Path, name: str
) -> None:
    row = matrix.ROWS[name]
    pool: Ranks = request.getfixturevalue({1: "one_rank", 2: "two_ranks", 4: "four_ranks"}[row.ranks])
    matrix.run_row(pool, workshop, tmp_path / "run", row)
    reference = one_process(row.base)
    assert_same_run(tmp_path / "run", reference)
    assert matrix.differences(tmp_path / "run", reference).passed


def train_unmarked(path: Path, overrides: tuple[str, ...]) -> int:
    """Job: trains experts whose weights have no marks, as those of Transformer Engine's grouped layers from 2.13 on."""
    build = SequentialMLP.__init__

    def build_unmarked(experts: SequentialMLP, *arguments: object, **named: object) -> None:
        build(experts, *arguments, **named)
        for parameter in experts.parameters():
            del parameter.tensor_model_parallel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequentialMLP, "__init__", build_unmarked)
        return train(path, overrides)


@pytest.mark.ci
def test_weights_of_experts_count_in_the_gradient_norm_on_every_rank_that_has_a_part(
    two_ranks: Ranks, workshop: Workshop, one_process: Reference, tmp_path: Path
) -> None:
    path = workshop.write_config(tmp_path / "run", model={"hf": str(workshop.hf_with_experts())})
    layout = ("parallel.tensor=2", "parallel.sequence=true", "training.tokens=20 steps", "validation.sets={}")
    two_ranks.call(train_unmarked, timeout=900, path=path, overrides=layout)
    ours, theirs = (column(records_of(run, "train"), "grad_norm") for run in (tmp_path / "run", one_process("experts")))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=0)
