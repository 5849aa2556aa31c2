"""A resumed run is the run: bit-equal losses, gradient norms and evaluations on the same layout."""

import shutil
from pathlib import Path

import pytest

from megatron_cpt.config.errors import BadInput
from tests.ranks import Ranks
from tests.train.runs import LAYOUTS, records_of, train
from tests.workshop import Workshop

# Dropout draws from the random states that a checkpoint keeps; evaluations and saves lie between.
MEASURED = ("validation.weight_updates=true", "validation.stability_gradient=general")
SETTINGS = ("model.dropout=0.1", "checkpoint.keep_last=9", "checkpoint.keep_every=8 steps", *MEASURED)


def cut_back(run: Path, step: int, to: Path) -> None:
    """Copies a run as a kill after a step's checkpoint would have left it, with records beyond it."""
    shutil.copytree(run, to)
    for checkpoint in sorted((to / "checkpoints").iterdir()):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def resumes_exactly(ranks: Ranks, workshop: Workshop, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    ranks.call(train, path=workshop.write_config(straight), overrides=(*SETTINGS, *overrides))
    for step in (4, 8):  # dp_reshardable and fully_reshardable
        cut_back(straight, step, resumed)
        ranks.call(train, path=workshop.write_config(resumed), overrides=(*SETTINGS, *overrides))
        assert records_of(resumed) == records_of(straight)
        assert f"resumed after step {step}" in (resumed / "log.txt").read_text()
        shutil.rmtree(resumed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_resume_exactly(two_ranks: Ranks, workshop: Workshop, tmp_path: Path, layout: str) -> None:
    resumes_exactly(two_ranks, workshop, tmp_path, LAYOUTS[layout])


@pytest.mark.parametrize("distributed", ["false", "true"])
def test_one_process_resumes_exactly(one_rank: Ranks, workshop: Workshop, tmp_path: Path, distributed: str) -> None:
    resumes_exactly(one_rank, workshop, tmp_path, (f"parallel.distributed_optimizer={distributed}",))


def test_bf16_resumes_exactly(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    resumes_exactly(one_rank, workshop, tmp_path, ("training.precision=bf16",))


def refusal(path: Path, overrides: tuple[str, ...]) -> str:
    """Job: what a run that must not go on says."""
    with pytest.raises(BadInput) as error:
        train(path, overrides)
    return str(error.value)


def test_a_resume_that_would_see_other_data_is_refused(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps",))
    before = records_of(tmp_path / "run")
    for override, named in [
        ("run.seed=6", "seed: 5 before, 6 now"),
        ("data.replay_ratio=0.5", "phases"),
        ("data.sequence_length=16", "sequence_length: 32 before, 16 now"),
        ("data.sources.general.paths=['" + workshop.prefix("general") + ".validation']", "sources.general.identity"),
    ]:
        said = one_rank.call(refusal, path=path, overrides=(override, "validation.sets={}"))[0]
        assert named in said
    assert records_of(tmp_path / "run") == before


def test_a_longer_run_goes_on_where_the_shorter_ended(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    constant = ("schedule.kind=constant", "schedule.final=0", "validation.marks.end=false")
    whole, extended = tmp_path / "whole", tmp_path / "extended"
    one_rank.call(train, path=workshop.write_config(whole), overrides=constant)
    path = workshop.write_config(extended)
    one_rank.call(train, path=path, overrides=(*constant, "training.tokens=6 steps"))
    one_rank.call(train, path=path, overrides=constant)
    assert records_of(extended) == records_of(whole)


def test_a_run_goes_on_with_an_appended_phase(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    """Whether the phase was planned from the beginning or appended after step 6, the records are the same."""
    constant = ("schedule.kind=constant", "schedule.final=0", "validation.marks.end=false")
    phases = "data.phases=[{from_tokens: 0}, {from_tokens: 6 steps, replay_ratio: 0.75}]"
    planned, appended = tmp_path / "planned", tmp_path / "appended"
    one_rank.call(train, path=workshop.write_config(planned), overrides=(*constant, phases))
    path = workshop.write_config(appended)
    one_rank.call(train, path=path, overrides=(*constant, "training.tokens=6 steps"))
    one_rank.call(train, path=path, overrides=(*constant, phases))
    assert records_of(appended) == records_of(planned)
    given = [record["source_tokens"]["general"] for record in records_of(planned, "train")]
    assert (given[5], given[11]) == (14 * 32, 50 * 32)
    too_early = phases.replace("6 steps", "11 steps")
    said = one_rank.call(refusal, path=path, overrides=(*constant, too_early))[0]
    assert "phases.1.first_sequence: 48 before, 88 now" in said


def test_another_layout_is_refused(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps",))
    said = one_rank.call(refusal, path=path, overrides=("parallel.distributed_optimizer=true",))[0]
    assert "a plain optimizer" in said
    assert "a distributed optimizer" in said
