"""What a report reads from run folders."""

from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.report.read import read_runs, short_names, training_history
from tests.report.synthetic import write_run


def test_a_run_is_read_whole(tmp_path: Path):
    (run,) = read_runs([write_run(tmp_path / "naive", mitigated=False)])
    assert run.name == "naive"
    assert [curve.name for curve, _ in run.validation] == ["general", "code"]
    assert run.training.tokens[-1] == 256 * 4096
    assert run.status is not None and run.status.state == "done"
    assert run.config is not None and "seed: 1234" in run.config
    assert run.plan is None


def test_every_folder_without_records_is_named_at_once(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput) as error:
        read_runs([tmp_path / "empty", tmp_path / "absent", write_run(tmp_path / "good", mitigated=True)])
    assert [Path(fault.value).name for fault in error.value.faults] == ["empty", "absent"]
    assert all("records.jsonl" in fault.remedy for fault in error.value.faults)


def test_a_run_given_twice_is_read_once(tmp_path: Path):
    folder = write_run(tmp_path / "naive", mitigated=False)
    assert len(read_runs([folder, folder / ".." / "naive"])) == 1


def test_names_are_the_shortest_that_differ():
    assert short_names([Path("/runs/a"), Path("/runs/b")]) == ["a", "b"]
    assert short_names([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert short_names([Path("/runs/a")]) == ["a"]


def test_what_a_record_lacks_is_not_a_number_never_0():
    records = [
        {"kind": "train", "tokens": 10, "loss": 4.0, "source_tokens": {"a": 10}, "source_losses": {"a": None}},
        {"kind": "train", "tokens": 20, "loss": None, "source_tokens": {"a": 12, "b": 8}},
    ]
    history = training_history(records)
    assert list(history.sources) == ["a", "b"]
    assert np.isnan(history.losses).tolist() == [False, True]
    assert np.isnan(history.learning_rates).all()
    assert np.isnan(history.sources["a"].losses).all()
    assert np.isnan(history.sources["b"].tokens).tolist() == [True, False]


def test_damaged_files_are_told(tmp_path: Path):
    with pytest.raises(IntegrityFault, match="tokens"):
        training_history([{"kind": "train", "loss": 1.0}])
    folder = write_run(tmp_path / "naive", mitigated=False)
    (folder / "plan.json").write_text("{")
    with pytest.raises(IntegrityFault, match="not JSON"):
        read_runs([folder])
