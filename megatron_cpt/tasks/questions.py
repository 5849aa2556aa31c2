"""Downstream tasks from local JSONL files: multiple-choice questions, and texts to be predicted.

One JSON object a line: `{"id", "task", "question", "context"?, "choices": [...], "answer": index}`, or, for a
perplexity task, `{"id", "task", "text"}`. Only `question`, `choices` and `answer`, or `text`, must be there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.preparation.lines import compression_of, decompressed

MOST_FAULTS = 20
"""Lines of a file that an error names."""


@dataclass(frozen=True)
class Question:
    """One question with its choices."""

    id: str
    """Its id in the file."""
    prompt: str
    """What stands before a choice: context and question."""
    choices: tuple[str, ...]
    """The answers to choose from."""
    answer: int
    """Index of the right one."""


@dataclass(frozen=True)
class Text:
    """One text of a perplexity task."""

    id: str
    """Its id in the file."""
    text: str
    """The whole text."""


Item = Question | Text


def read_items(path: Path) -> dict[str, list[Item]]:
    """The questions or texts of a file by task, in order; a line without a task name is of the task "".

    Raises BadInput naming the lines that are neither, ids that stand twice, a task of both kinds, or an empty file.
    """
    lines = _lines(path)
    tasks: dict[str, list[Item]] = {}
    faults, seen = [], set()
    for number, line in enumerate(lines, start=1):
        try:
            task, item = _item(orjson.loads(line), number)
            if (task, item.id) in seen:
                raise ValueError(f"id {item.id!r} stands twice in task {task!r}")
            if type(item) is not type(tasks.get(task, [item])[0]):
                raise ValueError(f"task {task!r} has both questions and texts")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = 'Each line is {"question": ..., "choices": [...], "answer": index} or {"text": ...}.'
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            faults.append(Fault(f"{path}, line {number}", f"is no question: {what}.", remedy))
            continue
        seen.add((task, item.id))
        tasks.setdefault(task, []).append(item)
    refuse(faults[:MOST_FAULTS])
    if not tasks:
        raise BadInput(Fault(str(path), "holds no question.", "Give a JSONL file with one question a line."))
    return tasks


def _lines(path: Path) -> list[bytes]:
    """The lines of a file, plain, gzip or Zstandard. Raises IntegrityFault where it is cut short."""
    try:
        with path.open("rb") as raw:
            compression = compression_of(raw.read(4))
            raw.seek(0)
            with decompressed(raw, str(path), compression) as content:
                return content.read().splitlines()
    except OSError as error:
        raise BadInput(Fault(str(path), f"cannot be read: {error.strerror}.", "Give a JSONL file.")) from error


def _item(line: Any, number: int) -> tuple[str, Item]:
    task, identity = str(line.get("task", "")), str(line.get("id", number))
    if "choices" not in line and "question" not in line:
        if not isinstance(line["text"], str) or not line["text"].strip():
            raise ValueError("text must be a text")
        return task, Text(identity, line["text"])
    choices, answer = line["choices"], line["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(item, str) and item for item in choices):
        raise ValueError("choices must be two texts or more")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer!r} is not the index of a choice")
    return task, Question(identity, _prompt(line.get("context"), line["question"]), tuple(choices), answer)


def _prompt(context: Any, question: Any) -> str:
    parts: Sequence[Any] = [question] if context in (None, "") else [context, question]
    if not all(isinstance(part, str) for part in parts) or not question.strip():
        raise ValueError("question (and context, where it is there) must be texts")
    return "\n".join(parts)
