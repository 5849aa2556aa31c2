"""Two jobs do not train in one folder; a job that was killed leaves no lock."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.runs.folder import only_job

HOLD = """
import os, sys, time
from pathlib import Path
from megatron_cpt.runs.folder import only_job
with only_job(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)  # a child, such as a writer of checkpoints, holds nothing
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_second_job_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        assert first.stdout is not None
        pid = int(first.stdout.readline())
        with pytest.raises(BadInput, match=f"process {pid} on .* is training in this folder"), only_job(tmp_path):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with only_job(tmp_path):
            pass
        with only_job(tmp_path):
            pass
        os.killpg(pid, signal.SIGKILL)
