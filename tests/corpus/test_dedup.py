from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.corpus.dedup import ENTRY, Copies


def entries(hashes: list[int], first: int) -> np.ndarray:
    made = np.zeros(len(hashes), ENTRY)
    made["content_hash"] = hashes
    made["number"] = np.arange(first, first + len(hashes))
    made["file"], made["line"] = 5, made["number"] + 1
    return made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 2**58, 2**63, 2**64 - 1, 12345678901234567]), max_size=60), st.integers(1, 7))
def test_every_document_but_the_first_of_its_hash_is_a_copy(
    tmp_path_factory: pytest.TempPathFactory, hashes: list[int], batch: int
) -> None:
    copies = Copies(tmp_path_factory.mktemp("copies"))
    for first in range(0, len(hashes), batch):
        copies.add(entries(hashes[first : first + batch], first))
    found = [(c.content_hash, c.line - 1, c.first_line - 1) for c in copies.find()]
    expected = [(h, n, hashes.index(h)) for n, h in enumerate(hashes) if hashes.index(h) < n]
    assert found == sorted(expected)
    marked = copies.among(np.arange(len(hashes)))
    assert np.flatnonzero(marked).tolist() == sorted(number for _, number, _ in expected)
    copies.close()


def test_memory_is_one_bit_a_document_and_one_part(tmp_path: Path) -> None:
    copies = Copies(tmp_path)
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    hashes[100_000:] = hashes[:100_000]
    made = np.zeros(200_000, ENTRY)
    made["content_hash"], made["number"] = hashes, np.arange(200_000)
    copies.add(made)
    assert sum(1 for _ in copies.find()) == 100_000
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 1.2 * 200_000 * ENTRY.itemsize / 64
    marked = copies.among(np.arange(200_000))
    assert not marked[:100_000].any() and marked[100_000:].all()
    copies.close()
