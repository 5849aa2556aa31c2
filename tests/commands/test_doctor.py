"""`megatron-cpt doctor` names the kernels that a run on this machine is made of."""

import socket
import subprocess
import sys

import pytest
import torch

from megatron_cpt.commands.dispatch import main
from megatron_cpt.runs.folder import ExitCode


@pytest.mark.ci
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU they depend on what else is installed")
def test_doctor_names_every_kernel_of_a_cpu() -> None:
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "doctor"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split("  ", 1) for line in printed.splitlines() if "  " in line]
    assert {name: value.strip() for name, value in rows}.items() >= {
        "Megatron-Core runs on": "the CPU platform (gloo)",
        "layers": "Megatron-Core (oneDNN)",
        "attention": "torch scaled_dot_product_attention",
        "norm": "megatron-cpt RMSNorm",
        "rope": "megatron-cpt (CPU kernel)",
        "loss": "megatron-cpt (CPU kernel)",
        "optimizer": "torch AdamW (fused)",
        "context parallelism": "all-gather of keys and values",
        "experts": "Megatron-Core, sequential",
    }.items()


@pytest.mark.ci
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has GPUs")
def test_doctor_checks_a_machine_before_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--gpus", "0"]) == 0
    assert f"{socket.gethostname()}, cpu: CPU, " in capsys.readouterr().out
    assert main(["doctor", "--gpus", "8"]) == ExitCode.OTHER
    told = f"{socket.gethostname()}: has 0 GPUs, and 8 are wanted. See nvidia-smi."
    assert told in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "--gpus", "-1"])
    assert "must be 0 or more" in capsys.readouterr().err
