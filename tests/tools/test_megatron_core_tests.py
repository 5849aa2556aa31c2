"""The tool that runs Megatron-Core's own tests, on a checkout of a few tests."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from megatron.core import package_info

SCRIPT = Path(__file__).parents[2] / "tools/megatron_core_tests.py"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="it is for machines without CUDA")

ON_RANKS = """
import os
import signal

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state


@pytest.fixture(autouse=True)
def groups():
    if not dist.is_initialized():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group(backend="nccl")
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=4)


def test_passes():
    total = torch.ones(3, device="cuda").cuda().to("cuda")
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
    assert total.tolist() == [2.0] * 3
    assert torch.cuda.device_count() == dist.get_world_size() == 8


def test_fails_on_one_rank():
    assert dist.get_rank() != 3, "rank 3 is wrong"
    dist.barrier()


def test_comes_after_it():
    dist.barrier()


def test_needs_cuda():
    torch.cuda.get_device_properties(0)


def test_needs_transformer_engine():
    import transformer_engine


def test_dies():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


@pytest.mark.skipif(torch.cuda.get_device_capability()[0] < 9, reason="Hopper")
def test_is_skipped():
    pass
"""
ALONE = """
import os
import torch
import megatron.core


def test_passes():
    assert os.environ["WORLD_SIZE"] == "1"


def test_sees_the_platform():
    with megatron.core.utils.torch.cuda.stream(torch.cuda.Stream()):
        assert torch.randperm(4, device="cuda").device.type == "cpu"
"""


def checkout(folder: Path, **files: str) -> Path:
    """A checkout of Megatron-LM with these test files."""
    core = folder / "megatron/core"
    tests = folder / "tests/unit_tests"
    core.mkdir(parents=True)
    tests.mkdir(parents=True)
    shutil.copy(package_info.__file__, core)
    for package in (tests.parent, tests):
        (package / "__init__.py").touch()
    for name, text in files.items():
        (tests / f"{name}.py").write_text(text)
    return folder


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    # This project's own tests are not on the path: theirs have the same name.
    path = {"PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=280, env=os.environ | path)


@pytest.mark.ci
def test_what_became_of_each_test_is_told_with_its_cause(tmp_path: Path) -> None:
    folder = checkout(tmp_path / "checkout", test_alone=ALONE, test_ranks=ON_RANKS)
    page = tmp_path / "page.md"
    done = run(SCRIPT, folder, "test_alone.py", "test_ranks.py", "--markdown", page, "--logs", tmp_path / "logs")
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "the sources are equal" in text
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert rows["tests"] == ["passed", "needs", "ours", "theirs", "hangs", "not explained", "skipped", "not run"]
    assert rows["`test_alone.py`"] == ["2", "", "", "", "", "", "", ""]
    missing = 1 if find_spec("transformer_engine") is None else 0
    assert rows["`test_ranks.py`"] == [str(3 - missing), str(1 + missing), "", "", "1", "1", "1", ""]
    assert "| needs | a GPU | 1 |" in text
    assert "| hangs | a process died of SIGKILL | 1 |" in text
    assert "`test_ranks.py::test_fails_on_one_rank`: AssertionError: rank 3 is wrong" in text
    assert "test_ranks.py: " in done.stdout and "(8 processes" in done.stdout


@pytest.mark.slow
def test_a_test_that_hangs_is_killed_and_the_next_one_runs(tmp_path: Path) -> None:
    text = "import time\n\n\ndef test_hangs():\n    time.sleep(1000)\n\n\ndef test_comes_after_it():\n    pass\n"
    folder = checkout(tmp_path / "checkout", test_hangs=text)
    limit = f"import megatron_core_tests as t; t.TEST_LIMIT = 30; t.main([{str(folder)!r}, 'test_hangs.py'])"
    done = run("-c", f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); {limit}")
    assert "| all | 1 |  |  |  | 1 |  |  |  |" in done.stdout, done.stderr
    assert "hangs: no end within 30 s" in done.stdout


@pytest.mark.ci
def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    assert (done := run(SCRIPT, tmp_path)).returncode == 2
    assert "it holds no unit tests" in done.stderr
    assert (done := run(SCRIPT, checkout(tmp_path), "data")).returncode == 2
    assert "data: there is no such path" in done.stderr
