"""Downstream tasks from local JSONL files: multiple-choice questions, and texts to be predicted.

One JSON object per line: `{"id", "task", "question", "context"?, "choices": [...], "answer": index}`, or, for a
perplexity task, `{"id", "task", "text"}`. Only `question`, `choices` and `answer`, or `text`, are required.

The rules are lm-evaluation-harness's, so that scores are comparable with published ones: prompt and choice are encoded
together; few-shot examples stand before a prompt, each with its right answer; a long text is cut into windows in which
every token is predicted once. Published tasks are known by how their name begins (`mmlu_anatomy`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import TaskSettings
from megatron_cpt.corpus.indexed import idx_path
from megatron_cpt.corpus.parts import named_by
from megatron_cpt.preparation.compression import MAGIC_BYTES, compression_of, decompressed
from megatron_cpt.preparation.contamination import EvaluationItem, EvaluationSet, dataset_items
from megatron_cpt.runs.folder import file_sha256
from megatron_cpt.tokenizer.tokenizer import Tokenizer

_MOST_FAULTS = 20
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
    refuse(faults[:_MOST_FAULTS])
    if not tasks:
        raise BadInput(Fault(str(path), "holds no question.", "Give a JSONL file with one question a line."))
    return tasks


def _lines(path: Path) -> list[bytes]:
    """The lines of a file, plain, gzip or Zstandard. Raises IntegrityFault where it is cut short."""
    try:
        with path.open("rb") as raw:
            compression = compression_of(raw.read(MAGIC_BYTES))
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


def evaluation_sets(paths: Sequence[str]) -> list[EvaluationSet]:
    """A set for each task of the files, and one for each dataset, of which the prefix is given, or for each of its
    parts.

    Raises BadInput listing every path that is neither, and as read_items does.
    """
    sets: list[EvaluationSet] = []
    faults: list[Fault] = []
    for path in paths:
        try:
            prefixes = [path] if Path(path).is_file() else named_by(path)
            datasets = [dataset_items(prefix) for prefix in prefixes if idx_path(prefix).is_file()]
            sets += datasets or _tasks(Path(path))
        except BadInput as error:
            faults += error.faults
    if faults:
        raise BadInput(*faults)
    return sets


def _tasks(path: Path) -> list[EvaluationSet]:
    tasks = read_items(path)
    sha256 = file_sha256(path)
    return [
        EvaluationSet(
            name=task or path.name.split(".")[0],
            source=str(path.resolve()),
            sha256=sha256,
            items=tuple(EvaluationItem(item.id, _texts(item)) for item in items),
        )
        for task, items in tasks.items()
    ]


def _texts(item: Item) -> tuple[str, ...]:
    """A question with each of its choices, so that an answer is found where it follows its question."""
    if isinstance(item, Text):
        return (item.text,)
    return tuple(f"{item.prompt}\n{choice}" for choice in item.choices)


_EXAMPLE_DELIMITER = "\n\n"
"""What stands between an example and the next, and between the last and the question."""


class Encoder(Protocol):
    """What is needed of a tokenizer (tokenizer/tokenizer.py)."""

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The ids of each text alone."""
        ...


@dataclass(frozen=True)
class Continuation:
    """Token ids whose end is scored, given what stands before it."""

    ids: tuple[int, ...]
    """What stands before, and what is scored."""
    scored: int
    """How many of the last ids are scored."""
    truncated: bool
    """Whether the beginning was cut off, to fit into the model."""


def with_examples(question: Question, examples: Sequence[Question], delimiter: str) -> Question:
    """A question whose prompt begins with solved examples."""
    solved = [f"{example.prompt}{delimiter}{example.choices[example.answer]}" for example in examples]
    prompt = _EXAMPLE_DELIMITER.join([*solved, question.prompt])
    return Question(question.id, prompt, question.choices, question.answer)


def continuations(
    question: Question, tokenizer: Encoder, delimiter: str, longest: int, bos: int | None
) -> list[Continuation]:
    """Each choice of a question as ids, with what stands before it.

    Prompt and choice are encoded together, and the ids beyond as many as the prompt alone has are the
    choice's; blanks at the prompt's end count to the choice.

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


def windows(ids: Sequence[int], longest: int, opening: int) -> list[Continuation]:
    """A text as windows in which each of its ids is predicted once, with as much before it as the model takes.

    As in lm-evaluation-harness's rolling log-likelihood: the first window has nothing but `opening` before it;
    in the others the last token of the window before stands before it, and the last window is full, so that its
    tokens have more before them.

    Args:
        longest: ids of one sequence at most, the label of the last input among them.
        opening: the id that stands before the text.
    """
    inputs = longest - 1
    text = [opening, *ids]
    found = []
    for start in range(0, len(ids), inputs):
        end = min(start + inputs, len(ids))
        first = max(0, end - inputs) if start else 0
        found.append(Continuation(tuple(text[first : end + 1]), end - start, False))
    return found


@dataclass(frozen=True)
class Task:
    """One task with everything that decides its score but the model."""

    name: str
    """Its name."""
    role: str
    """domain or replay."""
    items: tuple[Item, ...]
    """Its questions, or its texts."""
    metric: str
    """What counts: accuracy or normalized_accuracy of questions, loss (nats per token) of texts."""
    num_fewshot: int
    """Solved examples before each question."""
    requests: tuple[Continuation, ...]
    """What the model scores, item by item."""
    requests_of_item: tuple[int, ...]
    """How many of them each item has."""
    file: Path
    """Where the items were read."""

    @property
    def identity(self) -> str:
        """Hash of what is scored, and how: scores of equal identities are comparable."""
        described = hashlib.sha256(f"{self.metric} {self.requests_of_item}".encode())
        for request in self.requests:
            described.update(np.array([request.scored, *request.ids], np.int64).tobytes())
        return described.hexdigest()

    @property
    def truncated(self) -> int:
        """Requests that lost their beginning, to fit into the model."""
        return sum(request.truncated for request in self.requests)

    @property
    def tokens(self) -> int:
        """Tokens of the model's input at one scoring, padding apart."""
        return sum(len(request.ids) - 1 for request in self.requests)


def task_row_faults(task: Task, rows: int) -> list[Fault]:
    """A task with ids that a model of so many embedding rows has none for: its tokenizer may have more."""
    largest = max((max(request.ids) for request in task.requests), default=-1)
    if largest < rows:
        return []
    rule = f"the model has {rows} embedding rows, too few for them."
    remedy = "Give it rows for them: `megatron-cpt convert extend HF_DIR OUTPUT --tokenizer HF_DIR`."
    return [Fault(f"task {task.name}: ids up to {largest}", rule, remedy)]


def open_tasks(name: str, settings: TaskSettings, tokenizer: Tokenizer, longest: int) -> list[Task]:
    """The tasks of one file: those that its lines name, and as `name` what names none.

    Args:
        longest: tokens of the model's input at most.
    Raises:
        BadInput: as read_items does, for examples that are not there, and for what the model cannot take.
    """
    path = Path(settings.path)
    shown = read_items(Path(settings.fewshot_file)) if settings.fewshot_file else None
    return [
        _task(task or name, items, items if shown is None else _examples_of(task, shown), settings, tokenizer, longest)
        for task, items in read_items(path).items()
    ]


def _examples_of(task: str, items: Mapping[str, list[Item]]) -> list[Item]:
    """The items of a file of examples that belong to a task: those of its name, else those without one."""
    return items.get(task) or items.get("") or []


def _task(
    name: str,
    items: Sequence[Item],
    examples: Sequence[Item],
    settings: TaskSettings,
    tokenizer: Tokenizer,
    longest: int,
) -> Task:
    kept, path = items[: settings.limit], Path(settings.path)
    bos = tokenizer.bos_for("auto")
    # A label stands one place behind its input: the last id of a text is never an input.
    if isinstance(kept[0], Text):
        if settings.num_fewshot or settings.metric:
            rule = "is a perplexity task: it has neither examples nor a choice of accuracy."
            raise BadInput(Fault(f"task {name} of {path}", rule, "Take `num_fewshot` and `metric` out."))
        opening = tokenizer.eod if bos is None else bos
        asked = [
            windows(ids.tolist(), longest + 1, opening)
            for ids in tokenizer.encode_batch([item.text for item in kept if isinstance(item, Text)])
        ]
        metric = "loss"
    else:
        asked = [
            continuations(question, tokenizer, settings.delimiter, longest + 1, bos)
            for question in _with_examples(name, kept, examples, settings)
        ]
        metric = settings.metric or usual_metric(name)
    requests = tuple(request for of_item in asked for request in of_item)
    return Task(
        name, settings.role, tuple(kept), metric, settings.num_fewshot, requests, tuple(map(len, asked)), path
    )  # fmt: skip


def _with_examples(
    name: str, items: Sequence[Item], examples: Sequence[Item], settings: TaskSettings
) -> list[Question]:
    """The questions behind the first `num_fewshot` examples that are not the question itself."""
    asked = []
    for item in items:
        assert isinstance(item, Question), "read_items keeps kinds apart"
        # One more than needed: the question itself may be among the first.
        shown = [
            other for other in examples[: settings.num_fewshot + 1] if isinstance(other, Question) and other != item
        ]
        if len(shown) < settings.num_fewshot:
            rule = f"has {len(shown)} questions to show before others; {settings.num_fewshot} are asked for."
            where = settings.fewshot_file or settings.path
            remedy = "Lower `num_fewshot`, or give another `fewshot_file`."
            raise BadInput(Fault(f"task {name} of {where}", rule, remedy))
        asked.append(with_examples(item, shown[: settings.num_fewshot], settings.delimiter))
    return asked


Metric = Literal["accuracy", "normalized_accuracy"]

# The harness reports both accuracies of the others; the plain one alone of these (its task files, 0.4.13).
_PLAIN_ACCURACY = ("mmlu", "pubmedqa", "boolq", "winogrande", "copa", "race")

GROUPS: dict[str, tuple[str, ...]] = {
    # The curves of arXiv:2406.14833 (section 2): four medical tasks, ten of common sense and reading.
    "s1_medical": ("mmlu_medical_genetics", "medqa", "pubmedqa", "medmcqa"),
    "s1_general": (
        "arc_challenge", "arc_easy", "boolq", "copa", "hellaswag", "openbookqa", "piqa", "race", "sciq", "winogrande",
    ),
}  # fmt: skip
"""Groups of tasks that papers average, by name: a plain mean over the tasks."""


def usual_metric(task: str) -> Metric:
    """The accuracy that is reported of a task: per character of the choice, unless the task is known for the plain."""
    return "accuracy" if task.lower().startswith(_PLAIN_ACCURACY) else "normalized_accuracy"
