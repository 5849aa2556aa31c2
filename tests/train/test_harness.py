"""lm-evaluation-harness's tasks at marks: its own scores, on every layout, and training left as it was."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_cpt.checkpoint.convert import load_model
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.evaluate.likelihood import log_likelihoods
from megatron_cpt.evaluate.lm_eval import MegatronLM, evaluate_lm_eval
from megatron_cpt.families.shape import read_shape
from megatron_cpt.gap.curves import NATS, WRONG, task_curves
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.report.page import report_page
from megatron_cpt.report.read import read_runs
from megatron_cpt.runs.records import Record
from megatron_cpt.train.run import open_lm_eval_tasks
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import Workshop

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'")


DROPOUT = ("model.dropout=0.1", "training.tokens=8 steps", "checkpoint.save_interval=8 steps")


def section(workshop: Workshop, folder: Path) -> dict[str, Any]:
    """`tasks`: questions with two examples by name, others by their files, beside a file of our own."""
    return {
        "files": {"questions": workshop.tasks["files"]["questions"]},
        "lm_eval": {
            "asked": {"tasks": ["choices"], "include": str(folder), "num_fewshot": 2, "role": "domain"},
            "told": {"tasks": [str(folder / f"{name}.yaml") for name in ("goes_on", "whole")], "limit": 5},
        },
        "groups": {"both": ["choices", "first"]},
        "eval_interval": {"at": ["5 steps"]},
        "micro_batch_size": 3,
    }


@pytest.fixture(scope="module")
def run(one_rank: Ranks, workshop: Workshop, harness_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps on one rank, tasks scored at steps 0, 5 and 8."""
    run = tmp_path_factory.mktemp("marks") / "run"
    one_rank.call(train, path=workshop.write_config(run, tasks=section(workshop, harness_folder)), overrides=DROPOUT)
    return run


def tasks_of(run: Path) -> list[Record]:
    return [record for record in records_of(run, "task") if "harness" in record]


def of_checkpoint(checkpoint: Path, folder: Path, names: list[str], shots: int | None, limit: int | None) -> Any:
    """Job: what `evaluate --lm-eval` says of a checkpoint."""
    groups.init_model_parallel(ParallelSettings())
    shape = read_shape(checkpoint / "hf")
    model = load_model(checkpoint, shape, "fp32")
    score = partial(log_likelihoods, model, micro_batch_size=3, longest=shape.max_positions)
    results = evaluate_lm_eval(MegatronLM(score, checkpoint / "hf", shape.max_positions), names, folder, shots, limit)
    return results and results["results"]


@pytest.mark.ci
def test_training_is_as_without_them(one_rank: Ranks, workshop: Workshop, run: Path, tmp_path: Path) -> None:
    never = tmp_path / "never"
    one_rank.call(train, path=workshop.write_config(never), overrides=DROPOUT)
    assert records_of(run, "train") == records_of(never, "train") != []
    assert [(record["step"], record["task"]) for record in tasks_of(run)] == [
        (step, task) for step in (0, 5, 8) for task in ("choices", "goes_on", "whole")
    ]


@pytest.mark.ci
def test_scores_are_those_of_the_command(one_rank: Ranks, run: Path, harness_folder: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000008"
    (asked,) = one_rank.call(
        of_checkpoint, checkpoint=checkpoint, folder=harness_folder, names=["choices"], shots=2, limit=None
    )
    (told,) = one_rank.call(
        of_checkpoint, checkpoint=checkpoint, folder=harness_folder, names=["goes_on", "whole"], shots=None, limit=5
    )
    choices, goes_on, whole = tasks_of(run)[-3:]
    assert (choices["metric"], choices["num_fewshot"], choices["role"]) == ("normalized_accuracy", 2, "domain")
    assert choices["score"] == asked["choices"]["acc_norm,none"]
    assert choices["harness"]["accuracy"] == asked["choices"]["acc,none"]
    assert choices["standard_error"] == pytest.approx(asked["choices"]["acc_norm_stderr,none"], rel=1e-12)
    assert (choices["chance"], choices["item_weights"]) == (pytest.approx(1 / 3), [1] * 8)
    assert (goes_on["metric"], goes_on["role"], len(goes_on["item_losses"])) == ("accuracy", "general", 5)
    assert goes_on["score"] == told["goes_on"]["acc,none"]
    assert goes_on["harness"]["perplexity"] == pytest.approx(told["goes_on"]["perplexity,none"], rel=1e-6)
    assert whole["metric"] == "loss" and whole["standard_error"] is None
    assert whole["harness"]["word_perplexity"] == pytest.approx(told["whole"]["word_perplexity,none"], rel=1e-6)
    assert whole["score"] == pytest.approx(sum(whole["item_losses"]) / sum(whole["item_weights"]))


def test_groups_tensorboard_gaps_and_report(run: Path) -> None:
    scores = {(record["step"], record["task"]): record["score"] for record in records_of(run, "task")}
    means = records_of(run, "task_group")
    assert column(means, "score") == [np.mean([scores[step, "choices"], scores[step, "first"]]) for step in (0, 5, 8)]
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = {
        "task/choices/normalized_accuracy",
        "task/goes_on/perplexity",
        "task/whole/loss",
        "task/whole/bits_per_byte",
    }
    assert tags <= set(board.Tags()["scalars"])
    curves = {curve.name: curve for curve in task_curves(records_of(run))}
    assert [curves[name].unit for name in ("choices", "goes_on", "whole")] == [WRONG, WRONG, NATS]
    assert curves["choices"].losses.tolist() == [1 - scores[step, "choices"] for step in (0, 5, 8)]
    page = report_page(read_runs([run]))
    assert "choices" in page and "Downstream tasks" in page and "whole" in page


@pytest.mark.slow
def test_tensor_ranks_give_the_same(
    two_ranks: Ranks, workshop: Workshop, run: Path, harness_folder: Path, tmp_path: Path
) -> None:
    path = workshop.write_config(tmp_path / "two", tasks=section(workshop, harness_folder))
    shape = ("model.dropout=0", "parallel.tensor=2", "training.tokens=8 steps", "tasks.eval_interval.end=false")
    two_ranks.call(train, path=path, overrides=shape)
    ours, theirs = tasks_of(tmp_path / "two"), tasks_of(run)
    assert column(ours, "step") == [0] * 3 + [5] * 3
    for name in ("task", "metric", "num_fewshot", "identity", "item_weights"):
        assert column(ours, name) == column(theirs, name)[:6], name
    for left, right in zip(ours[:3], theirs[:3], strict=True):
        np.testing.assert_allclose(left["item_losses"], right["item_losses"], rtol=1e-5)


def refusal(path: Path) -> str:
    """Job: the message of a run that is refused once its tasks are opened."""
    config = load_config(path)
    with pytest.raises(BadInput) as error:
        groups.init_model_parallel(ParallelSettings())
        plan = make_plan(config, 1)
        open_lm_eval_tasks(config, plan.inputs.tasks, 64)
    return str(error.value)


def test_what_cannot_be_followed_is_refused(
    one_rank: Ranks, workshop: Workshop, harness_folder: Path, tmp_path: Path
) -> None:
    choices = (harness_folder / "choices.yaml").read_text().split("metric_list")[0]
    (tmp_path / "other.yaml").write_text(
        choices.replace("task: choices", "task: first") + "metric_list: [{metric: acc}]"
    )
    (tmp_path / "mcc.yaml").write_text(choices.replace("task: choices", "task: mcc") + "metric_list: [{metric: mcc}]")
    (tmp_path / "bad.yaml").write_text(
        choices.replace("task: choices", "task: bad").replace("{{question}}", "{{nothing.x if answer else question}}")
        + "metric_list: [{metric: acc}]"
    )

    def said(name: str) -> str:
        tasks = section(workshop, harness_folder)
        tasks["lm_eval"]["asked"] = {"tasks": [str(tmp_path / f"{name}.yaml")]}
        return str(one_rank.call(refusal, path=workshop.write_config(tmp_path / f"run-{name}", tasks=tasks))[0])

    assert "tasks.lm_eval.asked: holds task 'first', which tasks.files.questions holds too" in said("other")
    assert "hold no accuracy that is a mean over questions" in said("mcc")
    assert "cannot be asked or scored" in said("bad")
    (tmp_path / "good.yaml").write_text(choices.replace("task: choices", "task: good") + "metric_list: [{metric: acc}]")
    assert "choices: there is no such task with an accuracy" in said("good")
