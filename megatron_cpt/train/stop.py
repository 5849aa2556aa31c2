"""When a run is to save and end before its end: a signal, or a limit of wall time.

Imports no torch, so that `train/__main__.py` listens before the seconds that importing torch takes.
A signal only leaves its number here. The step looks before its update (train/optimizer.py), where all ranks agree in
the all-reduce that they make anyway, so that a signal to any rank, or the first clock to run out, stops them after the
same step; after an evaluation or an export, which may take long, they ask each other again.
"""

import os
import signal
import socket
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

import psutil

from megatron_cpt.config.units import wall_seconds
from megatron_cpt.runs.processes import (
    ENDED_AT_ONCE,
    INTERRUPTED,
    LAUNCHER,
    handle_stop_signals,
    hear_stop_signals,
    restore_signal_handlers,
)

NOT_ASKED, OUT_OF_TIME = 0, 128  # signals have the numbers between
_OF_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""torchrun's variable that every rank of it has."""


class StopRequest:
    """Listens for signals while it is open as a context, and counts wall time from its making, or from torchrun's."""

    def __init__(self) -> None:
        self._began = time.monotonic() - _seconds_under_torchrun()
        self._received = NOT_ASKED
        self._interrupts = 0
        self._before: dict[signal.Signals, object] = {}
        self._wakeups: tuple[socket.socket, socket.socket] | None = None
        self._fd_before = -1

    @property
    def counts_interrupts(self) -> bool:
        """Whether a second SIGINT ends this process. `megatron-cpt train` counts for its ranks: of each Ctrl-C they may
        hear twice, from the terminal and from the command."""
        return LAUNCHER not in os.environ

    @property
    def wakeup(self) -> socket.socket | None:
        """Where the number of each signal can be read as it comes, while it is open: handlers wait for the main thread.

        Other signals that this process handles are among them.
        """
        return self._wakeups[0] if self._wakeups is not None else None

    def __enter__(self) -> Self:
        """Takes the signals over. Only the main thread of a process may."""
        self._before = handle_stop_signals(self._receive)
        self._wakeups = socket.socketpair()
        for end in self._wakeups:
            end.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._wakeups[1].fileno(), warn_on_full_buffer=False)
        hear_stop_signals()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Gives the signals back to whoever handled them."""
        restore_signal_handlers(self._before)
        signal.set_wakeup_fd(self._fd_before)
        ends, self._wakeups = self._wakeups or (), None
        for end in ends:
            end.close()

    def code(self, after: str | None) -> int:
        """Why this process is to stop: NOT_ASKED, OUT_OF_TIME or the number of the signal it received.

        Args:
            after: the limit of wall time (`stop.after`), None for none.
        """
        if self._received == NOT_ASKED and after is not None and time.monotonic() - self._began >= wall_seconds(after):
            return OUT_OF_TIME
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if number != signal.SIGINT or not self.counts_interrupts:
            return
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt(ENDED_AT_ONCE)
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):  # a terminal that is gone
                os.write(2, f"megatron-cpt train: {INTERRUPTED}\n".encode())  # the main thread may be writing


def _seconds_under_torchrun() -> float:
    """How long the torchrun that started this rank has run. It may have started others before, in the same job, whose
    limit of time counts from its start. 0 for a rank that something else started."""
    if _OF_TORCHRUN not in os.environ:
        return 0.0
    return max(0.0, time.time() - psutil.Process(os.getppid()).create_time())


def reason(code: int, after: str | None) -> str:
    """A code in words."""
    return f"stop.after = {after} is over" if code == OUT_OF_TIME else f"{signal.Signals(code).name} received"
