"""What is measured at an evaluation. Training continues as if it had not been.

The stability gradient is the norm of the gradient of the mean loss of fixed held-out sequences; no update is made of
it. De Lange et al. (arXiv:2205.13452) divide the gradient of continual learning into plasticity and stability; the
second is about 0 when the text changes, and grows as the loss on old text rises.
"""

import time
from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_cpt.evaluate.scoring import Accuracy, counted_accuracies, group_accuracies, score_lm_eval, score_tasks
from megatron_cpt.evaluate.validation import ValidationSet, assign_to_ranks, evaluate, micro_batches
from megatron_cpt.model.forward import run_micro_batches, without_dropout
from megatron_cpt.parallel.groups import random_states_kept
from megatron_cpt.planning.evaluations import group_members
from megatron_cpt.train.logger import RunLogger
from megatron_cpt.train.optimizer import clear_gradients, gather_gradients
from megatron_cpt.train.run import Run


def evaluate_marks(run: Run, logger: RunLogger, step: int) -> dict[str, float]:
    """Measures all that has a mark at this step, each kind in one pass.

    Returns the losses of the validation sets among it, in nats per token, by name.
    """
    due, started = sum(step in one.marks for one in run.plan.evaluations), time.perf_counter()
    losses = _evaluate_sets(run, logger, step)
    _measure_updates(run, logger, step)
    _measure_stability(run, logger, step)
    _evaluate_tasks(run, logger, step)
    if due:
        logger.evaluated(due, time.perf_counter() - started)
    return losses


def _evaluate_sets(run: Run, logger: RunLogger, step: int) -> dict[str, float]:
    """The losses of the validation sets; each is recorded with its part of the time, by its sequences."""
    due = [one for one in run.validation_sets if step in run.plan.marks[one.name]]
    if not due:
        return {}
    started = time.perf_counter()
    micro_batch_size = run.config.validation.micro_batch_size or run.config.training.micro_batch_size
    losses = evaluate(run.model, due, micro_batch_size)
    per_sequence = (time.perf_counter() - started) / sum(len(loss.sequence_nats) for loss in losses)
    for validation_set, loss in zip(due, losses, strict=True):
        logger.log_validation(step, validation_set, loss, per_sequence * len(loss.sequence_nats))
    return {one.name: loss.loss for one, loss in zip(due, losses, strict=True)}


def _measure_updates(run: Run, logger: RunLogger, step: int) -> None:
    """How far the weights have moved, wherever a validation set has a mark; before the first update they have not."""
    if (
        run.start_weights is not None
        and step > run.start_state.first_own_step
        and any(step in marks for marks in run.plan.marks.values())
    ):
        logger.log_weight_update(step, run.start_weights.updates(run.model))


def _measure_stability(run: Run, logger: RunLogger, step: int) -> None:
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
    logger.log_stability_gradient(step, validation_set, norm, time.perf_counter() - started)


def _evaluate_tasks(run: Run, logger: RunLogger, step: int) -> None:
    """The downstream tasks and their groups."""
    rates = _evaluate_files(run, logger, step) | evaluate_lm_eval(run, logger, step)
    members = group_members(run.config)
    for name, rate in group_accuracies(members, rates).items():
        logger.log_task_group(step, name, members[name], rate)


def _evaluate_files(run: Run, logger: RunLogger, step: int) -> dict[str, Accuracy]:
    """The tasks of files. Returns the accuracies among their scores."""
    due = [task for name, tasks in run.tasks.items() if step in run.plan.task_marks[name] for task in tasks]
    if not due:
        return {}
    started = time.perf_counter()
    scores = score_tasks(run.model, due, run.shape.max_positions, run.config.tasks.micro_batch_size)
    per_token = (time.perf_counter() - started) / sum(task.tokens for task in due)
    for task in due:
        logger.log_task(step, task, scores[task.name], per_token * task.tokens)
    return counted_accuracies(scores)


def evaluate_lm_eval(run: Run, logger: RunLogger, step: int) -> dict[str, Accuracy]:
    """lm-evaluation-harness's tasks, whose code may draw or seed. Returns the accuracies among their scores."""
    due = [task for name, tasks in run.harness.items() if step in run.plan.lm_eval_marks[name] for task in tasks]
    if not due:
        return {}
    started = time.perf_counter()
    with random_states_kept():
        scores = score_lm_eval(run.model, due, run.shape.max_positions, run.config.tasks.micro_batch_size)
    per_token = (time.perf_counter() - started) / sum(task.tokens for task in due)
    for task in due:
        logger.log_task(step, task, scores[task.name], per_token * task.tokens)
    return {name: score.counted for name, score in scores.items() if score.counted is not None}


def gradient_norm(
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    validation_set: ValidationSet,
    sequences: int,
    micro_batch_size: int,
) -> float:
    """Norm of the gradient of the loss, nats per token, of the first sequences of a set. Every rank gets the same.

    Dropout is off, and the gradient buffers are left empty, as a step finds them.
    """
    chosen = [(validation_set, number) for number in range(min(sequences, len(validation_set.scored_tokens)))]
    parts = assign_to_ranks(len(chosen), micro_batch_size)
    clear_gradients(model, optimizer)
    with without_dropout(model):
        run_micro_batches(
            model,
            micro_batches(chosen, parts),
            len(parts),
            micro_batch_size,
            validation_set.sequence_length,
            backward=True,
        )
    norm, _ = gather_gradients(optimizer)
    clear_gradients(model, optimizer)
    return norm
