"""A release of Megatron-Core that cannot be installed is one error, before anything is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
before_3_12 = pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python can have the release")


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("0.20.0", "MCORE=0.20.0: megatron-cpt accepts Megatron-Core from 0.16.1 to 0.19"),
        ("0.16.0", "MCORE=0.16.0: megatron-cpt accepts Megatron-Core from 0.16.1 to 0.19"),
        ("0.19", "MCORE=0.19 is no release of Megatron-Core"),
        pytest.param("0.19.2", "MCORE=0.19.2 needs Python 3.12", marks=before_3_12),
    ],
)
def test_a_release_that_this_python_cannot_have_is_refused(release: str, expected: str, tmp_path: Path) -> None:
    environment = os.environ | {"MCORE": release, "PYTHON": sys.executable, "VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", ROOT / "tools/install.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_another_release_has_an_environment_of_its_own() -> None:
    command = ["make", "--dry-run", "test", "MCORE=0.19.2", "PYTHON=python3.12"]
    commands = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv-mcore-0.19.2/bin/python -m pytest" in commands
    assert ".venv/" not in commands


def install_beside_torch(folder: Path, pip: str, python: str, **more: str) -> int:
    """The exit code of `make install TORCH=system` with a line in place of pip and of the environment's Python."""
    venv, stand_in = folder / "venv", folder / "python"
    programs = "".join(
        f"    printf '%s\\n' '#!/bin/sh' '{line}' > {venv}/bin/{name}\n"
        for name, line in (("pip", pip), ("python", python))
    )
    stand_in.write_text(
        f'#!/bin/sh\ncase "$*" in *venv*)\n    mkdir -p {venv}/bin\n{programs}    chmod +x {venv}/bin/*;;\nesac\n'
    )
    stand_in.chmod(0o755)
    environment = os.environ | {
        "PYTHON": str(stand_in),
        "VENV": str(venv),
        "TORCH": "system",
        "MCORE": "",
        "EXTRAS": "",
    }
    return subprocess.run(["bash", ROOT / "tools/install.sh"], env=environment | more, capture_output=True).returncode


def test_pins_of_an_image_are_left_out_with_its_torch(tmp_path: Path) -> None:
    """Images of NGC name a file of pins for every pip (PIP_CONSTRAINT), which contradict ours."""
    heard = tmp_path / "heard"
    pip = f'echo "constraint=$PIP_CONSTRAINT $*" >> {heard}'
    assert install_beside_torch(tmp_path, pip, "echo torch==2.99", PIP_CONSTRAINT="/etc/pip/constraint.txt") == 0
    calls = heard.read_text().splitlines()
    assert len(calls) == 2
    assert all(call.startswith("constraint= install") for call in calls)


def test_the_torch_of_the_system_is_pinned_by_the_version_that_pip_knows(tmp_path: Path) -> None:
    """A release for CUDA calls itself 2.99.0+cu130, and is installed as 2.99.0: pip would find a conflict."""
    (tmp_path / "site/torch-2.99.0.dist-info").mkdir(parents=True)
    (tmp_path / "site/torch-2.99.0.dist-info/METADATA").write_text("Name: torch\nVersion: 2.99.0\n")
    (tmp_path / "site/torch.py").write_text('__version__ = "2.99.0+cu130"\n')
    heard = tmp_path / "heard"
    python = f'PYTHONPATH={tmp_path}/site exec {sys.executable} "$@"'
    install_beside_torch(tmp_path, f'grep -s ^torch= "$6" >> {heard}', python)
    assert heard.read_text() == "torch==2.99.0\n"
