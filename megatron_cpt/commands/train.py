"""`megatron-cpt train RUN.yaml [section.key=value ...] --nproc N`: the training program on this machine."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

import orjson

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.commands.ranks import Death, Ranks
from megatron_cpt.config.errors import BadInput, IntegrityFault, StorageFault, printable
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.planning.plan import RunPlan, make_plan
from megatron_cpt.planning.resume_changes import resume_changes, setting_changes
from megatron_cpt.runs.checkpoint_state import newest_checkpoint
from megatron_cpt.runs.folder import (
    ExitCode,
    RunFolder,
    Status,
    exit_code_of,
    explained,
    is_defect,
    only_job,
    read_status,
    write_status,
)
from megatron_cpt.runs.permissions import keep_others_from_writing
from megatron_cpt.runs.processes import (
    ENDED_AT_ONCE,
    INTERRUPTED,
    LAUNCHER,
    adopt_orphans,
    children,
    end_all,
    handle_stop_signals,
    restore_signal_handlers,
    stop_signals_held,
    this_process,
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
        args.overrides.append(f"run.profile={args.profile!r}")
    keep_others_from_writing()
    config = load_config(args.config, args.overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    with only_job(folder.path):
        return _train(args, config, folder)


def _train(args: argparse.Namespace, config: RunConfig, folder: RunFolder) -> int:
    """What `main` does with the lock of the run folder."""
    last = read_status(folder.status) or Status("starting")
    try:
        plan = make_plan(config, args.nproc)
        resume_changes(plan)
    except (BadInput, IntegrityFault) as error:
        if isinstance(error, IntegrityFault) or last.state not in ("done", "preempted"):  # which a refusal leaves true
            write_status(folder.status, Status("failed", int(exit_code_of(error)), str(error), last.step, last.tokens))
        raise
    if _is_done(plan, folder):
        print(f"{folder.path}: already done with this configuration and these data")
        return ExitCode.DONE
    with _Signals() as signals:
        write_status(folder.status, Status("starting", step=last.step, tokens=last.tokens))
        code, death = _run_and_forward(args, signals)
        status = read_status(folder.status) or Status("starting", step=last.step, tokens=last.tokens)
        ended = _end_of(status, code, death, signals.received, folder, config, args.nproc)
        if ended is not status:
            write_status(folder.status, ended)
        if ended.exit_code and (ended is not status or args.nproc > 1):  # several ranks have said much since
            print(printable(f"{folder.path}: {ended.state}: {ended.message}"), file=sys.stderr)
    return ended.exit_code or ExitCode.DONE


def _end_of(
    status: Status,
    code: int,
    death: Death | None,
    signals: Sequence[int],
    folder: RunFolder,
    config: RunConfig,
    processes: int,
) -> Status:
    """The status of a run after its processes have ended.

    That is the status which the run wrote, unless a signal ended a rank, or the run, before it could write one.

    Args:
        status: the newest in the run folder.
        code: exit code of the processes.
        death: the rank that a signal ended.
        signals: what this process received, in order.
        processes: ranks of the run.
    """
    newest = newest_checkpoint(folder.checkpoints)
    onward = f"The same command goes on from {newest}." if newest else "The same command begins again."
    has_ended = status.exit_code is not None  # the run wrote its own end

    def failed(message: str, exit_code: int = ExitCode.OTHER) -> Status:
        log = f" The log is {folder.log}." if folder.log.exists() else ""
        whole = f"{message} {onward}{log}"
        return Status("failed", int(exit_code), whole, status.step, status.tokens)

    if signals.count(signal.SIGINT) > 1:
        return status if has_ended and not is_defect(status) else failed(ENDED_AT_ONCE)
    if death is not None and (not has_ended or is_defect(status)):
        cut = _changed_files(config, processes) if death.signal_name == "SIGBUS" else None
        others = f" After that, {status.message}." if has_ended else ""
        message = f"{death}.{f' Found now: {cut}' if cut else ''}{others}"
        return failed(message, ExitCode.INTEGRITY if isinstance(cut, IntegrityFault) else ExitCode.OTHER)
    if has_ended:
        return status
    if signals and status.state == "starting":
        message = f"stopped before training began. {onward}"
        return Status("preempted", int(ExitCode.PREEMPTED), message, status.step, status.tokens)
    message = f"the training processes ended with code {code} without a message; see their output."
    return failed(message, code if code in tuple(ExitCode)[1:] else ExitCode.OTHER)


def _changed_files(config: RunConfig, processes: int) -> Exception | None:
    """The error that planning the run meets now, as where a dataset was cut while it was mapped; None without one."""
    try:
        make_plan(config, processes)
    except Exception as error:
        found = explained(error)
        return found if isinstance(found, (BadInput, IntegrityFault, StorageFault)) else None
    return None


class _Signals:
    """Context manager that collects the STOP_SIGNALS of this process and forwards them to the ranks that it starts."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._ranks: Ranks | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._before = handle_stop_signals(self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        restore_signal_handlers(self._before)

    def forward_to(self, ranks: Ranks) -> None:
        """Forwards signals to the ranks from now on, also those received before. The second SIGINT kills the ranks."""
        self._ranks = ranks
        for number in tuple(self.received):
            self._forward(number)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if number == signal.SIGINT and self.received.count(number) == 1:
            with suppress(OSError):  # a terminal that is gone
                print(f"megatron-cpt train: {INTERRUPTED}", file=sys.stderr, flush=True)
        self._forward(number)

    def _forward(self, number: int) -> None:
        if self._ranks is None:
            return
        if self.received.count(signal.SIGINT) > 1:
            self._ranks.kill()
        else:
            self._ranks.send_signal(number)


def _run_and_forward(args: argparse.Namespace, signals: _Signals) -> tuple[int, Death | None]:
    """Runs the program to its end, passing signals that ask it to stop on to its ranks.

    torchrun itself is passed over, and hears none that a scheduler sends to every process. The program and torchrun end
    with this process, however it ends.

    Returns:
        The exit code, and the rank that a signal ended.
    """
    adopt_orphans()
    ours = set(children(os.getpid()))
    environment = os.environ | {LAUNCHER: this_process()}
    try:
        with stop_signals_held():
            words = [args.config, *args.overrides]
            ranks = Ranks(args.nproc, "megatron_cpt.train", words, environment, args.max_restarts)
        signals.forward_to(ranks)
        return ranks.wait(), ranks.death()
    finally:
        end_all(set(children(os.getpid())) - ours)


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
