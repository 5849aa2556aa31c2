"""`megatron-cpt train RUN.yaml [section.key=value ...] --nproc N`: the training program on this machine."""

import argparse
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

import orjson

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.commands.ranks import launch_environment, launcher
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.planning.plan import RunPlan, make_plan
from megatron_cpt.planning.resume_changes import resume_changes, setting_changes
from megatron_cpt.runs.folder import ExitCode, RunFolder, Status, only_job, read_status, write_status
from megatron_cpt.runs.permissions import keep_others_from_writing
from megatron_cpt.runs.processes import (
    STOP_SIGNALS,
    adopt_orphans,
    children,
    die_with_parent,
    end_all,
    stop_signals_held,
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "train",
        __doc__,
        "megatron-cpt train run.yaml --nproc 8",
    )
    top.add_argument("config", metavar="RUN.yaml")
    top.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of RUN.yaml")
    top.add_argument("--nproc", type=int, default=1, metavar="N", help="processes on this machine (default 1)")
    top.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="start the ranks again, from the newest checkpoint, when one of them dies (default 0; with --nproc)",
    )
    top.add_argument("--profile", metavar="STEPS", help="traces of steps, such as 10-12, into RUN/profile")
    return top


def main(arguments: list[str]) -> int:
    """Starts the program, under torchrun where N is more than 1, and returns the run's own exit code.

    Bad input is found here, before any process starts.
    """
    args = parser().parse_intermixed_args(arguments)
    if args.profile is not None:
        args.overrides.append(f"run.profile={args.profile}")
    keep_others_from_writing()
    config = load_config(args.config, args.overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    with only_job(folder.path):  # held by rank 0 from here on; its status is not ours to replace while another trains
        pass
    try:
        plan = make_plan(config, args.nproc)
        resume_changes(plan)
    except BadInput as error:
        last = read_status(folder.status) or Status("failed")
        write_status(folder.status, Status("failed", int(ExitCode.BAD_INPUT), str(error), last.step, last.tokens))
        raise
    if _is_done(plan, folder):
        print(f"{folder.path}: already done with this configuration and these data")
        return ExitCode.DONE
    last = read_status(folder.status) or Status("starting")
    write_status(folder.status, Status("starting", step=last.step, tokens=last.tokens))
    command = [*launcher(args.nproc, "megatron_cpt.train", args.max_restarts), args.config, *args.overrides]
    code, signals = _run_and_forward(command, launch_environment(os.environ, args.nproc), args.nproc)
    status = read_status(folder.status)
    if status is not None and status.exit_code is not None:
        if status.exit_code and args.nproc > 1:  # torchrun's own report of ranks that ended is what was said last
            print(f"{folder.path}: {status.state}: {status.message}", file=sys.stderr)
        return status.exit_code
    if status is not None and status.state == "starting" and signals:
        message = "stopped before training began; the same command resumes from the last checkpoint"
        preempted = Status("preempted", int(ExitCode.PREEMPTED), message, status.step, status.tokens)
        write_status(folder.status, preempted)
        return ExitCode.PREEMPTED
    message = f"the training processes {_how_ended(code)} without a message; see their output"
    before = status or Status("failed")
    write_status(folder.status, Status("failed", int(ExitCode.OTHER), message, before.step, before.tokens))
    return code or ExitCode.OTHER


def _how_ended(code: int) -> str:
    """An exit code, or the signal behind it, in words."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    why = {"SIGBUS": " (a file that they read was cut, or its disk failed)", "SIGKILL": " (out of memory?)"}
    return f"were ended by {name}{why.get(name, '')}"


def _run_and_forward(command: list[str], env: dict[str, str], processes: int) -> tuple[int, bool]:
    """Runs the program to its end, passing signals that ask it to stop on to its ranks.

    torchrun itself is passed over, and hears none that a scheduler sends to every process. The program and torchrun end
    with this process, however it ends.

    Returns:
        The exit code, and whether a signal was passed on.
    """
    signals: list[int] = []
    program: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if program is not None:
            _tell_ranks(program, processes, number)

    adopt_orphans()
    ours = set(children(os.getpid()))
    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        with stop_signals_held():
            program = subprocess.Popen(command, env=env, preexec_fn=die_with_parent)
        for number in signals:  # while it was starting
            _tell_ranks(program, processes, number)
        return program.wait(), bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        end_all(set(children(os.getpid())) - ours)


def _tell_ranks(program: subprocess.Popen[bytes], processes: int, number: int) -> None:
    """Sends a signal to the ranks; torchrun that has not started them yet is ended."""
    ranks = children(program.pid) if processes > 1 else [program.pid]
    for pid in ranks:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, number)
    if not ranks:
        program.kill()


def _is_done(plan: RunPlan, folder: RunFolder) -> bool:
    """Whether the run folder holds the finished run of this very configuration, on the same data."""
    status = read_status(folder.status)
    try:
        before = load_config(folder.config)
        fingerprint = orjson.loads(folder.plan.read_bytes())["blend"]["fingerprint"]
    except (BadInput, OSError, ValueError, KeyError):
        return False
    same = fingerprint == plan.blend.fingerprint(plan.blend.total_sequences)
    return status is not None and status.state == "done" and same and not setting_changes(before, plan.config)
