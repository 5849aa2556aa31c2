"""Where a run begins and where it goes on, as the files of checkpoints tell: its place in data and schedule, its rates.

Steps, tokens and sequences count from the beginning of the order, which with `init_from.load_data_position: true` is
the parent's. What a run has saved itself decides over what its configuration says.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.config.errors import Fault, IntegrityFault, refuse
from megatron_cpt.config.load import plain
from megatron_cpt.config.schedule import known_history, learning_rate
from megatron_cpt.config.schema import InitFromSettings, RunConfig
from megatron_cpt.runs.checkpoint_state import (
    find_state,
    is_complete,
    newest_checkpoint,
    read_state,
    step_folders,
    step_of,
    verify_description,
)
from megatron_cpt.runs.folder import RunFolder, read_json_object, read_status
from megatron_cpt.runs.records import read_records


@dataclass(frozen=True)
class RunPosition:
    """A place in a run before one of its steps."""

    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens read by them."""
    sequences: int = 0
    """Sequences read by them."""
    schedule_shift: int = 0
    """Tokens by which the schedule is ahead of these counts."""
    rate_before: float | None = None
    """Learning rate of the last update before; None: not known."""

    def rate_at(self, config: RunConfig, step: int) -> float:
        """The learning rate of a step."""
        tokens, horizon = config.tokens_at(step), config.total_tokens
        shift = self.schedule_shift
        return learning_rate(config.schedule, tokens + shift, horizon + shift, config.tokens_per_step)


def start_state(config: RunConfig) -> RunPosition:
    """Where the run begins: before the first step that is its own. Raises IntegrityFault for a damaged position."""
    start, newest = config.init_from, newest_checkpoint(RunFolder(config.run.folder).checkpoints)
    own = read_state(newest) if newest is not None else None
    step, shift = (own.first_own_step, own.schedule_shift) if own else (0, 0)
    if start.checkpoint is None:
        before = _rate_of_parent(Path(config.model.hf), config) if config.model.weights == "hf" else None
    else:
        before = _rate_of_parent(Path(start.checkpoint) / "hf", config)
        parent = find_state(Path(start.checkpoint))
        if own is None and parent is not None:
            step = parent.step if start.load_data_position else 0
            shift = schedule_shift(start, parent.tokens, parent.schedule_shift)
    return RunPosition(step, config.tokens_at(step), config.sequences_at(step), shift, before)


def verify_checkpoints(config: RunConfig) -> None:
    """Compares what describes the checkpoints that a run begins with, its own and its parent's, before it is read.

    Raises:
        BadInput: a link or a file has the name of a checkpoint that the run would go on from, or write.
        IntegrityFault: a file is missing, changed, or was not written with the checkpoint.
    """
    folder = RunFolder(config.run.folder).checkpoints
    newest = newest_checkpoint(folder)
    after = step_of(newest) or 0 if newest is not None else 0
    refuse(
        [
            Fault(
                str(path),
                "is a link or a file, and has the name of a checkpoint.",
                "Move it away, or put the folder back.",
            )
            for path in sorted(folder.glob("step-*"))
            if (step_of(path) or 0) > after and path not in step_folders(folder).values()
        ]
    )
    parent = Path(config.init_from.checkpoint) if config.init_from.checkpoint is not None else None
    for checkpoint in (newest, parent):
        if checkpoint is not None and is_complete(checkpoint):
            verify_description(checkpoint)


def history_faults(config: RunConfig, start: RunPosition) -> Iterator[Fault]:
    """A run that has saved before and of whose checkpoints none is left: to begin again would delete its records.

    Args:
        start: where it would begin.
    """
    folder = RunFolder(config.run.folder)
    if newest_checkpoint(folder.checkpoints) is not None:
        return
    status = read_status(folder.status)
    done = status.step if status is not None else _last_step(folder.records)
    if done > start.step:
        told = folder.status if status is not None else folder.records
        yield Fault(
            f"run.folder = {config.run.folder}",
            f"{told.name} tells of {done} steps, and {folder.checkpoints} has no whole checkpoint to go on from: the "
            f"run would begin again at step {start.step} and delete its records.",
            "Put the checkpoints back; or begin again in another folder (`run.folder`), from an export of this run "
            "with `model.hf`; or move this folder away.",
        )


def _last_step(records: Path) -> int:
    """The last step that was recorded; 0 where there are no records."""
    return max((record.get("step", 0) for record in read_records(records)), default=0) if records.exists() else 0


def resume_state(config: RunConfig) -> RunPosition | None:
    """Where the run goes on: at its newest whole checkpoint; None where it has none."""
    newest = newest_checkpoint(RunFolder(config.run.folder).checkpoints)
    if newest is None:
        return None
    state = read_state(newest)
    rate = _rate_of_parent(newest / "hf", config)
    return RunPosition(state.step, state.tokens, state.sequences, state.schedule_shift, rate)


def schedule_shift(start: InitFromSettings, tokens: int, parent_shift: int) -> int:
    """Tokens to add to a run's own count for the schedule, so that it goes on or begins as the switches say.

    Args:
        tokens: those of the checkpoint that it starts from.
        parent_shift: the shift of the run that wrote it.
    """
    if start.load_schedule:
        return parent_shift + (tokens if not start.load_data_position else 0)
    return -tokens if start.load_data_position else 0


def base_history_faults(config: RunConfig) -> Iterator[Fault]:
    """A history of the base beside another that the base carries itself."""
    if config.base_history is None:
        return
    start = config.init_from.checkpoint
    folder = Path(config.model.hf) if start is None else Path(start) / "hf"
    try:
        lineage = read_json_object(folder / "lineage.json") or {}
    except IntegrityFault:
        return  # the weights' own loading tells of it
    known = lineage.get("parent_forward_area") is not None
    if known and lineage.get("base_history") != plain(config.base_history):
        rule = f"{folder}/lineage.json tells how the model was trained from its random weights on."
        yield Fault("base_history", rule, "Take it out: it is for models that were made elsewhere.")


def _rate_of_parent(folder: Path, config: RunConfig) -> float | None:
    """The learning rate at the end of the training that a Hugging Face folder's lineage.json tells of.

    Without that file it is that of `base_history`; None: not known.
    """
    try:
        lineage = read_json_object(folder / "lineage.json")
    except IntegrityFault:
        return None  # the weights' own loading tells of it
    if lineage is None and config.base_history is not None:
        return known_history(config.base_history)["final_learning_rate"]
    rate = (lineage or {}).get("final_learning_rate")
    return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) else None
