"""Multiple-choice tasks: transformers' own log-likelihoods, under every layout."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from megatron_cpt.checkpoint.hf_convert import load_model
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.corpus.tokenize import Tokenizer
from megatron_cpt.evaluate.questions import Question, read_questions
from megatron_cpt.evaluate.tasks import TaskScore, score, score_tasks
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.ranks import Ranks
from tests.workshop import GENERAL, Workshop

SHARED = Path(os.environ.get("MEGATRON_CPT_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def score_file(
    hf: Path, file: Path, layout: ParallelSettings, delimiter: str = " ", most: int | None = None
) -> dict[str, TaskScore]:
    """Job: the scores of a Hugging Face folder on a file, three choices at a time."""
    groups.divide_world(layout)
    shape = read_shape(hf)
    tasks = {name: questions[:most] for name, questions in read_questions(file).items()}
    model = load_model(hf, shape, "fp32")
    return score_tasks(model, tasks, Tokenizer.load(hf), shape.max_positions, 3, delimiter)


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


def likelihoods(scored: TaskScore) -> list[list[float]]:
    return [item["log_likelihoods"] for item in scored.items]


def assert_close(ours: list[list[float]], theirs: list[list[float]]) -> None:
    assert len(ours) == len(theirs) > 0
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-4)


def test_log_likelihoods_are_those_of_transformers(one_rank: Ranks, workshop: Workshop, file: Path) -> None:
    (scores,) = one_rank.call(score_file, hf=workshop.hf, file=file, layout=ParallelSettings())
    for name, questions in read_questions(file).items():
        assert_close(likelihoods(scores[name]), transformers_likelihoods(workshop.hf, questions, " "))
    assert [scores[name].truncated for name in ("task 0", "task 1")] == [1, 0]


@pytest.mark.parametrize("layout", [ParallelSettings(tensor=2), ParallelSettings(pipeline=2), ParallelSettings()])
def test_every_layout_gives_the_same_on_every_rank(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop, file: Path, layout: ParallelSettings
) -> None:
    (alone,) = one_rank.call(score_file, hf=workshop.hf, file=file, layout=ParallelSettings())
    first, second = two_ranks.call(score_file, hf=workshop.hf, file=file, layout=layout)
    assert first == second
    for name in alone:
        assert_close(likelihoods(first[name]), likelihoods(alone[name]))
        assert first[name].accuracy == alone[name].accuracy


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real evaluation sets and model are not here")
def test_a_real_model_on_real_questions(one_rank: Ranks) -> None:
    hf, path = SHARED / "model_stories260K/hf", SHARED / "eval_sets/arc_easy.jsonl"
    (scores,) = one_rank.call(score_file, hf=hf, file=path, layout=ParallelSettings(), delimiter="\nAnswer: ", most=12)
    questions = read_questions(path)["arc_easy"][:12]
    assert_close(likelihoods(scores["arc_easy"]), transformers_likelihoods(hf, questions, "\nAnswer: "))


def test_accuracies_and_their_standard_errors_in_literal_numbers() -> None:
    choices = ("a", "four", "fourteen letters")
    questions = [Question(str(number), "q", choices, 1) for number in range(4)]
    values = [[-1.0, -2.0, -9.0], [-3.0, -2.0, -9.0], [-1.0, -9.0, -8.0], [-2.0, -2.0, -40.0]]
    found = score(questions, [np.array(row) for row in values])
    # Plain: a, four, a, a (the first of two equal ones). Per character: four, four, the last, four.
    assert found.accuracy.value == 0.25 and found.accuracy.standard_error == pytest.approx(0.25)
    assert found.normalized_accuracy.value == 0.75 and found.normalized_accuracy.standard_error == pytest.approx(0.25)
    assert found.chance == pytest.approx(1 / 3)
    assert score(questions[:1], [np.array(values[0])]).accuracy.standard_error is None


def test_the_command_scores_a_folder_on_two_ranks(workshop: Workshop, file: Path, tmp_path: Path) -> None:
    output = tmp_path / "tasks.json"
    words = [str(workshop.hf), "--tasks", str(file), "--output", str(output), "--nproc", "2", "--tensor", "2"]
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "evaluate", *words]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    written = orjson.loads(output.read_bytes())
    assert written["tasks"]["task 0"]["questions"] == 6 and written["settings"]["delimiter"] == " "
    assert "task 1" in done.stdout and f"tasks: {output}" in done.stdout
    ours = [item["log_likelihoods"] for item in written["tasks"]["task 1"]["items"]]
    assert_close(ours, transformers_likelihoods(workshop.hf, read_questions(file)["task 1"], " "))
