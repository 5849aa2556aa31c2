"""When validation sets and tasks are evaluated in a run, and what that costs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.marks import mark_steps
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.corpus.windows import scored_tokens
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.text import columns, percent, quantity
from megatron_cpt.tasks.benchmarks import GROUPS

MARKS_SHOWN = 8
"""A longer list of marks is shown by its beginning and its end."""


@dataclass(frozen=True)
class EvaluationPlan:
    """How often a validation set or a file of tasks is evaluated and what that costs."""

    name: str
    """Name of the entry in `validation.sets` or `tasks.sets`."""
    kind: Literal["validation", "tasks"]
    """Which of the two."""
    role: str
    """domain or replay."""
    tokens: int
    """Tokens of one evaluation."""
    marks: tuple[int, ...]
    """Steps at which it is evaluated."""
    compute_share: float
    """Compute of all its evaluations over that of training; a forward pass is a third of a training pass."""


def plan_evaluations(config: RunConfig, inputs: RunInputs, total_steps: int) -> tuple[EvaluationPlan, ...]:
    """Every validation set, then every file of tasks."""
    length, per_step = config.data.sequence_length, config.tokens_per_step
    planned: list[tuple[str, Literal["validation", "tasks"], str, int, tuple[int, ...]]] = []
    for name, validation_set in config.validation.sets.items():
        scored = scored_tokens(inputs.validation_sets[name].tokens, length, validation_set.tokens)
        tokens = len(scored) * length  # the last sequence is computed at full length
        marks = mark_steps(validation_set.marks or config.validation.marks, total_steps, per_step)
        planned.append((name, "validation", validation_set.role, tokens, marks))
    for name, tasks in inputs.tasks.items():
        settings = config.tasks.sets[name]
        tokens = sum(task.tokens for task in tasks)
        marks = mark_steps(settings.marks or config.tasks.marks, total_steps, per_step)
        planned.append((name, "tasks", settings.role, tokens, marks))
    return tuple(
        EvaluationPlan(name, kind, role, tokens, marks, len(marks) * tokens / (3 * total_steps * per_step))
        for name, kind, role, tokens, marks in planned
    )


def task_faults(config: RunConfig, inputs: RunInputs) -> Iterator[Fault]:
    """Tasks that two files hold, and groups of tasks that no file holds."""
    files: dict[str, str] = {}
    for name, tasks in inputs.tasks.items():
        for task in tasks:
            if task.name in files:
                rule = f"holds task {task.name!r}, which tasks.sets.{files[task.name]} holds too."
                yield Fault(f"tasks.sets.{name}", rule, "Give each task in one file.")
            files[task.name] = name
    if set(inputs.tasks) != set(config.tasks.sets):
        return  # a file that could not be read has its own fault
    kinds = {task.name: task.metric for tasks in inputs.tasks.values() for task in tasks}
    for group, members in group_members(config).items():
        if not members:
            rule = f"a group without tasks must be a published one: {' or '.join(GROUPS)}."
            yield Fault(f"tasks.groups.{group} is empty", rule, "Name its tasks.")
        if group in kinds:
            yield Fault(f"tasks.groups.{group}", "a task has the same name.", "Rename the group.")
        absent = [member for member in members if kinds.get(member, "loss") == "loss"]
        if absent:
            rule = f"{', '.join(absent)}: no multiple-choice task of tasks.sets by that name, so the mean would be "
            remedy = f"There are: {', '.join(kinds) or 'none'}. Name those that the mean is to be over."
            yield Fault(f"tasks.groups.{group}", f"{rule}another.", remedy)


def group_members(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """The tasks of each group; an empty list stands for those of a published group of that name."""
    return {name: tuple(members) or GROUPS.get(name, ()) for name, members in config.tasks.groups.items()}


def evaluation_lines(evaluations: tuple[EvaluationPlan, ...]) -> list[str]:
    """The evaluations as lines of a table."""
    heading = ["set", "role", "tokens", "marks", "of training compute", "at steps"]
    rows = [
        [
            evaluation.name if evaluation.kind == "validation" else f"{evaluation.name} (tasks)",
            evaluation.role,
            quantity(evaluation.tokens),
            str(len(evaluation.marks)),
            percent(evaluation.compute_share),
            _shortened(evaluation.marks),
        ]
        for evaluation in evaluations
    ]
    return columns([heading, *rows], "llrrrl")


def _shortened(marks: tuple[int, ...]) -> str:
    words = [str(mark) for mark in marks]
    if len(words) > MARKS_SHOWN:
        words = [*words[: MARKS_SHOWN - 2], "...", words[-1]]
    return ", ".join(words)
