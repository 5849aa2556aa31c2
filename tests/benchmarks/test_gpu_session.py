"""The script for a first time on a GPU, on the CPU: what it found is on its page, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_cpt.runs.processes import end_all
from tests.train.runs import descendants, wait_until_gone

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu_session.py"


def wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    """Returns once a log holds a text."""
    deadline = time.monotonic() + 240
    while not log.exists() or text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.1)


@pytest.mark.ci
def test_a_session_that_is_ended_keeps_what_it_found(tmp_path: Path) -> None:
    """The kernels of this machine, and the steps of the families that were tried before the SIGTERM."""
    words = [str(SCRIPT), str(tmp_path), "--device", "cpu", "--only", "doctor", "families"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(tmp_path / "families.log", '"failed"', process)
        parts = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        wait_until_gone(parts)
    finally:
        end_all([process.pid, *descendants(process.pid)])
    rows = [line.split(" | ") for line in (tmp_path / "results.md").read_text().splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows[1:]] == [["| doctor", "done"], ["| families", "ended by SIGTERM"]]
    families = (tmp_path / "results.md").read_text().partition("## families")[2]
    assert "- failed: none" in families
    loss = float(families.partition("- llama: loss ")[2].partition(";")[0])
    assert 4 < loss < 8  # of 512 ids, ln 512 = 6.2
