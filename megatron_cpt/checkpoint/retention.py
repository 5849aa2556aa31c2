"""Which checkpoints stay: the newest, those at round distances, and the best."""

import shutil
from pathlib import Path

from megatron_cpt.checkpoint.integrity import MARKER, is_complete
from megatron_cpt.checkpoint.position import complete_checkpoints, read_position
from megatron_cpt.runs.durable import sync_folder


def surplus(steps: list[int], keep_last: int, keep_every: int | None, best: int | None = None) -> list[int]:
    """The steps whose checkpoints may go: neither among the last, nor at a multiple of keep_every, nor the best.

    >>> surplus([10, 20, 30, 40, 50], keep_last=2, keep_every=20)
    [10, 30]
    """
    return [step for step in sorted(steps)[:-keep_last] if (not keep_every or step % keep_every) and step != best]


def best_of(checkpoints: dict[int, Path], validation_set: str) -> int | None:
    """The step with the lowest loss of a set, the earliest where several have it; None where none was evaluated."""
    losses = {step: read_position(path).validation.get(validation_set) for step, path in checkpoints.items()}
    evaluated = {step: loss for step, loss in sorted(losses.items()) if loss is not None}
    return min(evaluated, key=evaluated.__getitem__, default=None)


def prune(folder: Path, keep_last: int, keep_every: int | None, keep_best: str | None = None) -> list[Path]:
    """Removes surplus checkpoints, and what cut-short saves left, once a newer one is whole. One rank calls it.

    Args:
        keep_every: in steps; None keeps none beyond the last.
        keep_best: the validation set that says which is the best; None keeps none for that.
    """
    checkpoints = {int(path.name.removeprefix("step-")): path for path in complete_checkpoints(folder)}
    best = best_of(checkpoints, keep_best) if keep_best is not None else None
    gone = [checkpoints[step] for step in surplus(list(checkpoints), keep_last, keep_every, best)]
    for checkpoint in gone:
        # Without its marker it is no checkpoint: a kill in the middle of the removal leaves nothing that looks whole.
        (checkpoint / MARKER).unlink()
        sync_folder(checkpoint)
    torn = [path for path in folder.glob("step-*") if not is_complete(path)]
    for path in torn:
        shutil.rmtree(path)
    return gone
