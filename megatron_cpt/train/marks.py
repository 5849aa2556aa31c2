"""What is measured at a mark. Training goes on as if it had not been."""

import time

from megatron_cpt.evaluate.harness_score import score_harness
from megatron_cpt.evaluate.tasks import Rate, counted_rates, group_rates, score_tasks
from megatron_cpt.evaluate.validate import evaluate
from megatron_cpt.parallel.seed import random_states_kept
from megatron_cpt.planning.evaluations import group_members
from megatron_cpt.train.assemble import Run
from megatron_cpt.train.journal import Journal
from megatron_cpt.train.stability import gradient_norm


def evaluate_marks(run: Run, journal: Journal, step: int) -> dict[str, float]:
    """Measures all that has a mark at this step, each kind in one pass.

    Returns the losses of the validation sets among it, in nats per token, by name.
    """
    due, started = sum(step in one.marks for one in run.plan.evaluations), time.perf_counter()
    losses = evaluate_sets(run, journal, step)
    measure_updates(run, journal, step)
    measure_stability(run, journal, step)
    evaluate_tasks(run, journal, step)
    if due:
        journal.evaluated(due, time.perf_counter() - started)
    return losses


def evaluate_sets(run: Run, journal: Journal, step: int) -> dict[str, float]:
    """The losses of the validation sets; each is recorded with its part of the time, by its sequences."""
    due = [one for one in run.validation_sets if step in run.plan.marks[one.name]]
    if not due:
        return {}
    started = time.perf_counter()
    micro_batch_size = run.config.validation.micro_batch_size or run.config.training.micro_batch_size
    losses = evaluate(run.model, due, micro_batch_size)
    per_sequence = (time.perf_counter() - started) / sum(len(loss.sequence_nats) for loss in losses)
    for validation_set, loss in zip(due, losses, strict=True):
        journal.validated(step, validation_set, loss, per_sequence * len(loss.sequence_nats))
    return {one.name: loss.loss for one, loss in zip(due, losses, strict=True)}


def measure_updates(run: Run, journal: Journal, step: int) -> None:
    """How far the weights have moved, wherever a validation set has a mark; before the first update they have not."""
    if (
        run.start_weights is not None
        and step > run.beginning.begun_at
        and any(step in marks for marks in run.plan.marks.values())
    ):
        journal.moved(step, run.start_weights.updates(run.model))


def measure_stability(run: Run, journal: Journal, step: int) -> None:
    """The norm of the gradient on one global batch of a held-out set."""
    name = run.config.validation.stability_gradient
    if name is None or step not in run.plan.marks[name]:
        return
    started = time.perf_counter()
    validation_set = next(one for one in run.validation_sets if one.name == name)
    training = run.config.training
    norm = gradient_norm(
        run.model, run.optimizer, validation_set, training.global_batch_size, training.micro_batch_size
    )
    journal.pulled(step, validation_set, norm, time.perf_counter() - started)


def evaluate_tasks(run: Run, journal: Journal, step: int) -> None:
    """The downstream tasks and their groups."""
    rates = evaluate_files(run, journal, step) | evaluate_harness(run, journal, step)
    members = group_members(run.config)
    for name, rate in group_rates(members, rates).items():
        journal.tested_group(step, name, members[name], rate)


def evaluate_files(run: Run, journal: Journal, step: int) -> dict[str, Rate]:
    """The tasks of files. Returns the accuracies among their scores."""
    due = [task for name, tasks in run.tasks.items() if step in run.plan.task_marks[name] for task in tasks]
    if not due:
        return {}
    started = time.perf_counter()
    scores = score_tasks(run.model, due, run.shape.max_positions, run.config.tasks.micro_batch_size)
    per_token = (time.perf_counter() - started) / sum(task.tokens for task in due)
    for task in due:
        journal.tested(step, task, scores[task.name], per_token * task.tokens)
    return counted_rates(scores)


def evaluate_harness(run: Run, journal: Journal, step: int) -> dict[str, Rate]:
    """lm-evaluation-harness's tasks, whose code may draw or seed. Returns the accuracies among their scores."""
    due = [task for name, tasks in run.harness.items() if step in run.plan.harness_marks[name] for task in tasks]
    if not due:
        return {}
    started = time.perf_counter()
    with random_states_kept():
        scores = score_harness(run.model, due, run.shape.max_positions, run.config.tasks.micro_batch_size)
    per_token = (time.perf_counter() - started) / sum(task.tokens for task in due)
    for task in due:
        journal.tested(step, task, scores[task.name], per_token * task.tokens)
    return {name: score.counted for name, score in scores.items() if score.counted is not None}
