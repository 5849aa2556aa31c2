"""When validation sets and tasks are evaluated in a run, and what that costs."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.eval_schedule import evaluation_steps, subsampled
from megatron_cpt.config.schema import EvalIntervalSettings, RunConfig
from megatron_cpt.config.units import short_count
from megatron_cpt.corpus.stream import scored_tokens
from megatron_cpt.planning.inputs import RunInputs
from megatron_cpt.planning.text_tables import columns, percent
from megatron_cpt.tasks.task_files import GROUPS, task_row_faults

_STEPS_SHOWN = 8
"""A longer list of steps is shown by its beginning and its end."""


@dataclass(frozen=True)
class EvaluationPlan:
    """How often a validation set or an entry of tasks is evaluated and what that costs."""

    name: str
    """Name of the entry in `validation.sets`, `tasks.files` or `tasks.lm_eval`."""
    kind: Literal["validation", "tasks", "lm_eval"]
    """Which of the three."""
    role: str
    """domain or replay."""
    tokens: int | None
    """Tokens of one evaluation; None for the harness's tasks, which the plan does not open."""
    steps: tuple[int, ...]
    """Steps at which it is evaluated."""
    omitted: int
    """Evaluations that `validation.max_overhead` leaves out."""
    share_of_one: float
    """Compute of one evaluation over that of training: a forward pass is a third of a training pass. With it the
    gradient of `validation.gradient_conflict`, one whole step, and the loss after the update. 0 where the tokens are
    not known."""

    @property
    def compute_share(self) -> float:
        """Compute of all its evaluations over that of training."""
        return len(self.steps) * self.share_of_one


def plan_evaluations(
    config: RunConfig, inputs: RunInputs, total_steps: int, first_step: int = 0
) -> tuple[EvaluationPlan, ...]:
    """Every validation set, file of tasks and entry of harness tasks, as often as `max_overhead` allows.

    Args:
        first_step: steps done before the run begins (`init_from.load_data_position: true`): steps and costs are of
        the steps after it.
    """
    size, ramp = config.tokens_per_step, config.token_batches.after(first_step).ramp
    steps = max(1, total_steps - first_step)
    per_step = (config.total_tokens - config.tokens_at(first_step)) / steps  # on average

    def steps_of(interval: EvalIntervalSettings) -> tuple[int, ...]:
        return tuple(first_step + step for step in evaluation_steps(interval, total_steps - first_step, size, ramp))

    planned = []
    for name, one in config.validation.sets.items():
        scored = scored_tokens(inputs.validation_sets[name].tokens, config.data.sequence_length, one.tokens)
        tokens = len(scored) * config.data.sequence_length  # the last sequence is computed at full length
        at = steps_of(one.eval_interval or config.validation.eval_interval)
        compared = name in config.validation.gradient_conflict
        gradient = 4 / 3 * min(tokens, size) / per_step if compared else 0
        cost = (tokens / (3 * per_step) + gradient) / steps
        planned.append(EvaluationPlan(name, "validation", one.role, tokens, at, 0, cost))
    for name, tasks in inputs.tasks.items():
        file, tokens = config.tasks.files[name], sum(task.tokens for task in tasks)
        at = steps_of(file.eval_interval or config.tasks.eval_interval)
        planned.append(EvaluationPlan(name, "tasks", file.role, tokens, at, 0, tokens / (3 * per_step * steps)))
    for name, asked in config.tasks.lm_eval.items():
        at = steps_of(asked.eval_interval or config.tasks.eval_interval)
        planned.append(EvaluationPlan(name, "lm_eval", asked.role, None, at, 0, 0.0))
    return within(config.validation.max_overhead, tuple(planned))


def within(limit: float | None, planned: tuple[EvaluationPlan, ...]) -> tuple[EvaluationPlan, ...]:
    """The evaluations with the largest share of their steps, the same of all, whose cost is within the limit.

    Shares are tried in thousandths; the first and the last step stay whatever they cost.
    """
    kept = planned
    for thousandths in range(1000, -1, -1):
        kept = tuple(_with_share(evaluation, thousandths / 1000) for evaluation in planned)
        if limit is None or _total_share(kept) <= limit:
            break
    return kept


def _total_share(evaluations: tuple[EvaluationPlan, ...]) -> float:
    """Compute of all evaluations over that of training."""
    return sum(evaluation.compute_share for evaluation in evaluations)


def _with_share(evaluation: EvaluationPlan, share: float) -> EvaluationPlan:
    if evaluation.tokens is None:
        return evaluation  # what costs an unknown sum cannot be fitted into a limit
    steps = subsampled(evaluation.steps, share)
    return replace(evaluation, steps=steps, omitted=len(evaluation.steps) - len(steps))


def overhead_warnings(config: RunConfig, evaluations: tuple[EvaluationPlan, ...]) -> Iterator[str]:
    """Evaluations that cost more than training; those left out; a limit that even the first and the last exceed."""
    most, cost = config.validation.max_overhead, _total_share(evaluations)
    if most is None and cost > 1:
        yield (
            f"evaluations cost {percent(cost)} of the training compute. Give the sets a smaller budget (`tokens`, "
            "`limit`), evaluate more seldom, or set `validation.max_overhead`."
        )
    left_out = [
        f"{evaluation.omitted} of {evaluation.omitted + len(evaluation.steps)} evaluations of {evaluation.name}"
        for evaluation in evaluations
        if evaluation.omitted
    ]
    if most is not None and left_out:
        yield (
            f"validation.max_overhead leaves out {', '.join(left_out)}: those kept cost {percent(cost)} of the "
            "training compute. What happens between them is not seen."
        )
    if most is not None and cost > most:
        yield (
            f"the first and the last evaluations alone cost {percent(cost)} of the training compute, more than "
            f"validation.max_overhead = {percent(most)}: give the sets a smaller budget (`tokens`, `limit`)."
        )
    unknown = [evaluation.name for evaluation in evaluations if evaluation.tokens is None]
    if most is not None and unknown:
        yield (
            f"validation.max_overhead does not count the harness's tasks of {', '.join(unknown)}, whose tokens are "
            "known once they are opened: all their evaluations are kept."
        )


def task_faults(config: RunConfig, inputs: RunInputs) -> Iterator[Fault]:
    """Tasks that two files hold or that have ids without a row, and groups of tasks that no file holds."""
    files: dict[str, str] = {}
    for name, tasks in inputs.tasks.items():
        for task in tasks:
            if task.name in files:
                rule = f"holds task {task.name!r}, which tasks.files.{files[task.name]} holds too."
                yield Fault(f"tasks.files.{name}", rule, "Give each task in one file.")
            files[task.name] = name
            if inputs.shape is not None:
                yield from task_row_faults(task, inputs.shape.vocabulary)
    yield from _lm_eval_faults(config)
    if set(inputs.tasks) != set(config.tasks.files):
        return  # a file that could not be read has its own fault
    kinds = {task.name: task.metric for tasks in inputs.tasks.values() for task in tasks}
    for group, members in group_members(config).items():
        if not members:
            rule = f"a group without tasks must be a published one: {' or '.join(GROUPS)}."
            yield Fault(f"tasks.groups.{group} is empty", rule, "Name its tasks.")
        if group in kinds:
            yield Fault(f"tasks.groups.{group}", "a task has the same name.", "Rename the group.")
        unknown = "accuracy" if config.tasks.lm_eval else "loss"  # whether it is a harness task is seen when opened
        absent = [member for member in members if kinds.get(member, unknown) == "loss"]
        if absent:
            rule = f"{', '.join(absent)}: no multiple-choice task of tasks.files by that name, so the mean would be "
            remedy = f"There are: {', '.join(kinds) or 'none'}. Name those that the mean is to be over."
            yield Fault(f"tasks.groups.{group}", f"{rule}another.", remedy)


def _lm_eval_faults(config: RunConfig) -> Iterator[Fault]:
    """That the harness is not installed, and folders and files of tasks that are not there."""
    if config.tasks.lm_eval and importlib.util.find_spec("lm_eval") is None:
        rule = "needs lm-evaluation-harness, which is not installed."
        yield Fault("tasks.lm_eval", rule, "Install it: pip install 'megatron-cpt[eval]'.")
    for name, asked in config.tasks.lm_eval.items():
        if asked.include is not None and not Path(asked.include).is_dir():
            value = f"tasks.lm_eval.{name}.include = {asked.include}"
            yield Fault(value, "there is no such folder.", "Name a folder of task files.")
        for task in asked.tasks:
            if task.endswith((".yaml", ".yml")) and not Path(task).is_file():
                rule, remedy = "there is no such file.", "Name a task, or the path of its YAML file."
                yield Fault(f"tasks.lm_eval.{name}.tasks: {task}", rule, remedy)


def group_members(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """The tasks of each group; an empty list stands for those of a published group of that name."""
    return {name: tuple(members) or GROUPS.get(name, ()) for name, members in config.tasks.groups.items()}


def evaluation_lines(evaluations: tuple[EvaluationPlan, ...]) -> list[str]:
    """The evaluations as lines of a table."""
    heading = ["set", "role", "tokens", "evaluations", "of training compute", "at steps"]
    rows = [
        [
            evaluation.name if evaluation.kind == "validation" else f"{evaluation.name} ({evaluation.kind})",
            evaluation.role,
            "not known" if evaluation.tokens is None else short_count(evaluation.tokens),
            f"{len(evaluation.steps)} of {len(evaluation.steps) + evaluation.omitted}"
            if evaluation.omitted
            else str(len(evaluation.steps)),
            "not known" if evaluation.tokens is None else percent(evaluation.compute_share),
            _shortened(evaluation.steps),
        ]
        for evaluation in evaluations
    ]
    count = sum(len(evaluation.steps) for evaluation in evaluations)
    beyond = " and more" if any(evaluation.tokens is None for evaluation in evaluations) else ""
    total = ["together", "", "", str(count), percent(_total_share(evaluations)) + beyond, ""]
    return columns([heading, *rows, total], "llrrrl")


def _shortened(steps: tuple[int, ...]) -> str:
    words = [str(step) for step in steps]
    if len(words) > _STEPS_SHOWN:
        words = [*words[: _STEPS_SHOWN - 2], "...", words[-1]]
    return ", ".join(words)
