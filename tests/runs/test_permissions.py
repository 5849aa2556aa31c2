"""What a neighbour on a shared file system puts into a run folder, or owns of it."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.runs.folder import RunFolder, only_job
from megatron_cpt.runs.permissions import keep_others_from_writing, owner_faults, writable_warnings
from megatron_cpt.runs.records import RecordWriter, RunLog, append_to_log


@pytest.fixture
def umask() -> Iterator[None]:
    """A umask that keeps nothing from anybody, until the end of the test."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("name", ["lock", "log.txt", "records.jsonl"])
def test_a_link_in_the_place_of_a_file_is_refused_and_what_it_names_stays(tmp_path: Path, name: str) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(target)

    def open_all() -> None:
        with only_job(run):
            RunLog(run / "log.txt").close()
            RecordWriter(run / "records.jsonl").close()

    with pytest.raises(BadInput, match=f"{name}: is a symbolic link"):
        open_all()
    if name == "log.txt":
        with pytest.raises(BadInput, match="is a symbolic link"):
            append_to_log(run / name, "stacks", rank=1)
    assert target.read_text() == "mine"


def test_a_new_run_folder_is_not_for_everybody_to_write(tmp_path: Path, umask: None) -> None:
    keep_others_from_writing()
    run = RunFolder(tmp_path / "run")
    run.create()
    RecordWriter(run.records).close()
    for path in (run.path, run.checkpoints, run.records):
        assert not path.stat().st_mode & stat.S_IWOTH


def test_folders_that_others_may_write_to_are_named(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("own", "everybody", "group", "absent")]
    for folder, mode in zip(folders, (0o755, 0o777, 0o770), strict=False):
        folder.mkdir()
        folder.chmod(mode)
    private = folders[2].stat().st_gid in (0, os.geteuid())
    if os.geteuid() == 0:
        os.chown(folders[2], 0, 4321)
        private = False
    found = list(writable_warnings(folders))
    assert [str(folder) in line for folder, line in zip(folders[1:3], found, strict=False)] == [True] * len(found)
    assert len(found) == (1 if private else 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_the_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """By a process of user 65534; the folder of root is not refused, nor is any to root."""
    theirs = tmp_path / "run"
    theirs.mkdir()
    os.chown(theirs, 4321, 4321)
    assert not list(owner_faults([theirs]))
    program = (
        "import os, sys; from pathlib import Path; os.setuid(65534)\n"
        "from megatron_cpt.runs.permissions import owner_faults\n"
        "print(*owner_faults(map(Path, sys.argv[1:])), sep='\\n')\n"
    )
    # The package is imported before, as its folder may be root's alone.
    program = f"import megatron_cpt.runs.permissions\n{program}"
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and "pytest" in str(folder):
            folder.chmod(folder.stat().st_mode | 0o755)
    said = subprocess.run([sys.executable, "-c", program, theirs, "/usr"], capture_output=True, text=True, check=True)
    assert f"{theirs}: belongs to user 4321, not to this one (65534)" in said.stdout
    assert "/usr" not in said.stdout
