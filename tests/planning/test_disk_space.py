"""What a plan says of the run folder: whether it can be written to, and whether the run fits into it."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.planning.plan import RunPlan, make_plan
from tests.planning.small_run import settings


class Usage(NamedTuple):
    """What the system says of a disk."""

    total: int
    used: int
    free: int


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    return settings(tmp_path)


def plan_of(sections: dict[str, Any]) -> RunPlan:
    return make_plan(config_from_dict(sections))


def test_checkpoints_and_exports_are_counted(sections: dict[str, Any]) -> None:
    parameters = plan_of(sections).model.parameters
    size = 14 * parameters  # in bf16; 12 in fp32
    sections["checkpoint"] = {"save_interval": "10 steps", "keep_every": "50 steps", "export_hf": {"dtype": "bfloat16"}}
    disk = plan_of(sections).disk
    # Of 100 steps the last two and one that is being written, those at 50 and 100, and the folder at the end.
    assert (disk.checkpoints, disk.checkpoint_bytes, disk.exports, disk.export_bytes) == (5, size, 1, 2 * parameters)
    assert (
        f"Disk     {disk.total / 1024:.2f} KiB at most: 5 checkpoints of {size / 1024:.2f} KiB"
        in plan_of(sections).table()
    )
    del sections["checkpoint"]
    assert plan_of(sections).disk.checkpoints == 1


def test_a_disk_that_will_be_full_is_told(sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [line for line in plan_of(sections).warnings if "disk" in line]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6, 10))
    (told,) = [line for line in plan_of(sections).warnings if "disk" in line]
    assert "0.01 KiB are free" in told
    # What lies there already needs no room again.
    checkpoint = Path(sections["run"]["folder"]) / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "shard").write_bytes(bytes(plan_of(sections).disk.total))
    assert not [line for line in plan_of(sections).warnings if "disk" in line]


def test_a_folder_that_cannot_be_written_to_is_refused(sections: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sections["run"]["folder"] = str(tmp_path / "file" / "run")
    with pytest.raises(BadInput, match="file is a file"):
        plan_of(sections)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    # The superuser may write into any folder but one of a disk that is mounted to be read.
    mounted = os.geteuid() == 0
    if mounted and subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", closed]).returncode:
        pytest.skip("nothing is closed to this user")
    sections["run"]["folder"] = str(closed / "a" / "run")
    try:
        with pytest.raises(BadInput, match=f"{closed} cannot be written to from here"):
            plan_of(sections)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", closed], check=True)
