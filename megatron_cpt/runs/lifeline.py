"""Processes that must not outlive the one that started them.

torchrun starts every rank in a session of its own: killed by SIGKILL, it leaves ranks behind that go on
writing into a run folder that the next start also writes into.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that started it ends. Linux alone; elsewhere does nothing."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was told
            os.kill(os.getpid(), signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that a process's main thread started and that still live; none where the system does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []
