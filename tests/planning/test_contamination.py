"""What prepare counted meets what a run asks: by the file of a task, by the bytes of a validation set."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.preparation.contamination import Contamination, SetOverlap, contamination_path
from megatron_cpt.runs.folder import file_sha256
from tests.planning.small_run import settings


def overlap(name: str, sha256: str, kept: int, left_out: int = 0) -> SetOverlap:
    return SetOverlap(
        name=name,
        source=name,
        sha256=sha256,
        items=10,
        too_short=0,
        items_left_out=0,
        items_kept=kept,
        documents_left_out=left_out,
        documents_kept=2 * kept,
    )


def note(prefix: Path, *sets: SetOverlap, data_sha256: str | None = None) -> None:
    record = Contamination(
        ngram_words=13, data_sha256=data_sha256 or load_manifest(prefix).data_sha256, sets=list(sets)
    )
    contamination_path(prefix).write_bytes(orjson.dumps(asdict(record)))


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    sections = settings(tmp_path)
    lines = [{"task": task, "text": "w2"} for task in ("quiz", "exam")]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sections["tasks"] = {"files": {"both": {"path": str(tmp_path / "quiz.jsonl")}}}
    return sections


def test_tasks_and_validation_sets_that_sources_overlap_are_named(sections: dict[str, Any], tmp_path: Path) -> None:
    tasks = file_sha256(tmp_path / "quiz.jsonl")
    held_out = load_manifest(tmp_path / "web.validation").data_sha256
    note(tmp_path / "law", overlap("quiz", tasks, 3), overlap("exam", tasks, 0, 4), overlap("web", held_out, 1))
    # Of other bytes than the dataset has now: nothing is known of it.
    note(tmp_path / "web", overlap("quiz", tasks, 3), data_sha256="0")
    plan = make_plan(config_from_dict(sections))
    rows = {(row["source"], row["kind"], row["name"]): row for row in plan.to_dict()["contamination"]}
    assert len(rows) == 2 * (2 + 2)
    assert rows["law", "task", "quiz"] == {
        "source": "law", "kind": "task", "name": "quiz", "datasets": 1, "compared": 1, "items": 10, "items_kept": 3,
        "documents_kept": 6, "documents_left_out": 0,
    }  # fmt: skip
    assert rows["law", "task", "exam"]["documents_left_out"] == 4
    assert rows["law", "validation", "web"]["documents_kept"] == 2
    assert rows["law", "validation", "law"]["compared"] == rows["web", "task", "quiz"]["compared"] == 0
    named = [warning for warning in plan.warnings if "words running" in warning]
    assert len(named) == 2
    assert named[0].startswith("source law holds 6 documents that share 13 words running with task quiz (3 of its 10")
    assert "with validation web (1 of its 10 items)" in named[1]
