"""No two documents that are taken are too similar, and those are taken that a plain loop over the ranking takes."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.commands.select import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.columns import column_path
from megatron_cpt.corpus.selection import load_selection
from megatron_cpt.quality import diverse
from megatron_cpt.quality.diverse import take_diverse
from megatron_cpt.quality.select import HowMany, select
from tests.corpus.datasets import write_dataset

SIGNS = st.lists(st.sampled_from([-0.5, 0.5]), min_size=4, max_size=4)
"""Vectors of length 1 whose cosines are exact: -1, -0.5, 0, 0.5 or 1."""


def plain(order: list[int], vectors: npt.NDArray[np.float32], largest: float) -> list[int]:
    """The same choice, one document and one comparison at a time."""
    taken: list[int] = []
    for document in order:
        if all(float(vectors[document] @ vectors[other]) <= largest for other in taken):
            taken.append(document)
    return taken


@given(
    st.lists(SIGNS, min_size=1, max_size=30), st.randoms(), st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([1, 4])
)
def test_the_choice_is_that_of_a_plain_loop(rows: list[Any], draw: Any, largest: float, at_once: int) -> None:
    vectors, order = np.array(rows, np.float32), draw.sample(range(len(rows)), len(rows))
    with pytest.MonkeyPatch.context() as patch:  # several blocks, of few documents
        patch.setattr(diverse, "_CANDIDATES", at_once)
        patch.setattr(diverse, "_TAKEN", 2)
        found = take_diverse(np.array(order), lambda some: vectors[some], largest, lambda taken: False).tolist()
        assert found == plain(order, vectors, largest)
        similarity = vectors[found] @ vectors[found].T - np.eye(len(found))
        assert len(found) == 1 or similarity.max() <= largest
        few = take_diverse(np.array(order), lambda some: vectors[some], largest, lambda taken: len(taken) >= 2).tolist()
        assert few == found[: len(few)] and len(few) >= min(2, len(found))


def write(folder: Path) -> list[str]:
    """Two datasets of six documents of ten tokens, with two scores and embeddings on a half circle.

    The product of the scores rises from document to document. Documents 1 and 2 of each dataset point the same way in
    both, and so do 4 and 5; lengths of embeddings differ, and say nothing.
    """
    paths = []
    angles = np.deg2rad([0, 40, 41, 90, 140, 141])
    for name, first in (("a", 0), ("b", 100)):
        prefix = write_dataset(folder / name, [10] * 6, first)
        np.save(column_path(prefix, "quality"), np.array([1, 1, 2, 2, 4, 4], "<f4"))
        np.save(column_path(prefix, "complexity"), np.array([1, 3, 2, 3, 2, 3], "<f4") + (name == "b") * 0.5)
        lengths = np.linspace(1, 3, 6)[:, None]
        np.save(column_path(prefix, "vectors"), lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1))
        paths.append(str(prefix))
    return paths


def chosen(name: Path) -> dict[str, list[int]]:
    return {part.prefix.name: part.documents.tolist() for part in load_selection(name).datasets}


def test_documents_of_all_datasets_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--by", "quality * complexity", "--keep", "highest", "--diverse", "0.99", "--embeddings", "vectors"]
    assert main([*write(tmp_path), *words, "--documents", "4", "--output", str(tmp_path / "s")]) == 0
    # b5 (14), then not a5 (12), b4 and a4; b3 (7), not a3; b2 (5), not a2; not b1 (3.5) and a1, but b0.
    assert chosen(tmp_path / "s") == {"b": [0, 2, 3, 5]}
    assert "passed over 7 documents with a cosine above 0.99" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how_many", "expected"),
    [
        (HowMany(tokens=25), [3, 5]),
        (HowMany(share=0.25), [2, 3, 5]),
        (HowMany(documents=1), [5]),
        (HowMany(documents=9), [0, 2, 3, 5]),
        (HowMany(threshold=6), [3, 5]),
    ],
)
def test_a_budget_counts_what_is_taken(tmp_path: Path, how_many: HowMany, expected: list[int]) -> None:
    how: dict[str, Any] = {"keep": "highest", "by": "quality*complexity", "diverse": 0.99, "embeddings": "vectors"}
    done = select(write(tmp_path), tmp_path / "s", how_many, **how)
    assert chosen(tmp_path / "s") == {"b": expected}
    assert (done.selection.how["diverse"], done.selection.how["embeddings"]) == (0.99, "vectors")


def test_a_product_of_scores_below_zero_is_refused(tmp_path: Path) -> None:
    """Two of them would come out on top."""
    paths = write(tmp_path)
    quality = np.load(column_path(paths[1], "quality"))
    np.save(column_path(paths[1], "quality"), quality - quality.max())
    with pytest.raises(BadInput, match=r"score quality in quality\*complexity: is below 0 for 4 documents of .*b"):
        select(paths, tmp_path / "s", HowMany(documents=1), keep="highest", by="quality*complexity")


def test_all_that_are_far_apart_without_a_budget(tmp_path: Path) -> None:
    paths, where = write(tmp_path), "quality > 1"
    select(paths, tmp_path / "s", HowMany(), keep="random", where=where, diverse=0.99, embeddings="vectors")
    taken = chosen(tmp_path / "s")
    assert sorted(min(number, 4) for numbers in taken.values() for number in numbers) == [2, 3, 4]


def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path)

    def refused(kind: type[Exception], said: str, **others: Any) -> None:
        how: dict[str, Any] = {"diverse": 0.9, "embeddings": "vectors"} | others
        with pytest.raises(kind, match=said):
            select(paths, tmp_path / "s", HowMany(documents=3), keep="random", **how)

    refused(BadInput, "goes with the other", diverse=None)
    refused(BadInput, "goes with the other", embeddings=None)
    refused(BadInput, "must be above 0 and below 1", diverse=1.0)
    refused(BadInput, "a.other.npy: is not there", embeddings="other")
    vectors = np.load(column_path(paths[1], "vectors"))
    for array, kind, said in (
        (np.hstack([vectors, vectors]), BadInput, "different numbers of dimensions: 2 of .*a, 4 of .*b"),
        (vectors * (np.arange(6) != 3)[:, None], BadInput, "is 0 or not finite for document 3 of .*b"),
        (vectors[:5], IntegrityFault, r"is float64\[5, 2\], not an embedding"),
        (vectors.astype(np.int64), IntegrityFault, r"is int64\[6, 2\], not an embedding"),
    ):
        np.save(column_path(paths[1], "vectors"), array)
        refused(kind, said)
    assert not list(tmp_path.glob("s.*"))
