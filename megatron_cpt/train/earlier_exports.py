"""Exports that are in a run folder when a run begins or goes on: of a state of this run, or not there.

1. Those in RUN/hf_steps of steps that are still to be done are removed, as their records are: the run writes new ones.
2. RUN/hf of a step before the end, as a run has it that is made longer, moves to RUN/hf_steps/step-N, where that state
   has its place.
3. RUN/hf of a step that is still to be done, or of another program, or of the last step in other dtypes than the run
   asks for, is refused: a finished model is not replaced.
"""

import shutil
from pathlib import Path

from megatron_cpt.checkpoint.hf_dtypes import parent_dtypes
from megatron_cpt.checkpoint.hf_folder import read_history
from megatron_cpt.checkpoint.hf_weights import trained_dtypes
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.model.build import DTYPES
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import barrier
from megatron_cpt.runs.checkpoint_state import step_folders
from megatron_cpt.runs.folder import sync_folder
from megatron_cpt.train.provenance import export_dtypes
from megatron_cpt.train.run import Run


def settle_exports(run: Run) -> list[str]:
    """Puts earlier exports where they belong; returns what was done, a line each. Every rank calls it.

    Raises:
        BadInput: RUN/hf is not of a step that was done, or not in the dtypes that are asked for.
    """
    folder, first = run.folder, run.first_step
    later = {step: path for step, path in step_folders(folder.path / "hf_steps").items() if step > first}
    at_end = _step_of(folder.hf, run) if folder.hf.exists() else None
    if folder.hf.exists() and (at_end is None or at_end > first):
        what = "no export of this run" if at_end is None else f"the model of step {at_end}"
        rule = f"holds {what}, but the run is at step {first}: it would not be the model that is trained now."
        raise BadInput(Fault(str(folder.hf), rule, "Move it away, or train in another folder."))
    if at_end == run.plan.steps:
        refuse(_dtype_faults(run))
    barrier()  # all ranks have looked
    said = [f"{path} is removed: step {step} is still to be done" for step, path in later.items()]
    if at_end is not None and at_end < run.plan.steps:
        said.append(
            f"{folder.hf}, of step {at_end}, is now {folder.hf_of_step(at_end)}: the run goes on to {run.plan.steps}"
        )
    elif at_end is not None:
        said.append(f"{folder.hf} is there, of step {at_end}: it is not written again")
    if groups.rank() == 0:
        for path in later.values():
            shutil.rmtree(path)
        if at_end is not None and at_end < run.plan.steps:
            move(folder.hf, folder.hf_of_step(at_end))
    barrier()
    return said


def _dtype_faults(run: Run) -> list[Fault]:
    """An export of the last step whose tensors are not in the dtypes that the run would write now."""
    settings = run.config.checkpoint.export_hf
    if settings is None or not settings.end:
        return []
    asked, found = export_dtypes(run), parent_dtypes(run.folder.hf)
    trained = trained_dtypes(run.shape, DTYPES[run.config.training.precision])
    if all(asked.of(name, own) == found.of(name, own) for name, own in trained.items()):
        return []
    by = f"checkpoint.export_hf.dtype = {settings.dtype}" if settings.dtype else "the parent's tensors"
    rule = f"it is there already, in {found}; {by} would make it {asked}, and a finished model is not replaced."
    return [Fault(str(run.folder.hf), rule, "Move it away to have it written again, or restore the setting.")]


def _step_of(export: Path, run: Run) -> int | None:
    """The step that an export of this run is of, by the tokens in its lineage; None where it is no such export."""
    try:
        tokens = int(read_history(export)["tokens"])
    except (KeyError, TypeError, ValueError):
        return None
    tokens += run.config.tokens_at(run.start_state.first_own_step)
    step = run.config.token_batches.whole_steps(tokens)
    return step if run.config.tokens_at(step) == tokens else None


def move(export: Path, to: Path) -> None:
    """Gives a folder another name; one that was there before is of the same state."""
    to.parent.mkdir(exist_ok=True)
    shutil.rmtree(to, ignore_errors=True)
    export.rename(to)
    sync_folder(to.parent)
    sync_folder(export.parent)
