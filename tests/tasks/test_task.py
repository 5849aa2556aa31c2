"""Tasks from files: names, metrics, examples, identities."""

from pathlib import Path

import orjson
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import TaskSettings
from megatron_cpt.tasks.task_files import Task, open_tasks, usual_metric
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.workshop import Workshop


def question(number: int, **fields: object) -> dict[str, object]:
    return {"id": str(number), "question": f"the river ran {number}", "choices": ["home", "over"], "answer": 0} | fields


def open_lines(workshop: Workshop, path: Path, *lines: dict[str, object], **settings: object) -> list[Task]:
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return open_tasks("mine", TaskSettings(path=str(path), **settings), Tokenizer.load(workshop.hf), 64)


def test_lines_without_a_task_are_a_task_by_the_name_of_the_entry(workshop: Workshop, tmp_path: Path) -> None:
    tasks = open_lines(workshop, tmp_path / "f.jsonl", question(1), question(2, task="mmlu_anatomy"), question(3))
    assert [(task.name, len(task.items), task.metric) for task in tasks] == [
        ("mine", 2, "normalized_accuracy"),
        ("mmlu_anatomy", 1, "accuracy"),
    ]
    assert tasks[0].requests_of_item == (2, 2) and len(tasks[0].requests) == 4


def test_metrics_are_those_of_the_harness() -> None:
    plain = ["mmlu_med", "MMLU_anatomy", "pubmedqa", "boolq", "winogrande", "race", "copa"]
    normalized = ["arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa", "sciq", "medqa", "medmcqa"]
    assert {usual_metric(name) for name in plain} == {"accuracy"}
    assert {usual_metric(name) for name in normalized} == {"normalized_accuracy"}


def test_a_question_is_never_its_own_example(workshop: Workshop, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(workshop.hf)
    (task,) = open_lines(workshop, tmp_path / "f.jsonl", *map(question, range(4)), num_fewshot=2)
    shown = [tokenizer.decode(request.ids) for request in task.requests[::2]]
    assert [text.count("the river ran") for text in shown] == [3, 3, 3, 3]
    assert shown[1].startswith("the river ran 0 home\n\nthe river ran 2 home\n\nthe river ran 1")
    with pytest.raises(BadInput, match="has 3 questions to show"):
        open_lines(workshop, tmp_path / "f.jsonl", *map(question, range(4)), num_fewshot=4)


def test_examples_may_come_from_another_file(workshop: Workshop, tmp_path: Path) -> None:
    examples = tmp_path / "dev.jsonl"
    examples.write_bytes(orjson.dumps(question(7)) + b"\n" + orjson.dumps(question(8, task="other")))
    (task,) = open_lines(workshop, tmp_path / "f.jsonl", question(1), num_fewshot=1, fewshot_file=str(examples))
    assert Tokenizer.load(workshop.hf).decode(task.requests[0].ids).startswith("the river ran 7 home")


def test_what_is_scored_decides_the_identity(workshop: Workshop, tmp_path: Path) -> None:
    def identity(*lines: dict[str, object], **settings: object) -> str:
        return open_lines(workshop, tmp_path / "f.jsonl", *lines, **settings)[0].identity

    lines = [question(number) for number in range(3)]
    assert identity(*lines) == identity(*lines, role="domain")
    different = [
        identity(*lines),
        identity(*lines, limit=2),
        identity(*lines, num_fewshot=1),
        identity(*lines, metric="accuracy"),
        identity(*lines, delimiter=": "),
    ]
    assert len(set(different)) == len(different)


def test_a_perplexity_task_has_no_examples(workshop: Workshop, tmp_path: Path) -> None:
    (task,) = open_lines(workshop, tmp_path / "f.jsonl", {"text": "the river ran over old stones"})
    assert task.metric == "loss" and task.requests[0].ids[0] == 0  # opened by the end-of-text token
    with pytest.raises(BadInput, match="perplexity task"):
        open_lines(workshop, tmp_path / "f.jsonl", {"text": "the river"}, num_fewshot=1)
