"""Where `score` works on its datasets: on this machine one after the other, or each as a task of a Ray cluster.

The work is the same function in both cases, and its result does not depend on where it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.selection import SelectedDataset, whole_dataset
from megatron_cpt.runs.ray_tasks import task_results

T = TypeVar("T")


@dataclass(frozen=True)
class OneMachine:
    """The datasets one after the other, in this process."""

    threads: int = 1
    """That work on a dataset."""
    progress: bool = False
    """Whether a progress bar is shown."""
    waits: bool = False
    """Whether another process that writes the same result is waited for: this task's, on a machine that was given
    up."""

    @property
    def workers(self) -> int | None:
        """Processes that this one may fork, as `prepare` takes them: one a core."""
        return None

    def each(self, work: "Callable[[SelectedDataset, OneMachine], T]", datasets: Sequence[SelectedDataset]) -> list[T]:
        """What the work returns for each dataset, in their order."""
        return [work(part, self) for part in datasets]


class Engine(Protocol):
    """What `OneMachine` and `RayTasks` have in common."""

    @property
    def threads(self) -> int:
        """For what the command does itself."""

    @property
    def workers(self) -> int | None:
        """Processes that the command may fork, as `prepare` takes them."""

    def each(self, work: Callable[[SelectedDataset, OneMachine], T], datasets: Sequence[SelectedDataset]) -> list[T]:
        """What the work returns for each dataset, in their order. It is told where it runs."""


class RayTasks:
    """The datasets as tasks of a Ray cluster, each with one CPU. Machines share a file system."""

    workers = 0
    """Ray's threads in this process do not survive a fork."""

    def __init__(self, ray: Any, threads: int, progress: bool) -> None:
        """`ray`: the module, connected (runs/ray_tasks.py)."""
        self.threads = threads
        self._ray = ray
        self._progress = progress

    def each(self, work: Callable[[SelectedDataset, OneMachine], T], datasets: Sequence[SelectedDataset]) -> list[T]:
        """What the work returns for each dataset, in their order. The work is sent once to each machine.

        Raises what the work raises; WorkerDied where a task was lost more often than Ray runs it again.
        """
        task = self._ray.remote(num_cpus=1)(at)
        shared = self._ray.put(work)
        tasks = [task.remote(shared, part.prefix.absolute(), part.manifest) for part in datasets]
        return task_results(self._ray, tasks, "datasets", self._progress)


def at(work: Callable[[SelectedDataset, OneMachine], T], prefix: Path, manifest: Manifest) -> T:
    """Does the work for a dataset in a process that has not opened it. BadInput: it is not that of the manifest."""
    part = whole_dataset(prefix)
    if part.manifest != manifest:
        rule = "has changed since the call began."
        raise BadInput(Fault(str(prefix), rule, "Run the same command again: finished scores are kept."))
    return work(part, OneMachine(waits=True))
