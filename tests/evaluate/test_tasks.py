"""Downstream tasks: transformers' own log-likelihoods, under every layout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from megatron_cpt.checkpoint.convert import load_model
from megatron_cpt.config.schema import ParallelSettings, TaskSettings
from megatron_cpt.evaluate.scoring import (
    Accuracy,
    TaskScore,
    TextScore,
    counted_accuracies,
    group_accuracies,
    mean_accuracy,
    score_choices,
    score_tasks,
)
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.tasks.task_files import Question, Task, open_tasks, read_items
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.ranks import Ranks
from tests.texts import SHARED
from tests.workshop import GENERAL, Workshop


def open_file(hf: Path, settings: TaskSettings) -> list[Task]:
    """The tasks of a file; those without a name of their own are `questions`."""
    return open_tasks("questions", settings, Tokenizer.load(hf), read_shape(hf).max_positions)


def score_file(hf: Path, settings: TaskSettings, layout: ParallelSettings) -> dict[str, TaskScore]:
    """Job: the scores of a Hugging Face folder on a file, three choices at a time."""
    groups.init_model_parallel(layout)
    shape = read_shape(hf)
    model = load_model(hf, shape, "fp32")
    return score_tasks(model, open_file(hf, settings), shape.max_positions, 3)


def questions_of(path: Path, task: str = "", most: int | None = None) -> list[Question]:
    return [item for item in read_items(path)[task][:most] if isinstance(item, Question)]


def transformers_likelihoods(hf: Path, questions: list[Question], delimiter: str) -> list[list[float]]:
    """Log-likelihoods as transformers' tokenizer and model give them, one choice at a time."""
    tokenizer = AutoTokenizer.from_pretrained(hf)
    model = LlamaForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    found = []
    for question in questions:
        prompt = tokenizer.encode((question.prompt + delimiter).rstrip(" "))
        values = []
        for choice in question.choices:
            ids = torch.tensor(tokenizer.encode(question.prompt + delimiter + choice))
            inputs = ids[-(model.config.max_position_embeddings + 1) :]
            with torch.no_grad():
                logs = model(inputs[None, :-1]).logits[0].log_softmax(-1)
            picked = logs.gather(1, inputs[1:, None])[:, 0]
            values.append(picked[-(len(ids) - len(prompt)) :].double().sum().item())
        found.append(values)
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 questions of two tasks; the seventh is longer than the model's input."""
    words = GENERAL.split()
    lines = []
    for number in range(11):
        question = " ".join(words[number % 5 : number % 5 + 3 + number] * (12 if number == 6 else 1))
        choices = [
            " ".join(words[start : start + 1 + start % 4]) for start in range(number % 3, number % 3 + 2 + number % 3)
        ]
        lines.append(
            {"id": f"q{number}", "task": f"task {number % 2}", "question": question, "choices": choices, "answer": 1}
            | ({"context": "the long road"} if number == 3 else {})
        )
    path = tmp_path_factory.mktemp("tasks") / "questions.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)) + b"\n")
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of a perplexity task, below and beyond the model's input of 64 tokens."""
    words = GENERAL.split()
    path = tmp_path_factory.mktemp("tasks") / "texts.jsonl"
    path.write_bytes(b"".join(orjson.dumps({"text": " ".join(words * n)}) + b"\n" for n in (1, 3, 9)))
    return path


def likelihoods(scored: TaskScore) -> list[list[float]]:
    return [item["log_likelihoods"] for item in scored.items]


def assert_close(ours: list[list[float]], theirs: list[list[float]]) -> None:
    assert len(ours) == len(theirs) > 0
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-4)


def test_log_likelihoods_are_those_of_transformers(one_rank: Ranks, workshop: Workshop, file: Path) -> None:
    settings = TaskSettings(path=str(file))
    (scores,) = one_rank.call(score_file, hf=workshop.hf, settings=settings, layout=ParallelSettings())
    for name in ("task 0", "task 1"):
        assert_close(likelihoods(scores[name]), transformers_likelihoods(workshop.hf, questions_of(file, name), " "))
    assert [task.truncated > 0 for task in open_file(workshop.hf, settings)] == [True, False]


def test_examples_stand_before_the_question(one_rank: Ranks, workshop: Workshop, file: Path) -> None:
    settings = TaskSettings(path=str(file), num_fewshot=1, limit=2)
    (scores,) = one_rank.call(score_file, hf=workshop.hf, settings=settings, layout=ParallelSettings())
    first, second = questions_of(file, "task 1", 2)
    shown = [
        Question("a", f"{other.prompt} {other.choices[other.answer]}\n\n{asked.prompt}", asked.choices, asked.answer)
        for other, asked in ((second, first), (first, second))
    ]
    assert_close(likelihoods(scores["task 1"]), transformers_likelihoods(workshop.hf, shown, " "))


@pytest.mark.parametrize("layout", [ParallelSettings(tensor=2), ParallelSettings(pipeline=2), ParallelSettings()])
def test_every_layout_gives_the_same_on_every_rank(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, file: Path, texts: Path, layout: ParallelSettings
) -> None:
    for path in (file, texts):
        settings = TaskSettings(path=str(path))
        (alone,) = one_rank.call(score_file, hf=workshop.hf, settings=settings, layout=ParallelSettings())
        first, second = two_ranks.call(score_file, hf=workshop.hf, settings=settings, layout=layout)
        assert first == second
        for name, score in alone.items():
            if isinstance(score, TextScore):
                assert first[name].loss == pytest.approx(score.loss, abs=1e-6)
                continue
            assert_close(likelihoods(first[name]), likelihoods(score))
            assert first[name].accuracy == score.accuracy


def test_a_long_text_is_predicted_token_by_token_once(one_rank: Ranks, workshop: Workshop, texts: Path) -> None:
    settings = TaskSettings(path=str(texts))
    (scores,) = one_rank.call(score_file, hf=workshop.hf, settings=settings, layout=ParallelSettings())
    found = scores["questions"]
    model = LlamaForCausalLM.from_pretrained(workshop.hf, dtype=torch.float32).eval()
    tokenizer, longest = AutoTokenizer.from_pretrained(workshop.hf), model.config.max_position_embeddings
    nats, count, content = 0.0, 0, [orjson.loads(line)["text"] for line in texts.read_bytes().splitlines()]
    for text, item in zip(content, found.items, strict=True):
        ids = [tokenizer.eos_token_id, *tokenizer.encode(text)]
        for start in range(0, len(ids) - 1, longest):
            end = min(start + longest, len(ids) - 1)
            window = torch.tensor(ids[max(0, end - longest) if start else 0 : end + 1])
            with torch.no_grad():
                logs = model(window[None, :-1]).logits[0].log_softmax(-1)
            nats -= logs.gather(1, window[1:, None])[start - end :].double().sum().item()
        count += len(ids) - 1
        assert item["tokens"] == len(ids) - 1
    assert found.loss == pytest.approx(nats / count, abs=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / np.log(2) / sum(map(len, content)), abs=1e-5)
    assert found.word_perplexity == pytest.approx(np.exp(nats / sum(len(text.split()) for text in content)), rel=1e-4)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real evaluation sets and model are not here")
def test_a_real_model_on_real_questions(one_rank: Ranks) -> None:
    hf, path = SHARED / "model_stories260K/hf", SHARED / "eval_sets/arc_easy.jsonl"
    settings = TaskSettings(path=str(path), delimiter="\nAnswer: ", limit=12)
    (scores,) = one_rank.call(score_file, hf=hf, settings=settings, layout=ParallelSettings())
    expected = transformers_likelihoods(hf, questions_of(path, "arc_easy", 12), "\nAnswer: ")
    assert_close(likelihoods(scores["arc_easy"]), expected)


def test_accuracies_and_their_standard_errors_in_literal_numbers() -> None:
    choices = ("a", "four", "fourteen letters")
    questions = [Question(str(number), "q", choices, 1) for number in range(4)]
    values = [[-1.0, -2.0, -9.0], [-3.0, -2.0, -9.0], [-1.0, -9.0, -8.0], [-2.0, -2.0, -40.0]]
    found = score_choices(questions, [np.array(row) for row in values], "accuracy")
    # Plain: a, four, a, a (the first of two equal ones). Per character: four, four, the last, four.
    assert found.accuracy.value == 0.25 and found.accuracy.standard_error == pytest.approx(0.25)
    assert found.normalized_accuracy.value == 0.75 and found.normalized_accuracy.standard_error == pytest.approx(0.25)
    assert found.chance == pytest.approx(1 / 3)
    assert found.counted == found.accuracy and found.summary()["item_losses"] == [1, 0, 1, 1]
    other = score_choices(questions, [np.array(row) for row in values], "normalized_accuracy")
    assert other.counted == found.normalized_accuracy and other.summary()["item_losses"] == [0, 0, 1, 0]
    assert score_choices(questions[:1], [np.array(values[0])], "accuracy").accuracy.standard_error is None


def test_a_group_is_the_plain_mean_of_its_tasks() -> None:
    both = mean_accuracy([Accuracy(0.25, 0.03), Accuracy(0.75, 0.04)])
    assert both.value == 0.5 and both.standard_error == pytest.approx(0.025)
    assert mean_accuracy([Accuracy(0.25, 0.03), Accuracy(0.75, None)]).standard_error is None
    scores = {"a": score_choices([Question("1", "q", ("x", "y"), 0)], [np.array([0.0, -1.0])], "accuracy")}
    assert group_accuracies({"g": ["a"], "h": ["a", "b"]}, counted_accuracies(scores)) == {"g": Accuracy(1.0, None)}


@pytest.mark.slow
def test_the_command_scores_a_folder_on_two_ranks(workshop: Workshop, file: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "tasks.json"
    words = [str(workshop.hf), "--tasks", str(file), str(texts), "--output", str(output), "--nproc", "2"]
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "evaluate", *words, "--tensor", "2"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    written = orjson.loads(output.read_bytes())
    assert written["tasks"]["task 0"]["questions"] == 6 and written["settings"]["delimiter"] == " "
    assert written["tasks"]["texts"]["texts"] == 3
    assert "task 1" in done.stdout and f"tasks: {output}" in done.stdout
    ours = [item["log_likelihoods"] for item in written["tasks"]["task 1"]["items"]]
    assert_close(ours, transformers_likelihoods(workshop.hf, questions_of(file, "task 1"), " "))
