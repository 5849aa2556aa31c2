"""Ranks that a signal ends: the command that started them knows which, and by what."""

import os
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from megatron_cpt.commands.ranks import Death, Ranks
from megatron_cpt.commands.torchrun import killed_rank
from megatron_cpt.runs.folder import ExitCode

MORTAL = """
import os, sys, time
if os.environ.get("RANK", "0") == sys.argv[1]:
    os.kill(os.getpid(), int(sys.argv[2])) if int(sys.argv[2]) else sys.exit(3)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("processes", "rank", "number"),
    [(1, 0, signal.SIGBUS), (1, 0, 0), (2, 1, signal.SIGKILL), (2, 1, 0)],
    ids=["one, SIGBUS", "one, an exit code", "two, SIGKILL", "two, an exit code"],
)
def test_a_rank_that_a_signal_ends_is_named(tmp_path: Path, processes: int, rank: int, number: int) -> None:
    (tmp_path / "mortal.py").write_text(MORTAL)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    ranks = Ranks(processes, "mortal", [str(rank), str(int(number))], environment)
    code, death = ranks.wait(), ranks.death()
    if number:
        assert death is not None
        assert (death.rank, death.signal, code) == (rank, number, ExitCode.OTHER)
        assert f"rank {rank} (process {death.process}) was ended by {signal.Signals(number).name}, usually" in str(
            death
        )
    else:
        assert death is None
        assert code == (3 if processes == 1 else ExitCode.OTHER)


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert str(Death(None, 7, signal.SIGRTMIN + 1)) == f"torchrun (process 7) was ended by signal {signal.SIGRTMIN + 1}"


def ended(exitcode: int, second: int) -> ProcessFailure:
    """How torchrun notes the end of a rank."""
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=exitcode, error_file="")
    failure.timestamp = second
    return failure


def test_what_torchrun_ends_is_not_taken_for_a_killed_rank() -> None:
    """It sends the others SIGTERM, and SIGKILL 30 s later."""
    assert killed_rank({0: ended(1, 100), 1: ended(-signal.SIGKILL, 130)}) is None
    assert killed_rank({0: ended(1, 100), 1: ended(-signal.SIGTERM, 101)}) is None
    assert killed_rank({0: ended(1, 100), 1: ended(-signal.SIGBUS, 100)}) == 1
    assert killed_rank({0: ended(-signal.SIGKILL, 131), 2: ended(-signal.SIGSEGV, 101)}) == 2
