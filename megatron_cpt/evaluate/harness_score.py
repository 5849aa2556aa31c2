"""A task of lm-evaluation-harness that was opened once, scored as often as a run has marks.

The harness made the questions (evaluate/harness_tasks.py) and turns log-likelihoods into its metrics, as its own
evaluator does; nothing here imports it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_cpt.evaluate.likelihood import log_likelihoods
from megatron_cpt.evaluate.tasks import Rate, rate
from megatron_cpt.tasks.requests import Continuation

ACCURACIES = {"acc_norm": "normalized_accuracy", "acc": "accuracy"}
"""The harness's names of the accuracies, and ours; the first that a task has counts."""


@dataclass(frozen=True)
class HarnessTask:
    """One task with everything that decides its score but the model."""

    name: str
    """Its name in the harness."""
    role: str
    """domain or replay."""
    metric: str
    """What counts: accuracy or normalized_accuracy, loss (nats per token) of tasks without."""
    shots: int
    """Solved examples before each question."""
    task: Any
    """The harness's task object, its instances made."""
    requests: tuple[Continuation, ...]
    """What the model scores, instance by instance."""
    requests_of_instance: tuple[int, ...]
    """How many of them each instance has: one, or the windows of a text."""

    @property
    def identity(self) -> str:
        """Hash of what is scored, and how: scores of equal identities are comparable."""
        described = hashlib.sha256(f"{self.metric} {self.task.VERSION} {self.requests_of_instance}".encode())
        for request in self.requests:
            described.update(np.array([request.scored, *request.ids], np.int64).tobytes())
        return described.hexdigest()

    @property
    def tokens(self) -> int:
        """Tokens of the model's input at one scoring, padding apart."""
        return sum(len(request.ids) - 1 for request in self.requests)


@dataclass(frozen=True)
class HarnessScore:
    """A model on one of the harness's tasks."""

    metric: str
    """What counts: accuracy, normalized_accuracy or loss."""
    figures: dict[str, float]
    """The harness's own metrics; accuracies by our names."""
    counted: Rate | None
    """The accuracy that counts; None where there is none."""
    chance: float | None
    """Accuracy of guessing, of multiple choice."""
    loss: float
    """1 - accuracy, or nats per token."""
    item_losses: list[float]
    """Of each question: 1 - its accuracy, or its nats."""
    item_weights: list[int]
    """1 of each question, or its scored tokens."""

    def summary(self) -> dict[str, Any]:
        """What a task record keeps."""
        return {
            "score": self.loss if self.counted is None else self.counted.value,
            "standard_error": None if self.counted is None else self.counted.standard_error,
            "harness": self.figures,
            **({} if self.chance is None else {"chance": self.chance}),
            **({} if self.counted is None else {self.metric: asdict(self.counted)}),
            "loss": self.loss,
            "item_losses": self.item_losses,
            "item_weights": self.item_weights,
        }

    def scalars(self) -> dict[str, float]:
        """The figures by name."""
        return self.figures | ({"loss": self.loss} if self.counted is None else {})


def score_harness(
    model: Sequence[torch.nn.Module], tasks: Sequence[HarnessTask], longest: int, micro_batch_size: int
) -> dict[str, HarnessScore]:
    """The scores of a model on tasks, by name, in one pass over all their requests.

    Every rank calls it and gets the same. `longest`: tokens of the model's input at most.
    """
    requests = [request for task in tasks for request in task.requests]
    found = log_likelihoods(model, requests, micro_batch_size, longest)
    ends = np.cumsum([len(task.requests) for task in tasks])[:-1]
    parts = zip(tasks, np.split(found.logs, ends), np.split(found.greedy, ends), strict=True)
    return {task.name: score(task, logs, greedy) for task, logs, greedy in parts}


def score(task: HarnessTask, logs: npt.NDArray[np.float64], greedy: npt.NDArray[np.bool_]) -> HarnessScore:
    """The score of one task from log-likelihoods [requests] and whether each is what the model would write."""
    instances = task.task.instances
    ends = np.cumsum(task.requests_of_instance)[:-1]
    for instance, its_logs, its_greedy in zip(instances, np.split(logs, ends), np.split(greedy, ends), strict=True):
        total = float(its_logs.sum())
        rolling = instance.request_type == "loglikelihood_rolling"
        instance.resps = [total if rolling else (total, bool(its_greedy[0]))]
    task.task.apply_filters()
    questions = of_questions(instances)
    values = _values(task.task, [[instances[number] for number in numbers] for numbers in questions])
    aggregation = task.task.aggregation()
    combined = {name: aggregation[name](of_all) for name, of_all in values.items() if name in aggregation}
    figures = {
        ACCURACIES.get(name, name): float(value) for name, value in combined.items() if isinstance(value, int | float)
    }
    if task.metric == "loss":
        nats = [-float(part.sum()) for part in np.split(logs, ends)]
        tokens = [sum(one.scored for one in part) for part in _of_instances(task)]
        item_nats = [sum(nats[number] for number in numbers) for numbers in questions]
        item_tokens = [sum(tokens[number] for number in numbers) for numbers in questions]
        loss = sum(item_nats) / sum(item_tokens)
        return HarnessScore(task.metric, figures, None, None, loss, item_nats, item_tokens)
    right = [float(value) for value in values[next(name for name in ACCURACIES if ACCURACIES[name] == task.metric)]]
    counted, chance = rate(right), None
    if task.task.OUTPUT_TYPE == "multiple_choice":
        # With mutual information every choice is asked a second time, without its question.
        times = 2 if "acc_mutual_info" in aggregation else 1
        chance = float(np.mean([times / len(numbers) for numbers in questions]))
    losses = [1 - value for value in right]
    return HarnessScore(task.metric, figures, counted, chance, 1 - counted.value, losses, [1] * len(losses))


def of_questions(instances: Sequence[Any]) -> list[list[int]]:
    """The numbers of the instances of each question, in the harness's order."""
    numbers: dict[int, list[int]] = {}
    for number, instance in enumerate(instances):
        numbers.setdefault(instance.doc_id, []).append(number)
    return [sorted(of_one, key=lambda number: int(instances[number].idx)) for of_one in numbers.values()]


def _of_instances(task: HarnessTask) -> list[tuple[Continuation, ...]]:
    ends = np.cumsum(task.requests_of_instance).tolist()
    return [task.requests[end - count : end] for end, count in zip(ends, task.requests_of_instance, strict=True)]


def _values(task: Any, questions: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """What the harness says of each question, by metric; of several filters, the first."""
    values: dict[str, list[Any]] = {}
    kept = next(iter(questions[0][0].filtered_resps))
    for instances in questions:
        found = task.process_results(instances[0].doc, [instance.filtered_resps[kept] for instance in instances])
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return values
