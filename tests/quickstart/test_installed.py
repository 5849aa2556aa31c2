"""`megatron-cpt quickstart` from an installed wheel, in a folder where nothing of the repository is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from megatron_cpt.runs.folder import read_status

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel holds it."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: pip builds in the tree, and would find there what an earlier build has left.
    source = folder / "source"
    shutil.copytree(ROOT / "megatron_cpt", source / "megatron_cpt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=240)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_what_is_read_beside_the_code(installed: Path) -> None:
    names = {path.name for path in (installed / "megatron_cpt/quickstart").glob("*.yaml")}
    assert names == {"base.yaml", "naive.yaml", "mitigated.yaml"}
    assert (installed / "megatron_cpt/py.typed").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    short = ["training.tokens=16 steps", "schedule.warmup=2 steps", "checkpoint.save_interval=16 steps"]
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "quickstart", *short]
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "quickstart/report.html").is_file()
    for name in ("base", "naive", "mitigated"):
        status = read_status(tmp_path / "quickstart" / name / "status.json")
        assert status is not None and (status.state, status.step) == ("done", 16)
