"""What status.json tells is why the rank failed that failed first, not what its end did to the others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_cpt.runs.folder import Status, read_status
from tests.workshop import Workshop

# A rank whose third step fails, as with a defect of a library; the others wait for it in a sum over all ranks.
PROGRAM = """
import os, sys
from megatron_cpt.train import loop, program
from megatron_cpt.train.stop import StopRequest

whole, done = loop.train_step, []

def train_step(*arguments):
    done.append(1)
    if os.environ["RANK"] == "1" and len(done) == 3:
        raise AssertionError("empty bucket encountered")
    return whole(*arguments)

loop.train_step = train_step
with StopRequest() as request:
    sys.exit(program.main(sys.argv[1:], request))
"""


@pytest.mark.ci
def test_the_status_tells_why_the_first_rank_failed(workshop: Workshop, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    path = workshop.write_config(tmp_path / "run", validation={"sets": {}})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    ended = subprocess.run([*command, str(path)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert ended.returncode == 1, ended.stderr.decode()
    status = read_status(tmp_path / "run" / "status.json")
    assert status == Status("failed", 1, "rank 1: AssertionError: empty bucket encountered", 0, 0)
