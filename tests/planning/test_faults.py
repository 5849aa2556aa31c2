"""faults.py: every fault of a run at once, each with value, rule and remedy."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_cpt.corpus.indexed import IndexedWriter
from megatron_cpt.corpus.manifest import Manifest, write_manifest
from tests.planning.small_run import VOCABULARY, faults_of, settings, write_dataset, write_model


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    return settings(tmp_path)


def change_shape(sections: dict[str, Any], **changes: Any) -> None:
    path = Path(sections["model"]["hf"], "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_sound_run_has_none(sections: dict[str, Any]) -> None:
    assert faults_of(sections) == []
    sections["parallel"] = {"tensor": 2, "pipeline": 2}
    assert faults_of(sections, world_size=8) == []


def test_all_faults_are_told_at_once(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["model"]["hf"] = str(tmp_path / "nowhere")
    sections["data"]["sources"]["law"]["paths"] = [str(tmp_path / "gone"), str(tmp_path / "lost*")]
    sections["training"]["micro_batch_size"] = 3
    found = faults_of(sections)
    assert len(found) == 4
    assert found[0].startswith("training.global_batch_size = 8: ")
    assert found[1].startswith(f"model.hf = {tmp_path}/nowhere: there is no such folder.")
    assert found[2].startswith(f"data.sources.law.paths: {tmp_path}/gone")
    assert found[3].startswith(f"data.sources.law.paths: {tmp_path}/lost*: matches no dataset.")


def test_a_sequence_longer_than_the_model_was_made_for(sections: dict[str, Any]) -> None:
    change_shape(sections, model_type="mistral", sliding_window=8, max_position_embeddings=32)
    assert faults_of(sections) == []
    change_shape(sections, model_type="mistral", sliding_window=8, max_position_embeddings=31)
    assert faults_of(sections) == [
        "data.sequence_length = 32: the model was made for at most 31 tokens (max_position_embeddings). "
        "Use 31 or fewer, or give it positions for more with `model.rope`."
    ]


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 8.0},
        {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.0],
            "long_factor": [1.0, 4.0],
            "original_max_position_embeddings": 16,
        },
    ],
)
def test_documents_in_a_sequence_of_a_model_whose_positions_depend_on_its_length(
    sections: dict[str, Any], scaling: dict[str, Any]
) -> None:
    change_shape(
        sections, rope_scaling=scaling, max_position_embeddings=16 if scaling["rope_type"] == "dynamic" else 64
    )
    assert faults_of(sections) == []
    sections["data"]["attention"] = "within_documents"
    [fault] = faults_of(sections)
    assert fault.startswith("data.sequence_length = 32: beyond 16 tokens the positions of this model depend on the len")
    assert fault.endswith("Use 16 or fewer, or set data.attention to across_documents.")
    sections["data"]["sequence_length"] = 16
    assert faults_of(sections) == []


def test_experts_that_tensor_parallel_ranks_would_share(sections: dict[str, Any]) -> None:
    experts = {"num_local_experts": 3, "router_aux_loss_coef": 0.0}
    change_shape(sections, model_type="mixtral", **experts)
    assert faults_of(sections) == []
    sections["parallel"] = {"tensor": 2}
    [fault] = faults_of(sections, world_size=2)
    assert fault.startswith("parallel.tensor = 2: Megatron-Core trains experts with tensor parallelism only where")
    sections["parallel"] = {"tensor": 2, "sequence": True}
    assert faults_of(sections, world_size=2) == []


def test_a_folder_without_a_tokenizer(sections: dict[str, Any]) -> None:
    Path(sections["model"]["hf"], "tokenizer.json").unlink()
    [fault] = faults_of(sections)
    assert "is not a tokenizer folder" in fault


def test_a_dataset_of_another_tokenizer(sections: dict[str, Any], tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", words="v")
    write_dataset(tmp_path / "law", 10_000, other)
    [fault] = faults_of(sections)
    assert fault == (
        f"data.sources.law: tokenized with {other}: the tokenizer of model.hf = {tmp_path}/model is another one, "
        f"so the ids mean other text. Prepare the dataset again with `--tokenizer {tmp_path}/model`, or name the "
        "model that belongs to it."
    )


def test_ids_that_the_model_has_no_row_for(sections: dict[str, Any]) -> None:
    change_shape(sections, vocab_size=60)
    found = faults_of(sections)
    assert len(found) == 4
    assert found[0].startswith("data.sources.law: ids up to 63: model.hf = ")
    assert "has 60 embedding rows, too few for them. Prepare the dataset again: its manifest does not say" in found[0]


def test_the_ids_in_the_data_decide_not_those_of_the_tokenizer(sections: dict[str, Any], tmp_path: Path) -> None:
    change_shape(sections, vocab_size=60)
    for step, prefix in enumerate(("law", "web", "law.validation", "web.validation"), start=1):
        with IndexedWriter(tmp_path / prefix, "uint16") as writer:
            writer.add(step * np.arange(2000) % (60 if prefix != "web" else 62))
        known = {"vocabulary_size": VOCABULARY, "largest_id": writer.largest_id}
        hashes = {"data_sha256": writer.data_sha256, "index_sha256": writer.index_sha256}
        write_manifest(tmp_path / prefix, Manifest(documents=1, tokens=2000, dtype="uint16", **known, **hashes))
    sections["training"]["tokens"] = "4 steps"
    [fault] = faults_of(sections)
    assert fault.startswith("data.sources.web: ids up to 60: model.hf = ")
    # One that was made elsewhere is described at its first use, and its ids are counted.
    (tmp_path / "web.manifest.json").unlink()
    [fault] = faults_of(sections)
    assert fault.startswith("data.sources.web: ids up to 60: model.hf = ")


def test_a_dataset_made_elsewhere_is_accepted(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["data"]["sources"]["law"]["paths"] = [write_dataset(tmp_path / "foreign", 10_000, None)]
    assert faults_of(sections) == []


def test_sequences_longer_than_the_model(sections: dict[str, Any]) -> None:
    sections["data"]["sequence_length"] = 256
    found = faults_of(sections)
    assert found == [
        "data.sequence_length = 256: the model was made for at most 128 tokens (max_position_embeddings). "
        "Use 128 or fewer, or give it positions for more with `model.rope`."
    ]


@pytest.mark.parametrize(("tokens", "found"), [(0, "is empty"), (32, "has 32 tokens")])
def test_validation_sets_without_a_sequence(sections: dict[str, Any], tmp_path: Path, tokens: int, found: str) -> None:
    sections["validation"]["sets"]["law"]["paths"] = [write_dataset(tmp_path / "few", tokens, None)]
    [fault] = faults_of(sections)
    assert fault.startswith(f"validation.sets.law: {found}: a validation set is at least one sequence of 32 tokens")
    write_dataset(tmp_path / "few", 33, None)
    Path(tmp_path / "few.manifest.json").unlink(missing_ok=True)
    assert faults_of(sections) == []


def test_a_validation_set_that_is_trained_on(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["validation"]["sets"]["law"]["paths"] = [str(tmp_path / "model" / ".." / "law")]
    [fault] = faults_of(sections)
    assert "data.sources.law trains on 1 of its documents" in fault
    assert "PREFIX.validation" in fault


def test_model_parts_that_ranks_cannot_share(sections: dict[str, Any]) -> None:
    sections["parallel"] = {"tensor": 3, "pipeline": 3}
    assert faults_of(sections, world_size=9) == [
        "parallel.tensor = 3: the model's 4 attention heads cannot be divided evenly among 3 ranks. Use 1 or 2.",
        "parallel.tensor = 3: the model's 2 key-value heads cannot be divided evenly among 3 ranks. Use 1 or 2.",
        "parallel.tensor = 3: the model's 32 units of the MLP cannot be divided evenly among 3 ranks. Use 1 or 2.",
        "parallel.pipeline = 3: the model's 2 layers cannot be divided evenly among 3 stages. Use 1 or 2.",
    ]


def test_ranks_that_make_no_copies_of_the_model(sections: dict[str, Any]) -> None:
    sections["parallel"] = {"tensor": 2}
    [fault] = faults_of(sections, world_size=3)
    assert fault.startswith("3 ranks: ")


def test_a_source_read_too_often(sections: dict[str, Any]) -> None:
    sections["data"]["sources"]["law"]["max_epochs"] = 1.5
    [fault] = faults_of(sections)
    assert fault.startswith(
        "data.sources.law.max_epochs = 1.5: this run reads 19,200 tokens of a source of 10,000, 1.92 epochs. "
        "Train on at most 19,968 tokens;"
    )


def test_weights_that_make_no_shares_are_told_once(sections: dict[str, Any]) -> None:
    sections["data"]["sources"]["web"]["weight"] = 0
    [fault] = faults_of(sections)
    assert fault.startswith("data.replay_ratio = 0.25: ")


def test_harness_tasks_that_cannot_be_asked(
    sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        "tasks": ["arc_easy", f"{tmp_path}/no.yaml"],
        "include": f"{tmp_path}/no",
        "eval_interval": {"log_spaced": "often"},
    }
    sections["tasks"] = {"lm_eval": {"exams": asked, "none": {"tasks": []}}, "groups": {"mean": ["arc_easy"]}}
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    found = faults_of(sections)
    assert [fault.split(":")[0] for fault in found] == [
        "tasks.lm_eval.exams.eval_interval.log_spaced = 'often'", "tasks.lm_eval.none.tasks is empty", "tasks.lm_eval",
        f"tasks.lm_eval.exams.include = {tmp_path}/no", "tasks.lm_eval.exams.tasks",
    ]  # fmt: skip
    assert found[2].endswith("which is not installed. Install it: pip install 'megatron-cpt[eval]'.")


def test_tasks_that_cannot_be_asked(sections: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"task": "mine", "text": "w2"}))
    (tmp_path / "broken.jsonl").write_text('{"question": 1}')
    paths = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("a", "b", "broken", "gone")}
    sections["tasks"] = {"files": {"a": paths["a"]}}
    assert faults_of(sections) == []
    sections["tasks"] = {"files": paths, "groups": {"s1_medical": [], "none": []}}
    found = faults_of(sections)
    assert len(found) == 3
    assert found[0].startswith(f"tasks.files.broken: {tmp_path}/broken.jsonl, line 1")
    assert found[1].startswith(f"tasks.files.gone: {tmp_path}/gone.jsonl: cannot be read")
    assert found[2].startswith("tasks.files.b: holds task 'mine', which tasks.files.a holds too")
    sections["tasks"] = {"files": {"a": paths["a"]}, "groups": {"s1_medical": [], "none": [], "mine": ["other"]}}
    found = faults_of(sections)
    assert [fault.split(":")[0] for fault in found] == [
        "tasks.groups.s1_medical", "tasks.groups.none is empty", "tasks.groups.mine", "tasks.groups.mine",
    ]  # fmt: skip
    assert "mmlu_medical_genetics, medqa, pubmedqa, medmcqa: no multiple-choice task" in found[0]


def test_a_rate_that_is_no_rate_and_a_missing_library_are_refused(
    sections: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # where nothing is installed, and an earlier run has left wandb/
    for package in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    (tmp_path / "wandb").mkdir()
    sections["schedule"]["peak_lr"] = 1e5
    sections["run"] |= {"wandb_project": "x", "mlflow_experiment": "x"}
    assert {fault.partition(":")[0] for fault in faults_of(sections)} == {
        "schedule.peak_lr = 100000",
        "run.wandb_project",
        "run.mlflow_experiment",
    }
