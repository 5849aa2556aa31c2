"""The script for those who look for Megatron-LM's converter."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.hf_models import assert_same_tensors, write_llama

SCRIPT = Path(__file__).parents[2] / "tools/convert_checkpoint.py"


def convert(loader: str, saver: str, source: Path, target: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--model-type", "GPT", "--loader", loader, "--saver", saver, "--load-dir", source, "--save-dir", target]
    return subprocess.run([sys.executable, SCRIPT, *words, *more], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_folder_goes_in_and_out(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf")
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "out"
    assert convert("llama_mistral", "core", folder, checkpoint, "--target-tensor-parallel-size", "2").returncode == 0
    assert convert("core", "hf", checkpoint, output).returncode == 0
    assert_same_tensors(output, folder)
    refused = convert("core", "core", checkpoint, tmp_path / "other")
    assert refused.returncode == 2
    assert "is no conversion between" in refused.stderr
