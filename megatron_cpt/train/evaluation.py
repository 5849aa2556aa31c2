"""Everything that an evaluation measures: validation losses, weight updates, tasks. It changes nothing of training."""

import time

from megatron_cpt.evaluate.scoring import (
    Accuracy,
    LmEvalScore,
    LmEvalTask,
    TaskScore,
    counted_accuracies,
    group_accuracies,
    score_lm_eval,
    score_tasks,
)
from megatron_cpt.evaluate.validation import ValidationLoss, ValidationSet, evaluate
from megatron_cpt.parallel.groups import random_states_kept
from megatron_cpt.planning.evaluations import group_members
from megatron_cpt.runs.records import Record
from megatron_cpt.tasks.task_files import Task
from megatron_cpt.train.logger import RunLogger
from megatron_cpt.train.run import Run
from megatron_cpt.train.weight_updates import LAYER_GROUPS


def evaluate_due(run: Run, logger: RunLogger, step: int) -> dict[str, float]:
    """Measures all that is due at this step, each kind in one pass.

    Returns the losses of the validation sets among it, in nats per token, by name.
    """
    due, started = sum(step in one.steps for one in run.plan.evaluations), time.perf_counter()
    losses = _evaluate_sets(run, logger, step)
    _measure_updates(run, logger, step)
    _evaluate_tasks(run, logger, step)
    if due:
        logger.took("evaluations", due, time.perf_counter() - started)
    return losses


def _evaluate_sets(run: Run, logger: RunLogger, step: int) -> dict[str, float]:
    """The losses of the validation sets; each is recorded with its part of the time, by its sequences."""
    due = [one for one in run.validation_sets if step in run.plan.evaluation_steps[one.name]]
    if not due:
        return {}
    started = time.perf_counter()
    micro_batch_size = run.config.validation.micro_batch_size or run.config.training.micro_batch_size
    losses = evaluate(run.model, due, micro_batch_size)
    per_sequence = (time.perf_counter() - started) / sum(len(loss.sequence_nats) for loss in losses)
    for validation_set, loss in zip(due, losses, strict=True):
        _record_validation(run, logger, step, validation_set, loss, per_sequence * len(loss.sequence_nats))
    return {one.name: loss.loss for one, loss in zip(due, losses, strict=True)}


def _record_validation(
    run: Run, logger: RunLogger, step: int, validation_set: ValidationSet, loss: ValidationLoss, seconds: float
) -> None:
    name = validation_set.name
    record = {
        "kind": "validation",
        "step": step,
        "tokens": run.config.tokens_at(step),
        "set": name,
        "role": validation_set.role,
        "baseline": step == run.start_state.first_own_step,
        "loss": loss.loss,
        "bits_per_byte": loss.bits_per_byte,
        "scored_tokens": int(loss.scored_tokens.sum()),
        "scored_bytes": loss.scored_bytes,
        "identity": validation_set.identity,
        "sequence_nats": loss.sequence_nats.tolist(),
        "sequence_tokens": loss.scored_tokens.tolist(),
        "seconds": seconds,
    }
    gap = logger.gap_figures(record)
    change = f", {gap['change']:+.4f} since the start" if "change" in gap else ""
    logger.record(
        record,
        {f"lm loss validation-{name}": loss.loss, f"bits_per_byte/{name}": loss.bits_per_byte}
        | {f"gap/{name}/{figure}": value for figure, value in gap.items()},
        f"step {step}: {name} {loss.loss:.4f} nats/token{change} ({seconds:.1f} s)",
    )


def _measure_updates(run: Run, logger: RunLogger, step: int) -> None:
    """How far the bottom and top layers are from where they started, and the ratio of the two.

    Measured wherever a validation set is evaluated, except before the first update.
    """
    due = step > run.start_state.first_own_step and any(step in steps for steps in run.plan.evaluation_steps.values())
    if run.start_weights is None or not due:
        return
    updates = run.start_weights.updates(run.model, run.optimizer)
    record: Record = {"kind": "weights", "step": step, "tokens": run.config.tokens_at(step)}
    scalars: dict[str, float | None] = {}
    for name in ("mean_relative", "norm_ratio"):
        bottom, top = (getattr(updates[end], name) for end in LAYER_GROUPS)
        record[name] = {"bottom": bottom, "top": top, "bottom_over_top": bottom / top if bottom and top else None}
        scalars |= {f"weight_update/{name}/{end}": value for end, value in record[name].items()}
    logger.record(record, scalars)


def _evaluate_tasks(run: Run, logger: RunLogger, step: int) -> None:
    """The downstream tasks and their groups."""
    accuracies = _evaluate_files(run, logger, step) | evaluate_lm_eval(run, logger, step)
    members = group_members(run.config)
    for name, mean in group_accuracies(members, accuracies).items():
        record = {
            "kind": "task_group",
            "step": step,
            "tokens": run.config.tokens_at(step),
            "group": name,
            "tasks": list(members[name]),
            "score": mean.value,
            "standard_error": mean.standard_error,
        }
        line = f"step {step}: {name} {mean.value:.4f} over {len(members[name])} tasks"
        logger.record(record, {f"task_group/{name}": mean.value}, line)


def _record_task(
    run: Run, logger: RunLogger, step: int, task: Task | LmEvalTask, score: TaskScore | LmEvalScore, seconds: float
) -> None:
    record = {
        "kind": "task",
        "step": step,
        "tokens": run.config.tokens_at(step),
        "task": task.name,
        "role": task.role,
        "baseline": step == run.start_state.first_own_step,
        "metric": task.metric,
        "num_fewshot": task.num_fewshot,
        "identity": task.identity,
        **score.summary(),
        "seconds": seconds,
    }
    scalars: dict[str, float | None] = {f"task/{task.name}/{name}": value for name, value in score.scalars().items()}
    line = f"step {step}: {task.name} {record['score']:.4f} {task.metric} ({seconds:.1f} s)"
    logger.record(record, scalars, line)


def _evaluate_files(run: Run, logger: RunLogger, step: int) -> dict[str, Accuracy]:
    """The tasks of files. Returns the accuracies among their scores."""
    due = [task for name, tasks in run.tasks.items() if step in run.plan.task_steps[name] for task in tasks]
    if not due:
        return {}
    started = time.perf_counter()
    scores = score_tasks(run.model, due, run.shape.max_positions, run.config.tasks.micro_batch_size)
    per_token = (time.perf_counter() - started) / sum(task.tokens for task in due)
    for task in due:
        _record_task(run, logger, step, task, scores[task.name], per_token * task.tokens)
    return counted_accuracies(scores)


def evaluate_lm_eval(run: Run, logger: RunLogger, step: int) -> dict[str, Accuracy]:
    """lm-evaluation-harness's tasks, whose code may draw or seed. Returns the accuracies among their scores."""
    due = [task for name, tasks in run.lm_eval_tasks.items() if step in run.plan.lm_eval_steps[name] for task in tasks]
    if not due:
        return {}
    started = time.perf_counter()
    with random_states_kept():
        scores = score_lm_eval(run.model, due, run.shape.max_positions, run.config.tasks.micro_batch_size)
    per_token = (time.perf_counter() - started) / sum(task.tokens for task in due)
    for task in due:
        _record_task(run, logger, step, task, scores[task.name], per_token * task.tokens)
    return {name: score.counted for name, score in scores.items() if score.counted is not None}
