"""shared_text.py: documents that two readers share are refused where they read at the same time, else named."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.quality.select import HowMany, select
from tests.corpus.datasets import write_dataset
from tests.planning.small_run import faults_of, settings


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    """The source `law` is 20 documents of 500 tokens."""
    sections = settings(tmp_path)
    write_dataset(tmp_path / "many", [500] * 20, vocabulary=61)
    sections["data"]["sources"]["law"]["paths"] = [str(tmp_path / "many")]
    return sections


def half(folder: Path, name: str = "half") -> str:
    return str(select([str(folder / "many")], folder / name, HowMany(tokens=5000), keep="random").selection.path)


def test_a_selection_beside_its_own_dataset(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["data"]["sources"]["best"] = {"paths": [half(tmp_path)]}
    [fault] = faults_of(sections)
    assert fault.startswith("data.sources.law and data.sources.best: share 10 documents")


def test_a_copy_elsewhere_is_the_same_text(sections: dict[str, Any], tmp_path: Path) -> None:
    for ending in ("bin", "idx"):
        shutil.copy(tmp_path / f"many.{ending}", tmp_path / f"copy.{ending}")
    sections["data"]["sources"]["copy"] = {"paths": [str(tmp_path / "copy")]}
    sections["validation"]["sets"]["law"]["paths"] = [half(tmp_path)]
    first, second, third = faults_of(sections)
    assert "data.sources.law trains on 10 of its documents" in first
    assert "data.sources.copy trains on 10 of its documents" in second
    assert third.startswith("data.sources.law and data.sources.copy: share 20 documents")


def test_sources_that_share_documents_at_different_times_are_named(sections: dict[str, Any], tmp_path: Path) -> None:
    sections["data"]["sources"]["best"] = {"paths": [half(tmp_path)], "weight": 0}
    sections["data"]["phases"] = [{"from_tokens": 0}, {"from_tokens": "50 steps", "weights": {"law": 0, "best": 1}}]
    warnings = make_plan(config_from_dict(sections)).warnings
    assert warnings[0] == (
        "sources law and best share 10 documents; they give them in different phases, and the epochs of each are "
        "counted apart."
    )
    sections["data"]["phases"][1]["weights"] = {"best": 1}
    assert faults_of(sections)[0].startswith("data.sources.law and data.sources.best: share 10 documents")
