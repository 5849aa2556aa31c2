"""Processes that must not outlive the one that started them.

torchrun starts every rank in a session of its own: killed by SIGKILL, it leaves ranks behind that go on
writing into a run folder that the next start also writes into. A rank killed so leaves the process that
Megatron-Core's checkpoint writer started, which waits for ever and holds the terminal's pipes open.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that started it ends. Linux alone; elsewhere does nothing."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was told
            os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Makes this process the parent of what its descendants leave behind. Linux alone; elsewhere does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_all(pids: Iterable[int]) -> None:
    """Kills processes and, where they are children of this one, takes note of their end."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def children(pid: int) -> list[int]:
    """The processes that a process's main thread started and that still live; none where the system does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []
