"""Multiple-choice tasks: which choice does the model find likeliest, and how often is it the right one?

As lm-evaluation-harness has it: `accuracy` takes the choice of the largest log-likelihood, `normalized
accuracy` that of the largest log-likelihood per character of the choice; of equal ones the first. The
standard errors are those of a mean over questions (n - 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt.gpt_model import GPTModel

from megatron_cpt.corpus.tokenize import Tokenizer
from megatron_cpt.evaluate.likelihood import log_likelihoods
from megatron_cpt.evaluate.questions import Continuation, Question, continuations


@dataclass(frozen=True)
class Rate:
    """A share of questions."""

    value: float
    """0 to 1."""
    standard_error: float | None
    """Over questions; None for a single one."""


@dataclass(frozen=True)
class TaskScore:
    """A model on one task."""

    questions: int
    """How many there are."""
    accuracy: Rate
    """By log-likelihood."""
    normalized_accuracy: Rate
    """By log-likelihood per character."""
    chance: float
    """Accuracy of guessing."""
    truncated: int
    """Questions whose prompt lost its beginning, to fit into the model."""
    items: list[dict[str, Any]]
    """Each question's id, answer and log-likelihoods, so that two models can be compared pair by pair."""


def score_tasks(
    model: GPTModel | DistributedDataParallel,
    tasks: Mapping[str, Sequence[Question]],
    tokenizer: Tokenizer,
    longest: int,
    micro_batch_size: int = 8,
    delimiter: str = " ",
) -> dict[str, TaskScore]:
    """The scores of a model on tasks. Every rank calls it and gets the same.

    Args:
        longest: tokens of the model's input at most.
        delimiter: what stands between a prompt and a choice.
    Raises:
        BadInput: a choice that the model cannot take.
    """
    bos = tokenizer.bos_for("auto")
    # A label stands one place behind its input: the last id of a text is never an input.
    requests = {
        name: [continuations(question, tokenizer, delimiter, longest + 1, bos) for question in questions]
        for name, questions in tasks.items()
    }
    flat: list[Continuation] = [choice for of_task in requests.values() for choices in of_task for choice in choices]
    likelihoods = log_likelihoods(model, flat, micro_batch_size, longest)
    scores, start = {}, 0
    for name, questions in tasks.items():
        of_questions = []
        for choices in requests[name]:
            of_questions.append(likelihoods[start : start + len(choices)])
            start += len(choices)
        truncated = sum(any(choice.truncated for choice in choices) for choices in requests[name])
        scores[name] = score(questions, of_questions, truncated)
    return scores


def score(
    questions: Sequence[Question], likelihoods: Sequence[npt.NDArray[np.float64]], truncated: int = 0
) -> TaskScore:
    """The score of one task from the log-likelihoods of each question's choices, float64 [choices]."""
    plain, normalized = [], []
    for question, values in zip(questions, likelihoods, strict=True):
        characters = np.array([len(choice) for choice in question.choices])
        plain.append(int(np.argmax(values)) == question.answer)
        normalized.append(int(np.argmax(values / characters)) == question.answer)
    return TaskScore(
        questions=len(questions),
        accuracy=rate(plain),
        normalized_accuracy=rate(normalized),
        chance=float(np.mean([1 / len(question.choices) for question in questions])),
        truncated=truncated,
        items=[
            {"id": question.id, "answer": question.answer, "log_likelihoods": values.tolist()}
            for question, values in zip(questions, likelihoods, strict=True)
        ],
    )


def rate(right: Sequence[bool]) -> Rate:
    """A share with its standard error."""
    error = float(np.std(right, ddof=1) / np.sqrt(len(right))) if len(right) > 1 else None
    return Rate(float(np.mean(right)), error)
