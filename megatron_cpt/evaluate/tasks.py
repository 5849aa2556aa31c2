"""Downstream tasks by log-likelihood: which choice does the model find likeliest, and how likely is a text?

As in lm-evaluation-harness: `accuracy` takes the choice of the largest log-likelihood, `normalized accuracy`
that of the largest log-likelihood per character of the choice; of equal ones the first. Standard errors are
those of a mean over questions (n - 1). Of texts there are perplexities per word and per byte, and bits per byte.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_cpt.evaluate.likelihood import log_likelihoods
from megatron_cpt.tasks.questions import Question, Text
from megatron_cpt.tasks.task import Task


@dataclass(frozen=True)
class Rate:
    """A share of questions."""

    value: float
    """0 to 1."""
    standard_error: float | None
    """Over questions; None for a single one."""


@dataclass(frozen=True)
class ChoiceScore:
    """A model on a task of multiple-choice questions."""

    questions: int
    """How many there are."""
    metric: str
    """Which of the two accuracies counts: accuracy or normalized_accuracy."""
    accuracy: Rate
    """By log-likelihood."""
    normalized_accuracy: Rate
    """By log-likelihood per character."""
    chance: float
    """Accuracy of guessing."""
    items: list[dict[str, Any]]
    """Each question's id, answer and log-likelihoods, so that two models can be compared pair by pair."""

    @property
    def counted(self) -> Rate:
        """The accuracy that counts."""
        return self.accuracy if self.metric == "accuracy" else self.normalized_accuracy

    def summary(self) -> dict[str, Any]:
        """What a task record keeps. An item's loss is 0 where it was answered rightly, by the accuracy that counts."""
        return {
            "score": self.counted.value,
            "standard_error": self.counted.standard_error,
            "accuracy": asdict(self.accuracy),
            "normalized_accuracy": asdict(self.normalized_accuracy),
            "chance": self.chance,
            "loss": 1 - self.counted.value,
            "item_losses": [1 - item[self.metric] for item in self.items],
            "item_weights": [1] * self.questions,
        }

    def scalars(self) -> dict[str, float]:
        """The figures by name."""
        return {"accuracy": self.accuracy.value, "normalized_accuracy": self.normalized_accuracy.value}


@dataclass(frozen=True)
class TextScore:
    """A model on the texts of a perplexity task."""

    texts: int
    """How many there are."""
    loss: float
    """Nats per token."""
    word_perplexity: float
    """exp of nats per word; words are what blanks divide."""
    byte_perplexity: float
    """exp of nats per UTF-8 byte."""
    bits_per_byte: float
    """Bits per UTF-8 byte."""
    items: list[dict[str, Any]]
    """Each text's id, nats and tokens."""

    def summary(self) -> dict[str, Any]:
        """What a task record keeps; an item's loss is its nats, its weight its tokens."""
        return {
            "score": self.loss,
            "standard_error": None,
            **self.scalars(),
            "item_losses": [item["nats"] for item in self.items],
            "item_weights": [item["tokens"] for item in self.items],
        }

    def scalars(self) -> dict[str, float]:
        """The figures by name."""
        return {
            "loss": self.loss,
            "word_perplexity": self.word_perplexity,
            "byte_perplexity": self.byte_perplexity,
            "bits_per_byte": self.bits_per_byte,
        }


TaskScore = ChoiceScore | TextScore


def score_tasks(
    model: Sequence[torch.nn.Module], tasks: Sequence[Task], longest: int, micro_batch_size: int
) -> dict[str, TaskScore]:
    """The scores of a model on tasks, by name, in one pass over all their requests.

    Every rank calls it and gets the same. `longest`: tokens of the model's input at most.
    """
    requests = [request for task in tasks for request in task.requests]
    likelihoods = log_likelihoods(model, requests, micro_batch_size, longest).logs
    ends = np.cumsum([len(task.requests) for task in tasks])
    return {task.name: score(task, part) for task, part in zip(tasks, np.split(likelihoods, ends[:-1]), strict=True)}


def score(task: Task, likelihoods: npt.NDArray[np.float64]) -> TaskScore:
    """The score of one task from the log-likelihoods of its requests, float64 [requests]."""
    of_items = np.split(likelihoods, np.cumsum(task.requests_of_item)[:-1])
    if task.metric == "loss":
        return score_texts(task, of_items)
    questions = [item for item in task.items if isinstance(item, Question)]
    return score_choices(questions, of_items, task.metric)


def score_choices(
    questions: Sequence[Question], likelihoods: Sequence[npt.NDArray[np.float64]], metric: str
) -> ChoiceScore:
    """The score of questions from the log-likelihoods of each question's choices, float64 [choices]."""
    items = []
    for question, values in zip(questions, likelihoods, strict=True):
        characters = np.array([len(choice) for choice in question.choices])
        items.append(
            {
                "id": question.id,
                "answer": question.answer,
                "log_likelihoods": values.tolist(),
                "accuracy": int(np.argmax(values) == question.answer),
                "normalized_accuracy": int(np.argmax(values / characters) == question.answer),
            }
        )
    return ChoiceScore(
        questions=len(questions),
        metric=metric,
        accuracy=rate([item["accuracy"] for item in items]),
        normalized_accuracy=rate([item["normalized_accuracy"] for item in items]),
        chance=float(np.mean([1 / len(question.choices) for question in questions])),
        items=items,
    )


def score_texts(task: Task, likelihoods: Sequence[npt.NDArray[np.float64]]) -> TextScore:
    """The score of texts from the log-likelihoods of each text's windows, float64 [windows]."""
    texts = [item for item in task.items if isinstance(item, Text)]
    counts = np.split([request.scored for request in task.requests], np.cumsum(task.requests_of_item)[:-1])
    items: list[dict[str, Any]] = [
        {"id": text.id, "nats": -float(values.sum()), "tokens": int(scored.sum())}
        for text, values, scored in zip(texts, likelihoods, counts, strict=True)
    ]
    nats = sum(item["nats"] for item in items)
    words = sum(len(re.split(r"\s+", text.text)) for text in texts)
    text_bytes = sum(len(text.text.encode()) for text in texts)
    return TextScore(
        texts=len(texts),
        loss=nats / sum(item["tokens"] for item in items),
        word_perplexity=float(np.exp(nats / words)),
        byte_perplexity=float(np.exp(nats / text_bytes)),
        bits_per_byte=float(nats / text_bytes / np.log(2)),
        items=items,
    )


def rate(right: Sequence[float]) -> Rate:
    """A share with its standard error, from 0s and 1s."""
    error = float(np.std(right, ddof=1) / np.sqrt(len(right))) if len(right) > 1 else None
    return Rate(float(np.mean(right)), error)


def mean_rate(rates: Sequence[Rate]) -> Rate:
    """A group of tasks: the plain mean over them, its standard error that of independent tasks."""
    errors = [rate.standard_error for rate in rates]
    known = [error for error in errors if error is not None]
    error = float(np.sqrt(np.sum(np.square(known))) / len(rates)) if len(known) == len(rates) else None
    return Rate(float(np.mean([rate.value for rate in rates])), error)


def counted_rates(scores: Mapping[str, TaskScore]) -> dict[str, Rate]:
    """The accuracy that counts, of each multiple-choice task."""
    return {name: score.counted for name, score in scores.items() if isinstance(score, ChoiceScore)}


def group_rates(groups: Mapping[str, Sequence[str]], rates: Mapping[str, Rate]) -> dict[str, Rate]:
    """The groups whose tasks all have an accuracy, by name."""
    return {
        name: mean_rate([rates[member] for member in members])
        for name, members in groups.items()
        if members and set(members) <= rates.keys()
    }
