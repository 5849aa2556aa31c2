"""Which checkpoints stay: the newest, and those at round distances."""

import shutil
from pathlib import Path

from megatron_cpt.checkpoint.integrity import MARKER, is_complete
from megatron_cpt.checkpoint.position import complete_checkpoints
from megatron_cpt.runs.durable import sync_folder


def surplus(steps: list[int], keep_last: int, keep_every: int | None) -> list[int]:
    """The steps whose checkpoints may go: neither among the last nor at a multiple of keep_every.

    >>> surplus([10, 20, 30, 40, 50], keep_last=2, keep_every=20)
    [10, 30]
    """
    return [step for step in sorted(steps)[:-keep_last] if not keep_every or step % keep_every]


def prune(folder: Path, keep_last: int, keep_every: int | None) -> list[Path]:
    """Removes surplus checkpoints, and what cut-short saves left, once a newer one is whole. One rank calls it.

    Args:
        keep_every: in steps; None keeps none beyond the last.
    """
    checkpoints = {int(path.name.removeprefix("step-")): path for path in complete_checkpoints(folder)}
    gone = [checkpoints[step] for step in surplus(list(checkpoints), keep_last, keep_every)]
    for checkpoint in gone:
        # Without its marker it is no checkpoint: a kill in the middle of the removal leaves nothing that looks whole.
        (checkpoint / MARKER).unlink()
        sync_folder(checkpoint)
    torn = [path for path in folder.glob("step-*") if not is_complete(path)]
    for path in torn:
        shutil.rmtree(path)
    return gone
