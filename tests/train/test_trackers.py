"""MLflow beside TensorBoard: the same scalars, one run over all resumes, and no fault of a server ends a run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.load import load_config
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.records import read_records
from megatron_cpt.train.trackers import Trackers
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop

STEPS = ("validation.sets={}", "schedule.kind=constant", "schedule.warmup=null", "run.mlflow_experiment=tests")
SERVER = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, with a local store in SQLite, which needs SQLAlchemy."""
    for name, value in SERVER.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("sqlalchemy", reason="optional: pip install mlflow")
    return pytest.importorskip("mlflow", reason="optional: pip install mlflow")


def train_into(path: Path, overrides: tuple[str, ...], store: str) -> int:
    """Job: a run that shows its scalars in a store of MLflow."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SERVER | {"MLFLOW_TRACKING_URI": store}).items():
            patch.setenv(name, value)
        return train(path, (*STEPS, *overrides))


@pytest.mark.ci
def test_a_resumed_run_goes_on_in_one_mlflow_run(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path, mlflow: Any
) -> None:
    run, store = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    path = workshop.write_config(run, checkpoint={"save_interval": "2 steps"})
    for steps in (2, 4):
        one_rank.call(train_into, path=path, overrides=(f"training.tokens={steps} steps",), store=store)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("tests").experiment_id
    [found] = client.search_runs([experiment])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["training.global_batch_size"] == "8"
    losses = {record["step"]: record["loss"] for record in read_records(run / "records.jsonl") if "loss" in record}
    shown = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "lm loss")}
    assert shown == losses
    assert sorted(losses) == [1, 2, 3, 4]
    assert {"learning-rate", "grad-norm", "loss/source/domain"} < set(found.data.metrics)
    assert "MLflow" not in (run / "log.txt").read_text()


@pytest.mark.ci
def test_a_server_that_is_gone_ends_no_run(one_rank: Ranks, workshop: Workshop, tmp_path: Path, mlflow: Any) -> None:
    run = tmp_path / "run"
    path = workshop.write_config(run)
    words = ("training.tokens=2 steps",)
    assert one_rank.call(train_into, path=path, overrides=words, store="http://127.0.0.1:1") == [0]
    said = (run / "log.txt").read_text()
    assert said.count("warning: MLflow does not take the scalars (") == 1
    assert "warning: MLflow has not taken all scalars: records.jsonl and RUN/tensorboard have them" in said


def waits_for(condition: Callable[[], bool]) -> None:
    """Returns when a condition holds; fails the test after a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.ci
def test_what_a_server_missed_is_sent_when_it_is_back(
    workshop: Workshop, tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "later/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    config = load_config(workshop.write_config(tmp_path / "run"), STEPS)
    folder, said = RunFolder(config.run.folder), list[str]()
    folder.create()
    trackers = Trackers(config, folder, last_step=0, resumed=False, warn=said.append)
    (tmp_path / "later").write_text("no folder, so that there can be no store in it")
    trackers.add_scalar("loss/source/a,b", 1.5, 1)
    trackers.flush()
    waits_for(lambda: len(said) == 1)
    (tmp_path / "later").unlink()
    (tmp_path / "later").mkdir()
    trackers.add_scalar("loss/source/a,b", 0.5, 2)
    trackers.close(done=False)
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    [found] = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert found.info.status == "KILLED"
    history = client.get_metric_history(found.info.run_id, "loss/source/a_b")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.5), (2, 0.5)]
    [warning] = said
    assert warning.startswith("MLflow does not take the scalars (")
    assert warning.endswith("); training goes on")
