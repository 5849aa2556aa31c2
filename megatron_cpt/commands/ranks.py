"""Processes of this machine for a command: the one launcher of train, evaluate, score and average.

They end with the command, however it ends. One that a signal ended cannot say so itself: `Ranks.death` tells of it.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import orjson

from megatron_cpt.config.errors import Fault
from megatron_cpt.runs.folder import ExitCode
from megatron_cpt.runs.processes import children, die_with_parent


def add_ranks(parser: argparse.ArgumentParser) -> None:
    """--nproc, --tensor and --pipeline: how many processes there are, and how they share the model."""
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument("--tensor", type=int, default=1, metavar="N", help="tensor-parallel size (default 1)")
    parser.add_argument("--pipeline", type=int, default=1, metavar="N", help="pipeline stages (default 1)")


def rank_faults(args: argparse.Namespace) -> list[Fault]:
    """What is wrong with --tensor and --pipeline for so many processes."""
    ranks = int(os.environ.get("WORLD_SIZE", args.nproc))
    if args.tensor * args.pipeline and ranks % (args.tensor * args.pipeline) == 0:
        return []
    rule = f"cannot be shared by {ranks} ranks: their product must divide the number of ranks."
    return [Fault(f"--tensor {args.tensor} --pipeline {args.pipeline}", rule, "Give other sizes, or --nproc.")]


def in_ranks(command: str, words: Sequence[str], processes: int, environment: Mapping[str, str] = os.environ) -> int:
    """Runs a command of this program again as every rank, with the words that it was given. Returns the exit code."""
    ranks = Ranks(processes, "megatron_cpt.commands.dispatch", [command, *words], environment)
    try:
        code = ranks.wait()
    except BaseException:
        ranks.kill()
        raise
    if (death := ranks.death()) is not None:
        print(f"megatron-cpt {command}: {death}.", file=sys.stderr)
    return code


_DUMP = "PYTHONFAULTHANDLER=1 in the environment shows where"
_USUAL_CAUSES = {
    "SIGKILL": "usually by the kernel for lack of memory (`dmesg -T | grep -i oom` tells), or by the memory limit of a "
    "container or a Slurm job",
    "SIGBUS": "usually because a mapped file was cut or replaced, its disk fails, or /dev/shm is full",
    "SIGSEGV": f"usually by a defect in native code of a library or a driver ({_DUMP})",
    "SIGABRT": f"usually by native code of a library that gave up; its message is above ({_DUMP})",
    "SIGILL": "usually because a library was built for another processor",
}


@dataclass(frozen=True)
class Death:
    """A process that a signal ended."""

    rank: int | None
    """None: torchrun itself."""
    process: int
    """Its number."""
    signal: int
    """Its number."""

    @property
    def signal_name(self) -> str:
        """Such as SIGKILL; real-time signals have no name."""
        with suppress(ValueError):
            return signal.Signals(self.signal).name
        return f"signal {self.signal}"

    def __str__(self) -> str:
        who = "torchrun" if self.rank is None else f"rank {self.rank}"
        cause = _USUAL_CAUSES.get(self.signal_name)
        return f"{who} (process {self.process}) was ended by {self.signal_name}{f', {cause}' if cause else ''}"


class Ranks:
    """The ranks of a module on this machine: one process, or torchrun and those that it starts."""

    def __init__(
        self,
        processes: int,
        module: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        max_restarts: int = 0,
    ) -> None:
        """Starts them."""
        self._processes, self._ended_here = processes, False
        self._deaths, report = os.pipe()
        try:
            self._program = subprocess.Popen(
                [*launcher(processes, module, max_restarts, report), *words],
                env=launch_environment(environment, processes),
                preexec_fn=die_with_parent,
                pass_fds=[report] if processes > 1 else [],
            )
        finally:
            os.close(report)

    def send_signal(self, number: int) -> None:
        """Sends a signal to the ranks, not to torchrun; torchrun that has not started them yet is ended."""
        ranks = children(self._program.pid) if self._processes > 1 else [self._program.pid]
        for pid in ranks:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)
        if not ranks:
            self._end()

    def kill(self) -> None:
        """Ends them at once."""
        self.send_signal(signal.SIGKILL)
        self._end()

    def _end(self) -> None:
        self._ended_here = True
        self._program.kill()

    def wait(self) -> int:
        """Waits for their end. Returns the exit code, of torchrun where it started them; OTHER after a signal."""
        code = self._program.wait()
        return ExitCode.OTHER if code < 0 else code

    def death(self) -> Death | None:
        """After their end: the one that a signal ended first, if one was, and not by torchrun or by this process."""
        with open(self._deaths, "rb") as report:
            told = report.read()  # nobody has the other end any more
        if self._ended_here:
            return None
        if self._program.returncode < 0:
            return Death(None if self._processes > 1 else 0, self._program.pid, -self._program.returncode)
        return Death(**orjson.loads(told)) if told else None


def is_rank() -> bool:
    """Whether torchrun, or a launcher like it, started this process."""
    return "WORLD_SIZE" in os.environ


def launch_environment(environment: Mapping[str, str], processes: int) -> dict[str, str]:
    """An environment with an even share of the cores for each process, where nothing else is set.

    Ranks make a store of their own at each start. In that of torchrun's agent, which they share otherwise, the
    addresses of ranks that are gone stay, and no restart (--max-restarts) gets past them.
    """
    share = max(1, len(os.sched_getaffinity(0)) // processes)
    return {"OMP_NUM_THREADS": str(share), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | dict(environment)


def launcher(processes: int, module: str, max_restarts: int, report: int) -> list[str]:
    """The command that runs a module on some processes of this machine.

    Args:
        report: a file descriptor for the rank that a signal ended (commands/torchrun.py).
    """
    if processes == 1:
        return [sys.executable, "-m", module]
    # Without `--` torchrun takes the module's --nproc for its own.
    return [
        *(sys.executable, "-m", "megatron_cpt.commands.torchrun", str(report)),
        *("--standalone", f"--nproc-per-node={processes}", f"--max-restarts={max_restarts}", "-m", "--", module),
    ]
