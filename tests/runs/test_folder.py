from pathlib import Path

import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.runs.folder import RunFolder


def test_the_names_of_a_run(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    places = (
        folder.config,
        folder.plan,
        folder.versions,
        folder.lineage,
        folder.records,
        folder.status,
        folder.log,
        folder.tensorboard,
        folder.checkpoints,
        folder.hf,
        folder.report,
    )
    assert [place.relative_to(tmp_path).as_posix() for place in places] == [
        "config.yaml",
        "plan.json",
        "versions.json",
        "lineage.json",
        "records.jsonl",
        "status.json",
        "log.txt",
        "tensorboard",
        "checkpoints",
        "hf",
        "report.html",
    ]


def test_create_makes_what_is_missing_and_leaves_what_is_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.create()
    (folder.checkpoints / "kept").touch()
    folder.create()
    assert (folder.checkpoints / "kept").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(BadInput, match=r"run folder cannot be made here: .*run\.folder"):
        RunFolder(tmp_path / "runs" / "one").create()
