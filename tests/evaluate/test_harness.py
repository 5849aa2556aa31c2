"""lm-evaluation-harness's tasks: the Megatron model scores what the harness's own model of the folder scores."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from megatron_cpt.checkpoint.hf_convert import load_model
from megatron_cpt.commands.evaluate import OFFLINE
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.evaluate.harness import MegatronLM, evaluate_harness
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.ranks import Ranks
from tests.workshop import GENERAL, Workshop

TASKS = ["choices", "goes_on", "whole"]
SETTINGS = {
    "choices": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\n"
    "doc_to_target: answer\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "goes_on": "output_type: loglikelihood\ndoc_to_text: '{{question}}'\ndoc_to_target: ' {{choices[0]}}'\n"
    "metric_list: [{metric: perplexity}, {metric: acc}]\n",
    "whole": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{question}}'\n"
    "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three harness tasks over one file of questions; one is longer than the model's input of 64 tokens."""
    folder = tmp_path_factory.mktemp("harness")
    words = GENERAL.split()
    lines = [
        {"question": " ".join(words * (9 if number == 4 else 1))[: 40 + 800 * (number == 4) + 3 * number],
         "choices": [" ".join(words[n : n + 2 + number % 3]) for n in (0, 5, 9)], "answer": number % 3}
        for number in range(8)
    ]  # fmt: skip
    data = folder / "questions.jsonl"
    data.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    for name, settings in SETTINGS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{settings}")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def ours(hf: Path, folder: Path, layout: ParallelSettings, shots: int | None) -> dict[str, Any] | None:
    """Job: the harness's results with the Megatron model."""
    groups.divide_world(layout)
    shape = read_shape(hf)
    model = MegatronLM(load_model(hf, shape, "fp32"), hf, shape.longest_sequence, micro_batch_size=3)
    return evaluate_harness(model, TASKS, folder, shots, limit=None)


def theirs(hf: Path, folder: Path, shots: int | None) -> dict[str, Any]:
    """The harness's results with its own model of a Hugging Face folder."""
    results = simple_evaluate(
        "hf", model_args={"pretrained": str(hf), "dtype": "float32", "device": "cpu"}, tasks=list(TASKS),
        num_fewshot=shots, task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    assert results is not None
    return dict(results)


def assert_same(found: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    assert found is not None
    for task in TASKS:
        for left, right in zip(found["samples"][task], expected["samples"][task], strict=True):
            assert left["arguments"] == right["arguments"]
            for (ours,), (theirs,) in zip(left["resps"], right["resps"], strict=True):
                pairs = zip(ours, theirs, strict=True) if isinstance(ours, list | tuple) else [(ours, theirs)]
                for value, wanted in pairs:
                    assert float(value) == pytest.approx(float(wanted), abs=1e-4)
        for name, value in expected["results"][task].items():
            if isinstance(value, float) and "stderr" not in name:
                assert found["results"][task][name] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("shots", [0, 2])
def test_scores_are_the_harness_own(one_rank: Ranks, workshop: Workshop, folder: Path, shots: int) -> None:
    (found,) = one_rank.call(ours, hf=workshop.hf, folder=folder, layout=ParallelSettings(), shots=shots)
    assert_same(found, theirs(workshop.hf, folder, shots))


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("layout", [ParallelSettings(tensor=2), ParallelSettings(pipeline=2), ParallelSettings()])
def test_on_every_layout(two_ranks: Ranks, workshop: Workshop, folder: Path, layout: ParallelSettings) -> None:
    found, _ = two_ranks.call(ours, hf=workshop.hf, folder=folder, layout=layout, shots=0)
    assert_same(found, theirs(workshop.hf, folder, 0))


def refused(hf: Path, folder: Path, name: str) -> str:
    """Job: what is said of a task that cannot be scored."""
    groups.divide_world(ParallelSettings())
    shape = read_shape(hf)
    model = MegatronLM(load_model(hf, shape, "fp32"), hf, shape.longest_sequence, micro_batch_size=3)
    with pytest.raises(BadInput) as error:
        evaluate_harness(model, [name], folder, None, None)
    return str(error.value)


def test_what_cannot_be_scored_is_refused(one_rank: Ranks, workshop: Workshop, folder: Path) -> None:
    goes_on = (folder / "goes_on.yaml").read_text().split("metric_list")[0]
    writes = goes_on.replace("task: goes_on", "task: writes").replace("loglikelihood", "generate_until")
    (folder / "writes.yaml").write_text(writes + "metric_list: [{metric: exact_match}]\n")
    assert "wants text to be written" in one_rank.call(refused, hf=workshop.hf, folder=folder, name="writes")[0]
    assert "cannot be opened" in one_rank.call(refused, hf=workshop.hf, folder=folder, name="no_such_task")[0]


def test_the_command_writes_both_kinds_of_tasks(workshop: Workshop, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "tasks.json"
    words = [str(workshop.hf), "--tasks", str(workshop.folder / "questions.jsonl"), "--harness", "choices"]
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "evaluate", *words]
    command += ["--include", str(folder), "--output", str(output), "--nproc", "2", "--pipeline", "2"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    written = orjson.loads(output.read_bytes())
    assert set(written["tasks"]) == {"first", "second"}
    assert 0 <= written["harness"]["results"]["choices"]["acc,none"] <= 1
    assert len(written["harness"]["samples"]["choices"]) == 8
    assert "choices" in done.stdout and f"tasks: {output}" in done.stdout
