"""torchrun, which also tells whoever started it which rank a signal ended: `python -m megatron_cpt.commands.torchrun
DESCRIPTOR ARGUMENTS`, with a file descriptor for the answer and torchrun's arguments.

torchrun alone returns 1, and says it in a report for people.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence

import orjson
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from megatron_cpt.runs.folder import ExitCode

_TORCHRUN_KILLS_AFTER = 30
"""Seconds after a rank's end until torchrun kills the others; it sends them SIGTERM first."""


def main(arguments: Sequence[str]) -> int:
    """Runs the ranks to their end and returns torchrun's exit code."""
    report, *words = arguments
    try:
        torchrun.run(torchrun.parse_args(words))
    except ChildFailedError as error:
        if (rank := killed_rank(error.failures)) is not None:
            failure = error.failures[rank]
            told = {"rank": rank, "process": failure.pid, "signal": -failure.exitcode}
            os.write(int(report), orjson.dumps(told))
        return ExitCode.OTHER
    return ExitCode.DONE


def killed_rank(failures: Mapping[int, ProcessFailure]) -> int | None:
    """The rank that a signal ended first, by how each rank ended; None where none was, or by torchrun alone."""
    first = min(failure.timestamp for failure in failures.values())
    killed = {
        rank: failure.timestamp
        for rank, failure in failures.items()
        if failure.exitcode < 0
        and failure.exitcode != -signal.SIGTERM
        and failure.timestamp < first + _TORCHRUN_KILLS_AFTER
    }
    return min(killed, key=killed.__getitem__, default=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
