"""`score --engine ray` on two nodes, one of which is lost: the bytes of one machine."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.selection import SelectedDataset, whole_dataset
from megatron_cpt.corpus.stream import DocumentChunk, dataset_chunks
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.quality.engines import OneMachine, RayTasks, at
from megatron_cpt.quality.fasttext_kenlm import fasttext_method, kenlm_method
from megatron_cpt.quality.learned import Sides, classifier_method, importance_method
from megatron_cpt.quality.ngram import ngram_method
from megatron_cpt.quality.score import Method, Scorer, open_datasets, open_references, score
from megatron_cpt.runs.ray_tasks import ray_cluster
from tests.preparation.test_interruptions import digests
from tests.quality.test_fasttext_kenlm import ARPA, LABELS, write_fasttext
from tests.ray_cluster import HAS_RAY, losing_a_node, needs_ray

PARTS = 12


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, texts: list[str]) -> Path:
    """A folder with `corpus.jsonl`, its dataset `one/x` in parts, and `reference.jsonl`."""
    folder = tmp_path_factory.mktemp("pool")
    lines = [{"text": f"{copy} {text}", "quality": copy + len(text)} for copy in range(40) for text in texts]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "reference.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[::3]))
    prepare([str(folder / "corpus.jsonl")], tokenizer_folder, folder / "one" / "x", PrepareSettings(parts=PARTS))
    return folder


@needs_ray
@pytest.mark.timeout(1800)
def test_the_scores_of_a_cluster_are_those_of_one_machine(
    pool: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        shutil.copytree(pool / "one", tmp_path / name)
    # Relative paths: tasks run in folders of their own.
    monkeypatch.chdir(tmp_path)
    shutil.copy(pool / "reference.jsonl", tmp_path)
    reference = ["--reference", "reference.jsonl"]
    sides = ["--positive", "reference.jsonl", "--negative", "one/x-00001-of-00012"]
    for words in (
        ["ngram", *reference],
        ["importance", *reference, "--buckets", "500"],
        ["classifier", *sides],
        ["field", "--field", "quality"],
    ):
        assert main(["score", "one/x", "--quiet", "--by", *words]) == 0
        there = ["--engine", "ray", "--address", cluster.address]
        assert main(["score", "two/x", "--quiet", *there, "--by", *words]) == 0
        assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert main(["score", "two/x", "--quiet", *there, "--by", *words]) == 0
    assert capsys.readouterr().out.count("already there") == PARTS
    # What a task refuses is told as by one machine.
    assert main(["score", "two/x", "--quiet", *there, "--by", "field", "--field", "nowhere", "--name", "n"]) == 2
    assert "--field nowhere: gives no number" in capsys.readouterr().err


@needs_ray
@pytest.mark.timeout(1800)
def test_a_lost_node_costs_its_datasets_alone(pool: Path, tmp_path: Path, cluster: Any) -> None:
    for name in ("out", "right"):
        shutil.copytree(pool / "one", tmp_path / name)

    def scored(folder: Path, engine: OneMachine | RayTasks) -> None:
        datasets = open_datasets([str(folder / "x")])
        references = open_references("--reference", [str(pool / "reference.jsonl")], datasets[0].manifest)
        score(datasets, "ngram", ngram_method(datasets[0].manifest, references, 8, "text"), engine)

    scored(tmp_path / "right", OneMachine())
    with (
        ray_cluster(cluster.address) as ray,
        losing_a_node(cluster, lambda: len(list((tmp_path / "out").glob("*.score.json")))) as lost,
    ):
        scored(tmp_path / "out", RayTasks(ray, 1, False))
    assert lost and lost[0] < PARTS - 2
    assert digests(tmp_path / "out") == digests(tmp_path / "right")


def test_what_ray_is_not_for(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", str(pool / "one" / "x"), "--quiet"]
    field = ["--by", "field", "--field", "quality", "--name", "refused"]
    asked = [
        ([*field, "--address", "here:6379"], "--address: is of a Ray cluster"),
        (["--by", "model", "--checkpoint", "x", "--engine", "ray"], "--engine ray: is not for --by model"),
    ]
    if HAS_RAY:
        nobody = ("nowhere", "127.0.0.1:1", "nowhere.invalid:6379", "127.0.0.1:99999")
        engine = [*field, "--engine", "ray", "--address"]
        asked += [([*engine, one], f"--address {one}: has no Ray cluster") for one in nobody]
    else:
        asked.append(([*field, "--engine", "ray"], "--engine ray: needs Ray, not installed"))
    for more, told in asked:
        assert main([*words, *more]) == 2
        assert told in capsys.readouterr().err
    assert not list((pool / "one").glob("*.refused.*"))


def test_a_dataset_that_is_replaced_meanwhile_is_refused(pool: Path) -> None:
    part = whole_dataset(pool / "one" / "x-00001-of-00012")
    assert at(_documents, part.prefix, part.manifest) == part.manifest.documents
    with pytest.raises(BadInput, match="has changed since the call began"):
        at(_documents, part.prefix, replace(part.manifest, data_sha256="0" * 64))


def _documents(part: SelectedDataset, here: OneMachine) -> int:
    return len(part.documents)


def test_a_scorer_gives_the_same_in_another_process(pool: Path, tmp_path: Path) -> None:
    """As a task has it: pickled, and read again."""
    datasets = open_datasets([str(pool / "one" / "x")])
    manifest = datasets[0].manifest
    here, other = (
        open_references("--reference", [str(path)], manifest)
        for path in (pool / "reference.jsonl", pool / "one" / "x-00002-of-00012")
    )
    for method in (
        ngram_method(manifest, here, 3, "text"),
        importance_method(datasets, here, 500, "text"),
        classifier_method(manifest, Sides(here, other), 1, "text"),
    ):
        _refuse_another_scorer(method, datasets[0], tmp_path)


@pytest.mark.parametrize("by", ["fasttext", "kenlm"])
def test_a_task_opens_a_model_of_other_people_itself(by: str, pool: Path, tmp_path: Path) -> None:
    pytest.importorskip(by)
    part = whole_dataset(pool / "one" / "x-00001-of-00012")
    model = tmp_path / "model"
    if by == "fasttext":
        write_fasttext(model)
        method = fasttext_method(part.manifest, model, LABELS[0])
    else:
        model.write_text(ARPA)
        method = kenlm_method(part.manifest, model)
    _refuse_another_scorer(method, part, tmp_path)


def _refuse_another_scorer(method: Method, part: SelectedDataset, folder: Path) -> None:
    scorer = method.learn(folder, OneMachine())
    again: Scorer = pickle.loads(pickle.dumps(scorer))
    chunk: DocumentChunk = next(dataset_chunks(part))
    assert len(chunk.lengths) and np.array_equal(again(chunk), scorer(chunk))
