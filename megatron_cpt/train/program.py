"""The training program: config in, run folder out, one exit code.

Every rank runs it. What a config alone can get wrong is found before the ranks meet; then rank 0 plans the run, and
after it the others. Of what is wrong with its files the first rank that finds it tells, once.
"""

import argparse
import logging
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from megatron_cpt.checkpoint.load import CHECKPOINT_ERRORS
from megatron_cpt.config.errors import (
    BadInput,
    IntegrityFault,
    NumericsFault,
    RankFailed,
    RankGone,
    StorageFault,
    printable,
    refuse,
)
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.manifest import dump_described, load_described
from megatron_cpt.model.environment_checks import engine_faults, gpu_faults
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import barrier, failing_together, first_on_rank_zero, keep_freed_memory
from megatron_cpt.parallel.mcore_compat import release, untried
from megatron_cpt.planning.plan import RunPlan, make_plan
from megatron_cpt.planning.resume_changes import ResumeChanges, measure_line, resume_changes
from megatron_cpt.runs.checkpoint_state import complete_checkpoints, foreign_names
from megatron_cpt.runs.floors import floor_faults
from megatron_cpt.runs.folder import (
    ExitCode,
    RunFolder,
    Status,
    defect,
    exit_code_of,
    explained,
    only_job,
    read_status,
    write_checked_json,
    write_json,
    write_status,
)
from megatron_cpt.runs.permissions import keep_others_from_writing, writable_warnings
from megatron_cpt.runs.processes import LAUNCHER, die_with_parent, flight_recorder_settings, gpu_settings_line
from megatron_cpt.train import initial_loss_check
from megatron_cpt.train.earlier_exports import settle_exports
from megatron_cpt.train.logger import RunLogger, mfu_formula
from megatron_cpt.train.loop import train
from megatron_cpt.train.provenance import (
    Kernels,
    changed_rate,
    dtype_notes,
    export_end,
    keep_config,
    kernels_of,
    run_lineage,
    versions,
)
from megatron_cpt.train.run import Run, assemble, write_hf_config_dir
from megatron_cpt.train.stop import StopRequest
from megatron_cpt.train.watchdog import Watchdog

_EXPECTED = (BadInput, IntegrityFault, NumericsFault, StorageFault, KeyboardInterrupt)


def main(arguments: Sequence[str], request: StopRequest) -> int:
    """Runs the program and returns its exit code (runs/folder.py).

    Args:
        request: open; says when to save and end before the end.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()
    keep_others_from_writing()
    parser = argparse.ArgumentParser(prog="megatron_cpt.train", description="Train a run, or go on with it.")
    parser.add_argument("config", metavar="RUN.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of RUN.yaml")
    args = parser.parse_args(arguments)
    try:
        refuse([*floor_faults()])
        config = load_config(args.config, args.overrides)
        folder = RunFolder(config.run.folder)
        folder.create()
        launcher = os.environ.get(LAUNCHER)
        with only_job(folder.path, launcher) if os.environ.get("RANK", "0") == "0" else nullcontext():
            return _run_or_report(config, folder, request)
    except Exception as error:
        explanation = explained(error)
        report_error(explanation, None)  # the status may be that of another job
        return exit_code_of(explanation)
    finally:
        groups.destroy()


def _run_or_report(config: RunConfig, folder: RunFolder, request: StopRequest) -> int:
    """What `main` does with the lock of the run folder: errors are in its status before another job may write it."""
    try:
        ended = _ended_before(folder)
        return run_to_end(config, folder, request) if ended is None else ended
    except (Exception, KeyboardInterrupt, *CHECKPOINT_ERRORS) as error:
        explanation = explained(error) if isinstance(error, Exception) else error
        report_error(explanation, folder)
        if isinstance(error, KeyboardInterrupt):
            sys.stderr.flush()
            os._exit(ExitCode.OTHER)  # the ways out below may wait for other ranks
        groups.leave_last()
        return exit_code_of(explanation)


_FINAL = (ExitCode.PREEMPTED, ExitCode.BAD_INPUT, ExitCode.INTEGRITY, ExitCode.NUMERICS)
"""What another start would not change."""


def _ended_before(folder: RunFolder) -> int | None:
    """The exit code with which the run ended itself before `torchrun --max-restarts` started it again.

    torchrun knows no codes, and starts ranks again that saved and stopped as they were asked to. None: go on, also
    after a rank that was killed, or an unexpected error. The first start of a torchrun marks the status as its own.
    """
    status = read_status(folder.status)
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return status.exit_code if status is not None and status.exit_code in _FINAL else None
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if status is not None and restarts and os.environ.get("RANK") == "0":
        write_status(folder.status, Status("starting", step=status.step, tokens=status.tokens))
    return None


def run_to_end(config: RunConfig, folder: RunFolder, request: StopRequest) -> ExitCode:
    """Plans, assembles, trains and exports. A run that is already at its end only exports what is missing.

    Returns DONE, or PREEMPTED where it was asked to stop and has saved.
    """
    refuse([*gpu_faults()])
    with Watchdog(config.timeout, folder, request) as watchdog:
        return _run_watched(config, folder, request, watchdog)


def _run_watched(config: RunConfig, folder: RunFolder, request: StopRequest, watchdog: Watchdog) -> ExitCode:
    """What `run_to_end` does, with the watchdog watching."""
    if groups.device().type == "cuda":
        folder.flight_records.parent.mkdir(exist_ok=True)
        os.environ |= flight_recorder_settings(os.environ, str(folder.flight_records.absolute()))
    groups.init_process_group(watchdog.group_timeout)
    watchdog.join_ranks()
    plan = plan_on_ranks(config)
    config = plan.config
    changes = resume_changes(plan)
    assert plan.inputs.shape is not None, "inputs without faults are whole"
    refuse([*engine_faults(config, plan.inputs.shape)])
    if groups.device().type == "cpu":
        keep_freed_memory()
    write_hf_config_dir(config, folder)
    checked = initial_loss_check.is_needed(config, folder)
    reference = initial_loss_check.reference_losses_of(config, plan, folder) if checked else None
    run = assemble(config, plan, folder, watchdog.group_timeout)
    settled = settle_exports(run)
    kernels = kernels_of(run.model, run.optimizer)
    if groups.rank() == 0:
        keep_config(run, changes)
        write_checked_json(folder.plan, plan.to_dict())
        write_json(folder.versions, versions(kernels))
        write_checked_json(folder.lineage, run_lineage(run, run.first_step))
    logger = RunLogger(run)
    _log_environment(run, logger, kernels, settled)
    if checked:
        losses = initial_loss_check.opening_losses(run)
        if config.init_from.checkpoint is None:
            logger.log(initial_loss_check.compare_initial_loss(run, reference, losses))
        if worse := initial_loss_check.check_guessing(run, losses):
            logger.log(worse, logging.WARNING)
    _log_start(run, logger, changes)
    logger.status("running", run.first_step)
    stop = train(run, logger, request, watchdog)
    if groups.rank() == 0:
        write_checked_json(folder.lineage, run_lineage(run, plan.steps if stop is None else stop.step))
    checkpoints = complete_checkpoints(folder.checkpoints)
    if stop is not None:
        message = f"{stop.reason}: saved after step {stop.step} of {plan.steps}; the same command resumes the run"
        logger.log(f"{message}: {checkpoints[-1] if checkpoints else 'no new checkpoint was needed'}", shown=True)
        logger.status("preempted", stop.step, exit_code=int(ExitCode.PREEMPTED), message=message)
        logger.close()
        barrier()
        return ExitCode.PREEMPTED
    watchdog.at("export", plan.steps)
    export_end(run)
    barrier()
    logger.log(_where_things_are(run, checkpoints[-1]), shown=True)
    logger.status("done", plan.steps, exit_code=int(ExitCode.DONE))
    logger.close()
    return ExitCode.DONE


def plan_on_ranks(config: RunConfig) -> RunPlan:
    """The plan of a run, made by rank 0 and then by the others. Every rank calls it. Raises as make_plan does.

    Rank 0 hands over what datasets without a manifest are. On a read-only share every rank would else hash their
    indices and read samples of their tokens, at every start.

    Raises:
        RankFailed: another rank could not make it.
    """
    with failing_together(), first_on_rank_zero() as handover:
        described = None if handover.content is None else load_described(handover.content)
        try:
            plan = make_plan(config, groups.world_size(), described=described)
        except (BadInput, IntegrityFault) as error:
            raise _of_machine(error) from error
        if groups.rank() == 0:
            handover.content = dump_described(plan.inputs.datasets())
    return plan


def _of_machine(error: BadInput | IntegrityFault) -> BadInput | IntegrityFault:
    """What is wrong with the inputs of a run, with the machine where rank 0 has not found it."""
    if groups.rank() == 0:
        return error
    where = f"on {socket.gethostname()} (rank {groups.rank()})"
    if isinstance(error, BadInput):
        return BadInput(*(replace(fault, value=f"{where}, {fault.value}") for fault in error.faults))
    return IntegrityFault(f"{where}, {error}")


def _log_environment(run: Run, logger: RunLogger, kernels: Kernels, settled: Sequence[str]) -> None:
    """Logs what the run stands on: kernels, environment, dtypes, and what is wrong with its files without harm."""
    folder, parent = run.folder, run.config.init_from.checkpoint
    logger.log(f"kernels: {kernels}")
    if groups.device().type == "cuda":
        logger.log(f"environment: {gpu_settings_line(os.environ)}")
    if warning := untried(release()):
        logger.log(warning, logging.WARNING)
    for note in dtype_notes(run):
        logger.log(note)
    for line in settled:
        logger.log(line, logging.WARNING)
    places = [folder.path, folder.checkpoints, *complete_checkpoints(folder.checkpoints)[-1:]]
    for warning in writable_warnings([*places, *([Path(parent)] if parent is not None else [])]):
        logger.log(warning, logging.WARNING)
    if foreign := foreign_names(folder.checkpoints):
        logger.log(f"{folder.checkpoints}: not made by the run, and left alone: {', '.join(foreign)}", logging.WARNING)


def _log_start(run: Run, logger: RunLogger, changes: ResumeChanges) -> None:
    """Logs where the run starts or goes on, the warnings of its plan, and what was changed since its last start."""
    resumed = run.first_step > run.start_state.first_own_step
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    most = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "?")
    restart = f" (restart {restarts} of {most}: a rank died)" if restarts else ""
    logger.log(f"{'resumed after' if resumed else 'starting at'} step {run.first_step} of {run.plan.steps}{restart}")
    if not resumed:
        for warning in run.plan.warnings:
            logger.log(warning, logging.WARNING)
    logger.log(mfu_formula(run))
    _record_changes(run, logger, changes)
    if changed := changed_rate(run):
        logger.log(changed, logging.WARNING)


def _record_changes(run: Run, logger: RunLogger, found: ResumeChanges) -> None:
    """Records and logs every setting, validation set and task that is another one than before the resume.

    A record is of the first step that it counts for, so that it goes with that step where the step is done again.
    """
    event = {"kind": "event", "step": run.first_step + 1, "tokens": run.config.tokens_at(run.first_step)}
    for change in found.changes if run.first_step < run.plan.steps else ():
        logger.record(event | {"event": "setting_changed"} | asdict(change))
    for name in run.changed_measures:
        logger.record(event | {"event": "measure_changed", "name": name})
    other = [measure_line(run.first_step, name) for name in run.changed_measures if name not in found.measures]
    for line in [*found.lines(), *other]:
        logger.log(line, shown=True)


def _where_things_are(run: Run, checkpoint: Path) -> str:
    """A line that closes a run."""
    exports = run.config.checkpoint.export_hf
    exported = f"; Hugging Face folder {run.folder.hf}" if exports is not None and exports.end else ""
    return (
        f"done after step {run.plan.steps}: checkpoint {checkpoint}{exported}; records {run.folder.records}; "
        f"`megatron-cpt report {run.folder.path}` writes a report"
    )


def report_error(error: BaseException, folder: RunFolder | None) -> None:
    """Says what went wrong: an expected error once, a defect with its traceback, by each rank that it hit.

    The rank that failed first writes the status: what follows on the others is what its end did to them.
    """
    if isinstance(error, RankGone):
        print(f"megatron-cpt train: rank {os.environ.get('RANK', '0')}: {error}", file=sys.stderr)
    if isinstance(error, RankFailed):
        return
    is_first = groups.is_first("failed")
    if not isinstance(error, _EXPECTED):
        traceback.print_exception(error)
    elif is_first:
        print(printable(f"megatron-cpt train: {error}"), file=sys.stderr)
    if is_first and folder is not None and folder.path.is_dir():
        before = read_status(folder.status) or Status("failed")
        message = str(error) if isinstance(error, _EXPECTED) else defect(error)
        status = Status("failed", int(exit_code_of(error)), message, before.step, before.tokens)
        try:
            write_status(folder.status, status)
        except OSError as unwritten:
            print(printable(f"megatron-cpt train: {explained(unwritten)}"), file=sys.stderr)
