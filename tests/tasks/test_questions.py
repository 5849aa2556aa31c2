"""Questions from files, and the ids they are scored on."""

from pathlib import Path

import orjson
import pytest

from megatron_cpt.commands import evaluate
from megatron_cpt.config.errors import BadInput
from megatron_cpt.tasks.task_files import Question, Text, continuations, read_items
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.workshop import Workshop

GOOD = {"id": "a", "task": "t", "question": "Q", "choices": ["x", "y"], "answer": 1}


def write(path: Path, *lines: object) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines))
    return path


def test_a_file_is_read_by_task_and_context_comes_before_the_question(tmp_path: Path) -> None:
    bare = {"question": "Q", "choices": ["x", "y"], "answer": 0}
    tasks = read_items(write(tmp_path / "f.jsonl", GOOD, {**GOOD, "id": "b", "context": "C"}, bare))
    assert [question.prompt for question in tasks["t"]] == ["Q", "C\nQ"]
    assert tasks[""] == [Question("3", "Q", ("x", "y"), 0)]


def test_every_line_that_is_no_question_is_named(tmp_path: Path) -> None:
    wrong = [{"answer": 2}, {"answer": True}, {"choices": ["x"]}, {"choices": ["x", ""]}, {"question": 5}, {"id": "a"}]
    lines = [GOOD, *({**GOOD, "id": str(n), **change} for n, change in enumerate(wrong)), b"{", [1], {"question": "Q"}]
    with pytest.raises(BadInput) as error:
        read_items(write(tmp_path / "f.jsonl", *lines))
    assert [fault.value.rsplit(" ", 1)[1] for fault in error.value.faults] == [str(n) for n in range(2, 11)]
    with pytest.raises(BadInput, match="no question"):
        read_items(write(tmp_path / "empty.jsonl"))
    with pytest.raises(BadInput, match="cannot be read"):
        read_items(tmp_path / "absent.jsonl")


def test_blanks_between_prompt_and_choice_count_to_the_choice(workshop: Workshop) -> None:
    tokenizer = Tokenizer.load(workshop.hf)
    question = Question("q", "the river ran", ("over old stones", "home"), 0)
    first, second = continuations(question, tokenizer, " ", 64, None)
    prompt = len(tokenizer.encode_batch(["the river ran"])[0])
    assert len(first.ids) - first.scored == len(second.ids) - second.scored == prompt
    assert tokenizer.decode(first.ids[prompt:]) == " over old stones"
    (opened, _) = continuations(question, tokenizer, " ", 64, 0)
    assert opened.ids == (0, *first.ids) and opened.scored == first.scored


def test_a_long_prompt_loses_its_beginning_and_a_long_choice_is_refused(workshop: Workshop) -> None:
    tokenizer = Tokenizer.load(workshop.hf)
    question = Question("q", "the river ran over old stones", ("home", "road"), 0)
    whole = continuations(question, tokenizer, " ", 64, None)[0]
    longest = whole.scored + 2
    cut = continuations(question, tokenizer, " ", longest, None)[0]
    assert cut.truncated and not whole.truncated
    assert cut.ids == whole.ids[-longest:] and cut.scored == whole.scored
    with pytest.raises(BadInput, match="choice 'home'"):
        continuations(question, tokenizer, " ", whole.scored, None)


def test_the_command_refuses_layouts_and_tasks_before_anything_starts(workshop: Workshop, tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", GOOD)
    with pytest.raises(BadInput, match="--tensor 2 --pipeline 1"):
        evaluate.main([str(workshop.hf), "--tasks", str(path), "--nproc", "3", "--tensor", "2"])
    with pytest.raises(BadInput, match="another file holds too"):
        evaluate.main([str(workshop.hf), "--tasks", str(path), str(write(tmp_path / "g.jsonl", GOOD))])


def test_texts_and_questions_are_told_apart(tmp_path: Path) -> None:
    assert read_items(write(tmp_path / "f.jsonl", {"text": "T", "task": "t"})) == {"t": [Text("1", "T")]}
    with pytest.raises(BadInput, match="both questions and texts"):
        read_items(write(tmp_path / "g.jsonl", GOOD, {"text": "T", "task": "t"}))
    with pytest.raises(BadInput, match="text must be a text"):
        read_items(write(tmp_path / "h.jsonl", {"text": " "}))
