"""Multiple-choice questions from local JSONL files, and the token ids that they are scored on.

One JSON object a line: `{"id", "task", "question", "context"?, "choices": [...], "answer": index}`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.corpus.tokenize import Tokenizer

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
class Continuation:
    """One choice after its prompt, as token ids."""

    ids: tuple[int, ...]
    """Prompt and choice."""
    scored: int
    """How many of the last ids are the choice."""
    truncated: bool
    """Whether the prompt lost its beginning, to fit into the model."""


def read_questions(path: Path) -> dict[str, list[Question]]:
    """The questions of a file by task, in order; a file without task names is one task, by its own name.

    Raises BadInput naming the lines that are no questions, ids that stand twice, or an empty file.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(Fault(str(path), f"cannot be read: {error.strerror}.", "Give a JSONL file.")) from error
    tasks: dict[str, list[Question]] = {}
    faults, seen = [], set()
    for number, line in enumerate(lines, start=1):
        try:
            task, question = _question(orjson.loads(line), path.stem, number)
            if (task, question.id) in seen:
                raise ValueError(f"id {question.id!r} stands twice in task {task!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = 'Each line is {"question": ..., "choices": [...], "answer": index}.'
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            faults.append(Fault(f"{path}, line {number}", f"is no question: {what}.", remedy))
            continue
        seen.add((task, question.id))
        tasks.setdefault(task, []).append(question)
    refuse(faults[:MOST_FAULTS])
    if not tasks:
        raise BadInput(Fault(str(path), "holds no question.", "Give a JSONL file with one question a line."))
    return tasks


def continuations(
    question: Question, tokenizer: Tokenizer, delimiter: str, longest: int, bos: int | None
) -> list[Continuation]:
    """Each choice of a question as ids, with what stands before it.

    Prompt and choice are encoded together, and the ids beyond as many as the prompt alone has are the
    choice's; blanks at the prompt's end count to the choice. So lm-evaluation-harness does it.

    Args:
        delimiter: what stands between prompt and choice.
        longest: ids of one sequence at most; what is longer loses its beginning.
        bos: the id that opens each text, where the model was trained with one.
    Raises:
        BadInput: a choice alone is too long, or has no token of its own.
    """
    prompt = (question.prompt + delimiter).rstrip(" ")
    blanks = (question.prompt + delimiter)[len(prompt) :]
    whole = tokenizer.encode_batch([prompt, *(prompt + blanks + choice for choice in question.choices)])
    opening = [] if bos is None else [bos]
    found = []
    for choice, ids in zip(question.choices, whole[1:], strict=True):
        scored = len(ids) - len(whole[0])
        # A label needs an input before it, so at least one id must stand before the choice.
        if not 0 < scored < longest or not (opening or len(whole[0])):
            rule = f"has {scored} tokens after its prompt of {len(whole[0])}; the model takes {longest} in all."
            raise BadInput(Fault(f"{question.id}: choice {choice[:40]!r}", rule, "Take the question out."))
        both = [*opening, *ids.tolist()]
        found.append(Continuation(tuple(both[-longest:]), scored, len(both) > longest))
    return found


def _question(line: Any, file_name: str, number: int) -> tuple[str, Question]:
    choices, answer = line["choices"], line["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(item, str) and item for item in choices):
        raise ValueError("choices must be two texts or more")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer!r} is not the index of a choice")
    prompt = _prompt(line.get("context"), line["question"])
    task, identity = str(line.get("task", file_name)), str(line.get("id", number))
    return task, Question(identity, prompt, tuple(choices), answer)


def _prompt(context: Any, question: Any) -> str:
    parts: Sequence[Any] = [question] if context in (None, "") else [context, question]
    if not all(isinstance(part, str) for part in parts) or not question.strip():
        raise ValueError("question (and context, where it is there) must be texts")
    return "\n".join(parts)
