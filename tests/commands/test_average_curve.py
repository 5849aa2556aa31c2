"""The curve between a base and a model has the run's own losses at its ends, and a mean's where the mean is."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_cpt.commands.average import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.runs.records import read_records
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop

Losses = dict[tuple[str, str], float]


def command(words: list[str]) -> int:
    """Job: `megatron-cpt average`."""
    return main(words)


def refusal(words: list[str]) -> str:
    """Job: what it says of a curve that cannot be drawn."""
    with pytest.raises(BadInput) as error:
        main(words)
    return str(error.value)


def read(folder: Path) -> Losses:
    """Losses of curve.csv by set and share."""
    with (folder / "curve.csv").open() as file:
        return {(row["set"], row["share"]): float(row["loss"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def run(one_rank: Ranks, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that keeps attention within documents, with its losses before and after."""
    run = tmp_path_factory.mktemp("curve") / "run"
    path = workshop.write_config(run, data={"attention": "within_documents"})
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps",))
    return run


def words(sources: Sequence[Path], run: Path, output: Path, *more: str) -> list[str]:
    """The command line of a curve."""
    return [*map(str, sources), "--curve", f"{run}.yaml", "training.tokens=4 steps", "--output", str(output), *more]


@pytest.mark.ci
def test_the_curve_goes_through_the_runs_losses_and_those_of_a_mean(
    one_rank: Ranks, workshop: Workshop, run: Path, tmp_path: Path
) -> None:
    assert one_rank.call(command, words=words([run, workshop.hf], run, tmp_path / "curve")) == [0]
    losses = read(tmp_path / "curve")
    assert [share for name, share in losses if name == "domain"] == [f"{tenth / 10:g}" for tenth in range(11)]
    recorded = [one for one in read_records(run / "records.jsonl") if one["kind"] == "validation"]
    for record in recorded:
        if record["step"] in (0, 4):
            share = "0" if record["step"] == 0 else "1"
            assert losses[record["set"], share] == pytest.approx(record["loss"], abs=1e-5), record["set"]
    assert {record["step"] for record in recorded} >= {0, 4} and losses["domain", "1"] < losses["domain", "0"] - 0.01

    mean = tmp_path / "mean"
    average = [str(run), str(workshop.hf), "--weights", "3", "7", "--output", str(mean)]
    assert one_rank.call(command, words=average) == [0]
    assert one_rank.call(command, words=words([mean, workshop.hf], run, tmp_path / "to_mean")) == [0]
    for name in ("domain", "general"):
        assert read(tmp_path / "to_mean")[name, "1"] == pytest.approx(losses[name, "0.3"], abs=1e-5)

    page = (tmp_path / "curve/curve.html").read_text()
    assert "<svg" in page and f"<td>{losses['domain', '0.5']:.4f}</td>" in page
    assert sorted(path.name for path in (tmp_path / "curve").iterdir()) == ["curve.csv", "curve.html"]


@pytest.mark.parametrize(
    ("sources", "more", "said"),
    [
        (1, (), "Name the model, then its base"),
        (2, ("--weights", "1", "1"), "--weights: says how a model is made"),
        (2, ("--method", "ties"), "--method: says how a model is made"),
        (2, ("--curve", "validation.sets={}"), "has no validation.sets"),
    ],
)
def test_a_curve_that_cannot_be_drawn(
    one_rank: Ranks, workshop: Workshop, run: Path, tmp_path: Path, sources: int, more: tuple[str, ...], said: str
) -> None:
    named = [run, workshop.hf][:sources]
    assert said in one_rank.call(refusal, words=words(named, run, tmp_path / "curve", *more))[0]
    assert not list(tmp_path.iterdir())


def test_processes_are_of_a_curve_alone(tmp_path: Path) -> None:
    """One process writes a model: more would be asked for in vain."""
    said = refusal([str(tmp_path), str(tmp_path), "--nproc", "3", "--output", str(tmp_path / "mean")])
    assert "--nproc 3: is of --curve" in said
    assert not list(tmp_path.iterdir())
