"""lm-evaluation-harness's tasks: the Megatron model scores what the harness's own model of the folder scores."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from megatron_cpt.checkpoint.convert import load_model
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.evaluate.likelihood import log_likelihoods
from megatron_cpt.evaluate.lm_eval import MegatronLM, evaluate_lm_eval
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from tests.params import quick_among
from tests.ranks import Ranks
from tests.workshop import Workshop

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'")


TASKS = ["choices", "goes_on", "whole"]


def megatron(hf: Path) -> MegatronLM:
    """The Megatron model of a Hugging Face folder, on a divided world."""
    shape = read_shape(hf)
    score = partial(log_likelihoods, load_model(hf, shape, "fp32"), micro_batch_size=3, longest=shape.max_positions)
    return MegatronLM(score, hf, shape.max_positions)


def ours(hf: Path, folder: Path, layout: ParallelSettings, shots: int | None) -> dict[str, Any] | None:
    """Job: the harness's results with the Megatron model."""
    groups.init_model_parallel(layout)
    return evaluate_lm_eval(megatron(hf), TASKS, folder, shots, limit=None)


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


@pytest.mark.parametrize("shots", quick_among([0, 2], [0], [2]))
def test_scores_are_the_harness_own(one_rank: Ranks, workshop: Workshop, harness_folder: Path, shots: int) -> None:
    (found,) = one_rank.call(ours, hf=workshop.hf, folder=harness_folder, layout=ParallelSettings(), shots=shots)
    assert_same(found, theirs(workshop.hf, harness_folder, shots))


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("layout", [ParallelSettings(tensor=2), ParallelSettings(pipeline=2), ParallelSettings()])
def test_on_every_layout(two_ranks: Ranks, workshop: Workshop, harness_folder: Path, layout: ParallelSettings) -> None:
    found, _ = two_ranks.call(ours, hf=workshop.hf, folder=harness_folder, layout=layout, shots=0)
    assert_same(found, theirs(workshop.hf, harness_folder, 0))


def refused(hf: Path, folder: Path, name: str) -> str:
    """Job: what is said of a task that cannot be scored."""
    groups.init_model_parallel(ParallelSettings())
    model = megatron(hf)
    with pytest.raises(BadInput) as error:
        evaluate_lm_eval(model, [name], folder, None, None)
    return str(error.value)


@pytest.mark.ci
def test_what_cannot_be_scored_is_refused(one_rank: Ranks, workshop: Workshop, harness_folder: Path) -> None:
    goes_on = (harness_folder / "goes_on.yaml").read_text().split("metric_list")[0]
    writes = goes_on.replace("task: goes_on", "task: writes").replace("loglikelihood", "generate_until")
    (harness_folder / "writes.yaml").write_text(writes + "metric_list: [{metric: exact_match}]\n")
    assert "wants text to be written" in one_rank.call(refused, hf=workshop.hf, folder=harness_folder, name="writes")[0]
    assert "cannot be opened" in one_rank.call(refused, hf=workshop.hf, folder=harness_folder, name="no_such_task")[0]


@pytest.mark.ci
def test_the_command_writes_both_kinds_of_tasks(workshop: Workshop, harness_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "tasks.json"
    words = [str(workshop.hf), "--tasks", str(workshop.folder / "questions.jsonl"), "--lm-eval", "choices"]
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "evaluate", *words]
    command += ["--include", str(harness_folder), "--output", str(output), "--nproc", "2", "--pipeline", "2"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    written = orjson.loads(output.read_bytes())
    assert set(written["tasks"]) == {"first", "second"}
    assert 0 <= written["harness"]["results"]["choices"]["acc,none"] <= 1
    assert len(written["harness"]["samples"]["choices"]) == 8
    assert "choices" in done.stdout and f"tasks: {output}" in done.stdout
