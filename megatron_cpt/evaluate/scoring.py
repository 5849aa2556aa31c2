"""Scores of downstream tasks from log-likelihoods, as lm-evaluation-harness computes them.

`accuracy` takes the choice of the largest log-likelihood, `normalized_accuracy` that of the largest log-likelihood per
character of the choice; of equal ones the first. Standard errors are those of a mean over questions (n - 1). Texts have
perplexities per word and per byte, and bits per byte.

Tasks of lm-evaluation-harness are opened once (lm_eval.py) and scored at every evaluation. Results are written as a
table and as tasks.json.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_cpt.evaluate.likelihood import log_likelihoods
from megatron_cpt.runs.folder import file_sha256
from megatron_cpt.tasks.task_files import Continuation, Question, Task, Text


@dataclass(frozen=True)
class Accuracy:
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
    accuracy: Accuracy
    """By log-likelihood."""
    normalized_accuracy: Accuracy
    """By log-likelihood per character."""
    chance: float
    """Accuracy of guessing."""
    items: list[dict[str, Any]]
    """Each question's id, answer and log-likelihoods, so that two models can be compared pair by pair."""

    @property
    def counted(self) -> Accuracy:
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
        return _score_texts(task, of_items)
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
        accuracy=_accuracy_of([item["accuracy"] for item in items]),
        normalized_accuracy=_accuracy_of([item["normalized_accuracy"] for item in items]),
        chance=float(np.mean([1 / len(question.choices) for question in questions])),
        items=items,
    )


def _score_texts(task: Task, likelihoods: Sequence[npt.NDArray[np.float64]]) -> TextScore:
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


def _accuracy_of(right: Sequence[float]) -> Accuracy:
    """A share with its standard error, from 0s and 1s."""
    error = float(np.std(right, ddof=1) / np.sqrt(len(right))) if len(right) > 1 else None
    return Accuracy(float(np.mean(right)), error)


def mean_accuracy(accuracies: Sequence[Accuracy]) -> Accuracy:
    """A group of tasks: the plain mean over them, its standard error that of independent tasks."""
    errors = [one.standard_error for one in accuracies]
    known = [error for error in errors if error is not None]
    error = float(np.sqrt(np.sum(np.square(known))) / len(accuracies)) if len(known) == len(accuracies) else None
    return Accuracy(float(np.mean([one.value for one in accuracies])), error)


def counted_accuracies(scores: Mapping[str, TaskScore]) -> dict[str, Accuracy]:
    """The accuracy that counts, of each multiple-choice task."""
    return {name: score.counted for name, score in scores.items() if isinstance(score, ChoiceScore)}


def group_accuracies(groups: Mapping[str, Sequence[str]], accuracies: Mapping[str, Accuracy]) -> dict[str, Accuracy]:
    """The groups whose tasks all have an accuracy, by name."""
    return {
        name: mean_accuracy([accuracies[member] for member in members])
        for name, members in groups.items()
        if members and set(members) <= accuracies.keys()
    }


ACCURACIES = {"acc_norm": "normalized_accuracy", "acc": "accuracy"}
"""The harness's names of the accuracies, and ours; the first that a task has counts."""


@dataclass(frozen=True)
class LmEvalTask:
    """One task with everything that decides its score but the model."""

    name: str
    """Its name in the harness."""
    role: str
    """domain or replay."""
    metric: str
    """What counts: accuracy or normalized_accuracy, loss (nats per token) of tasks without."""
    num_fewshot: int
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
class LmEvalScore:
    """A model on one of the harness's tasks."""

    metric: str
    """What counts: accuracy, normalized_accuracy or loss."""
    figures: dict[str, float]
    """The harness's own metrics; accuracies by our names."""
    counted: Accuracy | None
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


def score_lm_eval(
    model: Sequence[torch.nn.Module], tasks: Sequence[LmEvalTask], longest: int, micro_batch_size: int
) -> dict[str, LmEvalScore]:
    """The scores of a model on tasks, by name, in one pass over all their requests.

    Every rank calls it and gets the same. `longest`: tokens of the model's input at most.
    """
    requests = [request for task in tasks for request in task.requests]
    found = log_likelihoods(model, requests, micro_batch_size, longest)
    ends = np.cumsum([len(task.requests) for task in tasks])[:-1]
    parts = zip(tasks, np.split(found.logs, ends), np.split(found.greedy, ends), strict=True)
    return {task.name: lm_eval_score(task, logs, greedy) for task, logs, greedy in parts}


def lm_eval_score(task: LmEvalTask, logs: npt.NDArray[np.float64], greedy: npt.NDArray[np.bool_]) -> LmEvalScore:
    """The score of one task from log-likelihoods [requests] and whether each is what the model would write."""
    instances = task.task.instances
    ends = np.cumsum(task.requests_of_instance)[:-1]
    for instance, its_logs, its_greedy in zip(instances, np.split(logs, ends), np.split(greedy, ends), strict=True):
        total = float(its_logs.sum())
        rolling = instance.request_type == "loglikelihood_rolling"
        instance.resps = [total if rolling else (total, bool(its_greedy[0]))]
    task.task.apply_filters()
    questions = _of_questions(instances)
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
        return LmEvalScore(task.metric, figures, None, None, loss, item_nats, item_tokens)
    right = [float(value) for value in values[next(name for name in ACCURACIES if ACCURACIES[name] == task.metric)]]
    counted, chance = _accuracy_of(right), None
    if task.task.OUTPUT_TYPE == "multiple_choice":
        # With mutual information every choice is asked a second time, without its question.
        times = 2 if "acc_mutual_info" in aggregation else 1
        chance = float(np.mean([times / len(numbers) for numbers in questions]))
    losses = [1 - value for value in right]
    return LmEvalScore(task.metric, figures, counted, chance, 1 - counted.value, losses, [1] * len(losses))


def _of_questions(instances: Sequence[Any]) -> list[list[int]]:
    """The numbers of the instances of each question, in the harness's order."""
    numbers: dict[int, list[int]] = {}
    for number, instance in enumerate(instances):
        numbers.setdefault(instance.doc_id, []).append(number)
    return [sorted(of_one, key=lambda number: int(instances[number].idx)) for of_one in numbers.values()]


def _of_instances(task: LmEvalTask) -> list[tuple[Continuation, ...]]:
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


def document(
    model: str,
    settings: Mapping[str, Any],
    tasks: Sequence[Task],
    scores: Mapping[str, TaskScore],
    group_means: Mapping[str, Accuracy],
) -> dict[str, Any]:
    """The content of tasks.json."""
    files = dict.fromkeys(task.file for task in tasks)
    return {
        "model": model,
        "settings": dict(settings),
        "files": {str(path): file_sha256(path) for path in files},
        "tasks": {
            task.name: {"num_fewshot": task.num_fewshot, "truncated": task.truncated, "identity": task.identity}
            | asdict(scores[task.name])
            for task in tasks
        },
        "groups": {name: asdict(mean) for name, mean in group_means.items()},
    }


def table(tasks: Sequence[Task], scores: Mapping[str, TaskScore], group_means: Mapping[str, Accuracy]) -> str:
    """One line a task, questions before texts, then groups. A star marks the accuracy that counts."""
    width = max(map(len, [task.name for task in tasks] + list(group_means) + ["group"]))
    cut = {task.name: f"  ({task.truncated:,} cut at the beginning)" if task.truncated else "" for task in tasks}
    asked = {name: one for name, one in scores.items() if isinstance(one, ChoiceScore)}
    read = {name: one for name, one in scores.items() if isinstance(one, TextScore)}
    lines = []
    if asked:
        lines.append(f"{'task':<{width}}  questions  accuracy            normalized          chance")
    for name, choice in asked.items():
        plain = _shown(choice.accuracy, choice.metric == "accuracy")
        normalized = _shown(choice.normalized_accuracy, choice.metric != "accuracy")
        both = f"{plain:<18}  {normalized:<18}"
        lines.append(f"{name:<{width}}  {choice.questions:>9,}  {both}  {choice.chance:.1%}{cut[name]}")
    if read:
        lines.append(f"{'task':<{width}}      texts  nats/token  per word  per byte  bits/byte")
    for name, text in read.items():
        lines.append(
            f"{name:<{width}}  {text.texts:>9,}  {text.loss:>10.4f}  {text.word_perplexity:>8.2f}"
            f"  {text.byte_perplexity:>8.3f}  {text.bits_per_byte:>9.4f}{cut[name]}"
        )
    if group_means:
        lines.append(f"{'group':<{width}}  mean")
    lines += [f"{name:<{width}}  {_shown(mean, False)}" for name, mean in group_means.items()]
    return "\n".join(lines)


def _shown(accuracy: Accuracy, counts: bool) -> str:
    error = "" if accuracy.standard_error is None else f" ± {accuracy.standard_error:.2%}"
    return f"{accuracy.value:.2%}{error}{' *' if counts else ''}"
