"""Processes of a run: how they start, hear signals and end together.

torchrun starts every rank in a session of its own. Killed by SIGKILL, it would leave ranks behind that keep writing
into the run folder. A scheduler sends the signal that asks a run to save and stop to every process of the job: torchrun
would die of SIGUSR1, after SIGTERM it would give its ranks 30 seconds, and the process to which a rank's checkpoint
writers report would die before they can.
"""

import ctypes
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Unless the environment says otherwise. The libraries read it at their import."""
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""torch's names for the settings of its allocator; the second is the older one."""
_RECORDED = ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE")
"""torch's names for how many collectives its flight recorder keeps: that of every release, and the newer one."""
_RECORD_FILES = ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE")
"""Likewise for the files that it writes: each rank's is this, followed by its number."""


def gpu_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What a training process adds to its environment before torch is imported, unless it says otherwise.

    One queue of work keeps kernels and collectives in the order in which they were started, so that those which are to
    overlap do (Megatron-Core asks for it with tensor or context parallelism). Segments of memory that grow leave less
    of it unusable. torch keeps a record of the last collectives, and writes it where one of them takes too long. NCCL
    is left as it is.
    """
    ours = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    settings = {name: value for name, value in ours.items() if name not in environment}
    if not any(name in environment for name in _RECORDED):
        settings[_RECORDED[0]] = "2000"
    if not any(name in environment for name in _ALLOCATOR):
        settings["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return settings


def flight_recorder_settings(environment: Mapping[str, str], files: str) -> dict[str, str]:
    """Where torch's flight recorder writes, unless the environment says otherwise. It is read when groups are made.

    Args:
        files: the path of each rank's file, but for the rank.
    """
    return {} if any(name in environment for name in _RECORD_FILES) else {_RECORD_FILES[0]: files}


def gpu_settings_line(environment: Mapping[str, str]) -> str:
    """The variables that decide how GPUs are used, for the log."""
    own = ("CUDA_DEVICE_MAX_CONNECTIONS", *_ALLOCATOR)
    told = [
        name
        for name in sorted(environment)
        if name in own or name.startswith(("NCCL_", "TORCH_NCCL_", "TORCH_FR_", "NVTE_"))
    ]
    return ", ".join(f"{name}={environment[name]}" for name in told)


# What schedulers, users and a terminal that is closed send to have a run save and stop. A second SIGINT ends it at
# once, without saving.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
INTERRUPTED = (
    "SIGINT received: the run saves and ends, after the step or the evaluation that it is at. Ctrl-C again ends it at "
    "once, without saving."
)
"""What a terminal shows after the first Ctrl-C."""
ENDED_AT_ONCE = "ended at once by a second Ctrl-C (SIGINT), without saving."
LAUNCHER = "MEGATRON_CPT_LAUNCHER"
"""Environment variable of the ranks that `megatron-cpt train` starts: which process started them (`this_process`). It
holds the lock of the run folder, and hears Ctrl-C for them."""


def this_process() -> str:
    """This process by a name that other machines know it by too."""
    return f"process {os.getpid()} on {socket.gethostname()}"


_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def die_with_parent() -> None:
    """Has the kernel kill this process when the one that started it ends. Linux alone; elsewhere does nothing."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was told
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def stop_signals_held() -> Iterator[None]:
    """Processes that are started in the block never hear STOP_SIGNALS, nor do theirs, until one wants to.

    A signal that comes before waits for it. This process must handle them: another of its threads may hear one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_stop_signals() -> None:
    """Lets STOP_SIGNALS through to this process, those too that have waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, object]:
    """Has STOP_SIGNALS handled, but for a SIGHUP that is ignored, as `nohup` has it. Returns what handled them before.

    After a SIGHUP what is written to the terminal goes nowhere: it may be gone, and each write would be an error.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        handler(number, frame)

    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    return {number: signal.signal(number, handle) for number in STOP_SIGNALS if number not in ignored}


def restore_signal_handlers(before: Mapping[signal.Signals, object]) -> None:
    """Has signals handled as `handle_stop_signals` found them."""
    for number, handler in before.items():
        signal.signal(number, handler)  # type: ignore[arg-type]


def _leave_terminal() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # isatty says no once it is gone
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def serve_parent() -> None:
    """For a process that waits on the one that started it: ends with that one, and not for a signal to stop."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # multiprocessing lets SIGTERM through on its way here
    die_with_parent()


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
