from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.columns import column_path
from megatron_cpt.corpus.manifest import Manifest, load_manifest
from megatron_cpt.corpus.scores import is_scored, read_score, record_path, write_score
from tests.corpus.datasets import write_dataset

HOW = {"by": "ngram", "order": 3}


def scored(folder: Path) -> tuple[Path, Manifest]:
    prefix = write_dataset(folder / "a", [10] * 4)
    manifest = load_manifest(prefix)
    write_score(prefix, "ngram", manifest, iter([np.array([3, 1], np.float32), np.array([2, 9], np.float32)]), HOW)
    return prefix, manifest


def test_what_is_written_is_read_and_found_again(tmp_path: Path) -> None:
    prefix, manifest = scored(tmp_path)
    assert read_score(prefix, "ngram", manifest).tolist() == [3, 1, 2, 9]
    assert read_score(prefix, "ngram", manifest).dtype == np.float32
    assert is_scored(prefix, "ngram", manifest, {"order": 3, "by": "ngram"})
    assert not is_scored(prefix, "ngram", manifest, {**HOW, "order": 4})
    assert not is_scored(prefix, "other", manifest, HOW)


def test_the_score_of_other_content_is_refused(tmp_path: Path) -> None:
    prefix, _ = scored(tmp_path)
    write_dataset(prefix, [10] * 4, first=5)
    with pytest.raises(BadInput, match="other content"):
        read_score(prefix, "ngram", load_manifest(prefix))
    assert not is_scored(prefix, "ngram", load_manifest(prefix), HOW)


def test_an_array_that_is_not_the_records_is_refused(tmp_path: Path) -> None:
    prefix, manifest = scored(tmp_path)
    np.save(column_path(prefix, "ngram"), np.array([3, 1, 2, 8], np.float32))
    with pytest.raises(IntegrityFault, match=r"a\.ngram\.npy"):
        read_score(prefix, "ngram", manifest)
    record_path(prefix, "ngram").write_text("[]")
    with pytest.raises(IntegrityFault, match=r"a\.ngram\.score\.json"):
        read_score(prefix, "ngram", manifest)
    # Without a record it is an array made elsewhere.
    record_path(prefix, "ngram").unlink()
    assert read_score(prefix, "ngram", manifest).tolist() == [3, 1, 2, 8]


def test_a_score_that_is_no_number_leaves_what_was_there(tmp_path: Path) -> None:
    prefix, manifest = scored(tmp_path)
    with pytest.raises(BadInput, match="document 3 of"):
        write_score(prefix, "ngram", manifest, [np.array([1, 2, 3, np.nan], np.float32)], HOW)
    assert is_scored(prefix, "ngram", manifest, HOW)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("documents", "the name of something else"), *((name, "no name") for name in ("a/b", "..", "", "a.b"))],
)
def test_names_that_would_be_other_files_are_refused(tmp_path: Path, name: str, rule: str) -> None:
    prefix, manifest = scored(tmp_path)
    with pytest.raises(BadInput, match=rule):
        read_score(prefix, name, manifest)
