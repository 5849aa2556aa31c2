"""Libraries that are older than this package needs are refused at the start of every command."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_cpt.runs.floors import floor_faults


def installed(folder: Path, name: str, version: str) -> dict[str, str]:
    """An environment that has another version of a library before the installed one."""
    described = folder / f"{name}-{version}.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {"PYTHONPATH": str(folder)}


def test_what_is_installed_is_new_enough() -> None:
    assert not list(floor_faults())


@pytest.mark.parametrize(
    ("name", "version", "floor"),
    [("torch", "2.5.1+cu124", "2.10"), ("transformers", "5.2.0", "5.3"), ("safetensors", "0.7.1", "0.8")],
)
def test_an_older_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, floor: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, name, version)
    [fault] = floor_faults()
    assert str(fault) == f"{name} {version}: is older than {floor}. Install it: pip install '{name}>={floor}'."


def test_a_build_of_a_vendor_is_not_older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, "torch", "2.10.0a0+b4e4ee8")
    assert not list(floor_faults())


@pytest.mark.ci
@pytest.mark.parametrize("module", ["megatron_cpt.commands.dispatch", "megatron_cpt.train"])
def test_a_command_does_not_start_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, "torch", "2.5.1")
    words = ["plan", "RUN.yaml"] if module.endswith("dispatch") else ["RUN.yaml"]
    program = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = {words!r}\n"
    program += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "torch 2.5.1: is older than 2.10." in ended.stderr
