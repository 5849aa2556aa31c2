"""The harness's tasks of a run: opened before the model is built, and checked against its other tasks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.evaluate.harness_score import HarnessTask
from megatron_cpt.planning.evaluations import group_members
from megatron_cpt.tasks.task import Task

HarnessTasks = Mapping[str, Sequence[HarnessTask]]


def open_harness_tasks(config: RunConfig, tasks: Mapping[str, Sequence[Task]], longest: int) -> HarnessTasks:
    """The tasks of each entry of `tasks.harness`. Every rank calls it.

    Args:
        tasks: those of the files, by the file's name in the config.
        longest: tokens of the model's input at most.
    Raises:
        BadInput: a task that cannot be opened or followed, that is there twice, or that a group misses.
    """
    if not config.tasks.harness:
        return {}
    # An optional library.
    from megatron_cpt.evaluate.harness_tasks import open_harness  # noqa: PLC0415

    opened = open_harness(config.tasks.harness, Path(config.model.hf), longest)
    refuse(list(name_faults(tasks, opened)))
    refuse(list(group_faults(config, tasks, opened)))
    return opened


def name_faults(tasks: Mapping[str, Sequence[Task]], opened: HarnessTasks) -> Iterator[Fault]:
    """Tasks that two entries hold."""
    holders = {task.name: f"tasks.sets.{file}" for file, its_tasks in tasks.items() for task in its_tasks}
    for entry, its_tasks in opened.items():
        for task in its_tasks:
            if task.name in holders:
                rule = f"holds task {task.name!r}, which {holders[task.name]} holds too."
                yield Fault(f"tasks.harness.{entry}", rule, "Give each task in one entry.")
            holders[task.name] = f"tasks.harness.{entry}"


def group_faults(config: RunConfig, tasks: Mapping[str, Sequence[Task]], opened: HarnessTasks) -> Iterator[Fault]:
    """Groups by the name of a task, and with members that have no accuracy."""
    metrics = {task.name: task.metric for its_tasks in tasks.values() for task in its_tasks}
    metrics |= {task.name: task.metric for its_tasks in opened.values() for task in its_tasks}
    for group, members in group_members(config).items():
        if group in metrics:
            yield Fault(f"tasks.groups.{group}", "a task has the same name.", "Rename the group.")
        absent = [member for member in members if metrics.get(member, "loss") == "loss"]
        if absent:
            rule = f"{', '.join(absent)}: no task with an accuracy by that name, so the mean would be another."
            yield Fault(f"tasks.groups.{group}", rule, f"There are: {', '.join(metrics)}.")
