"""A task as a run asks it: items, what the model is given of them, and which metric counts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import TaskSettings
from megatron_cpt.tasks.benchmarks import usual_metric
from megatron_cpt.tasks.questions import Item, Question, Text, read_items
from megatron_cpt.tasks.requests import Continuation, continuations, windows, with_examples
from megatron_cpt.tokenizer.tokenize import Tokenizer


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
    shots: int
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
    shown = read_items(Path(settings.examples)) if settings.examples else None
    return [
        _task(task or name, items, items if shown is None else examples_of(task, shown), settings, tokenizer, longest)
        for task, items in read_items(path).items()
    ]


def examples_of(task: str, items: Mapping[str, list[Item]]) -> list[Item]:
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
        if settings.shots or settings.metric:
            rule = "is a perplexity task: it has neither examples nor a choice of accuracy."
            raise BadInput(Fault(f"task {name} of {path}", rule, "Take `shots` and `metric` out."))
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
        name, settings.role, tuple(kept), metric, settings.shots, requests, tuple(map(len, asked)), path
    )  # fmt: skip


def _with_examples(
    name: str, items: Sequence[Item], examples: Sequence[Item], settings: TaskSettings
) -> list[Question]:
    """The questions behind the first `shots` examples that are not the question itself."""
    asked = []
    for item in items:
        assert isinstance(item, Question), "read_items keeps kinds apart"
        # One more than needed: the question itself may be among the first.
        shown = [other for other in examples[: settings.shots + 1] if isinstance(other, Question) and other != item]
        if len(shown) < settings.shots:
            rule = f"has {len(shown)} questions to show before others; {settings.shots} are asked for."
            where = settings.examples or settings.path
            raise BadInput(Fault(f"task {name} of {where}", rule, "Lower `shots`, or give other `examples`."))
        asked.append(with_examples(item, shown[: settings.shots], settings.delimiter))
    return asked
