"""Saving a checkpoint, while training goes on if asked; and which checkpoints stay.

1. Every rank plans what it writes, and rank 0 writes the small files. Training waits for this.
2. Each rank forks a process that writes its shards from the memory as it was at the fork (copy on write; from a GPU, a
   copy on the host) and their hashes. A synchronous save waits here, an asynchronous one does not.
3. When the processes of all ranks have ended, the table of contents is written and the folder sealed: only then is it a
   checkpoint. All ranks look together, after each step.

A process that fails or is killed is an error of the run: the folder stays without its marker.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from types import FrameType
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_cpt.checkpoint.hf_dtypes import TensorDtypes, write_dtypes
from megatron_cpt.checkpoint.hf_folder import copy_tokenizer_files
from megatron_cpt.checkpoint.hf_others import hashed_others, write_others
from megatron_cpt.checkpoint.load import (
    CHECKPOINT_ERRORS,
    before,
    leave_hashes,
    model_state,
    optimizer_state,
    reason,
    rng_object,
    seal,
)
from megatron_cpt.config.errors import StorageFault
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import any_rank, barrier, random_state
from megatron_cpt.parallel.mcore_compat import options_of_save
from megatron_cpt.parallel.patches import replace_name
from megatron_cpt.runs.checkpoint_state import (
    MARKER,
    CheckpointState,
    checkpoint_name,
    is_complete,
    newest_checkpoint,
    read_state,
    step_folders,
)
from megatron_cpt.runs.folder import FULL, explained, sync_folder, write_json
from megatron_cpt.runs.processes import children, die_with_parent, serve_parent, stop_signals_held


class CheckpointWriter:
    """Writes the checkpoints of a run into one folder, one at a time. Every rank calls each method alike."""

    def __init__(self, folder: Path, size: int | None = None) -> None:
        """Args: `size`, bytes that a checkpoint takes, about; told where one could not be written."""
        self._folder, self._size, self._free = folder, size, 0
        self._queue = AsyncCallsQueue(persistent=False)  # persistent workers die on a CPU, and training then hangs
        self._pending: Path | None = None
        self._checked: set[str] = set()
        self._staged: Any = None

    def begin(
        self,
        model: Sequence[LanguageModule],
        optimizer: MegatronOptimizer,
        position: CheckpointState,
        hf_folder: Path,
        dtypes: TensorDtypes,
        lineage: dict[str, Any],
    ) -> float:
        """Takes the state as it is and starts writing it. An earlier save must have ended.

        Args:
            hf_folder: where config.json and tokenizer are taken from.
            dtypes: those that the tensors had before training.
            lineage: the parent and the learning-rate history up to here, content of lineage.json.
        Returns:
            Seconds that this rank waited.
        """
        assert self._pending is None, "one save at a time"
        started = time.perf_counter()
        keep_results()
        checkpoint = self._folder / checkpoint_name(position.step)
        self._free = shutil.disk_usage(self._folder).free
        if groups.rank() == 0:
            shutil.rmtree(checkpoint, ignore_errors=True)  # a save that was cut short, never a sealed one
            with _told_if_unwritten(checkpoint, self._room):
                make_folder(checkpoint, hf_folder, dtypes)
                write_json(checkpoint / "hf" / "lineage.json", lineage)
                write_json(checkpoint / "position.json", asdict(position))
        barrier()
        frozen = any(not value.requires_grad for chunk in model for value in chunk.parameters())
        content = model_state(model, per_layer_keys=any_rank(frozen))
        content["optimizer"] = optimizer_state(optimizer, dict(content), position.sharding)
        content["random"] = rng_object(random_state())
        with _told_if_unwritten(checkpoint, self._room):
            request = dist_checkpointing.save(
                content,
                str(checkpoint / "shards"),
                # That each part is written once: a question to all ranks, whose answer does not change in a run.
                validate_access_integrity=position.sharding not in self._checked,
                async_sharded_save=True,
                **options_of_save(dist_checkpointing.save),
            )
        self._checked.add(position.sharding)
        if request.async_fn is None:
            leave_hashes(checkpoint, groups.rank())
        else:
            request = request._replace(async_fn=partial(_write_and_hash, request.async_fn, checkpoint, groups.rank()))
        if request.preload_fn is not None:
            request = request._replace(preload_fn=partial(self._stage, request.preload_fn))
        self._queue.schedule_async_request(request)
        self._pending = checkpoint
        return time.perf_counter() - started

    def _stage(self, copy_to_host: Callable[[], Any]) -> Any:
        """Copies what the writing process reads to the host, and keeps the copies until it has ended.

        Megatron-Core before 0.17 lets them go as soon as the process is forked. From a GPU they are pinned memory,
        which the next copy from the GPU would fill: past the fork's copy on write, so that the file has other numbers
        (Megatron-LM pull request 2288).
        """
        self._staged = copy_to_host()
        return self._staged

    def _room(self) -> "_Room":
        newest = newest_checkpoint(self._folder)
        found = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) if newest is not None else 0
        return _Room(max(found, self._size or 0), self._free, shutil.disk_usage(self._folder).free)

    def finish(self, wait: bool) -> Path | None:
        """The checkpoint that has become whole, if one has: now, or, if waited for, when it is written.

        Raises:
            StorageFault: it could not be written.
        """
        if self._pending is None:
            return None
        with _told_if_unwritten(self._pending, self._room):
            ended = self._queue.maybe_finalize_async_calls(blocking=wait)
        if not ended:
            return None
        self._staged = None
        checkpoint, self._pending = self._pending, None
        with _told_if_unwritten(checkpoint, self._room):
            seal(checkpoint)
        return checkpoint


@dataclass(frozen=True)
class _Room:
    """What a save needs of its disk, and what there is, in bytes."""

    needed: int
    """About."""
    before: int
    """Free when the save began."""
    now: int
    """Free now."""

    @property
    def is_full(self) -> bool:
        """Whether it cannot have been enough, or nothing is left."""
        return self.needed > self.before or self.now < _NOTHING_LEFT

    def __str__(self) -> str:
        return f"It needs about {self.needed:,} bytes, and {self.before:,} were free when the save began."


_NOTHING_LEFT = 1 << 16
"""Free bytes below which a disk is full: less than a block of a large file system."""


@contextmanager
def _told_if_unwritten(checkpoint: Path, room_of: Callable[[], _Room]) -> Iterator[None]:
    """Turns the errors of torch's and Megatron-Core's checkpoint code into one message. Raises StorageFault.

    torch tells a full disk as positions that it did not expect in a file.
    """
    try:
        yield
    except StorageFault as error:  # of `seal`
        raise StorageFault(f"{error} {room_of()}") from error
    except (*CHECKPOINT_ERRORS, OSError) as error:
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        told = error.strerror if isinstance(error, OSError) else reason(error)
        room, left = room_of(), before(checkpoint)
        if isinstance(error, OSError):
            why = f"could not be written ({told})."
        elif room.is_full:
            why = "could not be written: its disk is full."
            left = f"{left} The error: {told}."
        else:
            why = f"could not be written ({told}: is its disk full?)."
        raise StorageFault(f"{checkpoint}: {why} {room} {left}") from error


def make_folder(checkpoint: Path, hf_folder: Path, dtypes: TensorDtypes) -> None:
    """The folder of a checkpoint with what makes it a model beside its weights. One rank calls it."""
    (checkpoint / "shards").mkdir(parents=True)
    (checkpoint / "hf").mkdir()
    shutil.copyfile(hf_folder / "config.json", checkpoint / "hf" / "config.json")
    copy_tokenizer_files(hf_folder, checkpoint / "hf")
    write_dtypes(checkpoint / "hf", dtypes)
    write_others(checkpoint / "hf", hashed_others(hf_folder))


def _write_and_hash(write: Callable[..., None], checkpoint: Path, rank: int, *arguments: Any) -> None:
    """What a rank's writing process does. It and the processes that it starts do not outlive the rank."""
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)
    # Megatron-Core would wait for ever for a process of its own that was killed (by the kernel, for memory).
    signal.signal(signal.SIGCHLD, _end_with_killed_child)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rank decides what Ctrl-C does
    try:
        write(*arguments)
        leave_hashes(checkpoint, rank)
    except OSError as error:  # The rank, which waits for this process, says what follows.
        print(f"{checkpoint}: {explained(error)}", file=sys.stderr)
        sys.exit(1)


def _end_with_killed_child(number: int, frame: FrameType | None) -> None:
    """Ends this process if one that it started was killed, without taking note of those that ended well."""
    for pid in children(os.getpid()):
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None and ended.si_code != os.CLD_EXITED:
            os._exit(1)


def surplus(steps: list[int], keep_last: int, keep_every: int | None, best: int | None = None) -> list[int]:
    """The steps whose checkpoints may go: neither among the last, nor at a multiple of keep_every, nor the best.

    >>> surplus([10, 20, 30, 40, 50], keep_last=2, keep_every=20)
    [10, 30]
    """
    return [step for step in sorted(steps)[:-keep_last] if (not keep_every or step % keep_every) and step != best]


def best_of(checkpoints: dict[int, Path], validation_set: str) -> int | None:
    """The step with the lowest loss of a set, the earliest where several have it; None where none was evaluated."""
    losses = {step: read_state(path).validation.get(validation_set) for step, path in checkpoints.items()}
    evaluated = {step: loss for step, loss in sorted(losses.items()) if loss is not None}
    return min(evaluated, key=evaluated.__getitem__, default=None)


def prune(folder: Path, keep_last: int, keep_every: int | None, keep_best: str | None = None) -> list[Path]:
    """Removes surplus checkpoints, and what cut-short saves left, once a newer one is whole. One rank calls it.

    Args:
        keep_every: in steps; None keeps none beyond the last.
        keep_best: the validation set that says which is the best; None keeps none for that.
    """
    folders = step_folders(folder)
    checkpoints = {step: path for step, path in folders.items() if is_complete(path)}
    best = best_of(checkpoints, keep_best) if keep_best is not None else None
    gone = [checkpoints[step] for step in surplus(list(checkpoints), keep_last, keep_every, best)]
    for checkpoint in gone:
        # Without its marker it is no checkpoint: a kill in the middle of the removal leaves nothing that looks whole.
        (checkpoint / MARKER).unlink()
        sync_folder(checkpoint)
    for path in folders.values():
        if not is_complete(path):
            shutil.rmtree(path)
    return gone


def keep_results() -> None:
    """Has Megatron-Core's writers leave their results here, from the first save of this process on."""
    if filesystem_async._results_queue is None:
        manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
        with stop_signals_held():
            manager.start(initializer=serve_parent)
        replace_name(filesystem_async.__name__, "_results_queue", manager.Queue())  # holds the manager, too
