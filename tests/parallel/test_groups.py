"""Groups that are given back take their threads with them: each wakes a hundred times a second."""

from pathlib import Path

from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop


def test_a_run_leaves_no_threads_behind(workshop: Workshop, tmp_path: Path) -> None:
    ranks = Ranks(2)
    counts = []
    for number in range(3):
        path = workshop.write_config(tmp_path / f"run-{number}", validation={"sets": {}})
        ranks.call(train, path=path, overrides=("training.tokens=4 steps",))
        counts.append(ranks.threads())
    ranks.stop()
    assert counts[0] == counts[1] == counts[2]
