"""Checkpoints of a distributed optimizer whose buckets are padded: right now, and found out where they were not."""

import re
import shutil
from pathlib import Path

import pytest

from megatron_cpt.checkpoint import load
from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.runs import library_warnings
from tests.parallel import matrix
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import Workshop

PADDED = matrix.RESUMES["data 2, one a parameter; fully_reshardable"].written
ONE_BUCKET = matrix.RESUMES["data 2, one bucket; fully_reshardable"].written


def train_as_before(path: Path, overrides: tuple[str, ...]) -> int:
    """Job: a run that saves with Megatron-Core's own packing, and does not hear its warning."""
    load.replace_packing = lambda: None
    library_warnings.HARMLESS = re.compile("padded with zeros|differs from rank 0")
    return train(path, overrides)


def refusal(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: what a run says whose checkpoint is not taken."""
    with pytest.raises(IntegrityFault) as error:
        train(path, overrides)
    return str(error.value)


def settings(row: matrix.Row, *further: str) -> tuple[str, ...]:
    return (*matrix.RESUMED_STEPS, *row.overrides, *further)


@pytest.mark.ci
def test_optimizer_state_that_was_saved_wrongly_is_refused_and_the_weights_are_taken(
    two_ranks: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run, model={"hf": str(matrix.model_of(PADDED, workshop))})
    # Megatron-Core's own dp_reshardable fails with these buckets: only the last checkpoint is saved.
    before = settings(PADDED, "training.tokens=4 steps", "checkpoint.save_interval=4 steps")
    two_ranks.call(train_as_before, path=path, overrides=before)
    for said in two_ranks.call(refusal, path=path, overrides=settings(PADDED)):
        assert "step-00000004: its optimizer state does not belong to its weights" in said
        assert "`init_from: {checkpoint: " in said and "load_schedule: true, load_data_position: true}`" in said
    assert column(records_of(run, "train"), "step") == [1, 2, 3, 4]
    other = workshop.write_config(
        tmp_path / "other",
        model={"hf": str(matrix.model_of(PADDED, workshop))},
        init_from={
            "checkpoint": str(run / "checkpoints/step-00000004"),
            "load_optimizer": False,
            "load_schedule": True,
            "load_data_position": True,
        },
    )
    two_ranks.call(train, path=other, overrides=settings(PADDED))
    assert column(records_of(tmp_path / "other", "train"), "step") == [5, 6]


@pytest.mark.ci
def test_checkpoints_of_one_bucket_from_before_are_taken(two_ranks: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    before, run = tmp_path / "before", tmp_path / "run"
    model = {"hf": str(matrix.model_of(ONE_BUCKET, workshop))}
    path = workshop.write_config(before, model=model)
    two_ranks.call(train_as_before, path=path, overrides=settings(ONE_BUCKET))
    for step in (2, 4):  # dp_reshardable and fully_reshardable
        shutil.copytree(before, run)
        for later in range(step + 2, 8, 2):
            shutil.rmtree(run / "checkpoints" / f"step-{later:08}")
        two_ranks.call(train, path=workshop.write_config(run, model=model), overrides=settings(ONE_BUCKET))
        assert records_of(run) == records_of(before)
        shutil.rmtree(run)
