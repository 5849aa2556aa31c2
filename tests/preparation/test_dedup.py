from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.corpus.hashing import mixed
from megatron_cpt.preparation import dedup
from megatron_cpt.preparation.dedup import copies
from megatron_cpt.preparation.sorted_runs import RECORD, SortedRun, TokenBuffer, TokenizedDocuments, write_run

HASHES = st.lists(st.sampled_from([0, 1, 2, 2**58, 2**63, 2**64 - 1, 12345678901234567]), max_size=60)


def runs_of(folder: Path, hashes: list[int], size: int) -> list[SortedRun]:
    """Documents of such hashes in runs of so many, each in an order of its own; the number stands in `bytes`."""
    runs = []
    for first in range(0, len(hashes), size):
        part = hashes[first : first + size]
        records = np.zeros(len(part), RECORD)
        records["content_hash"] = part
        records["place"] = np.arange(len(part)) * 100
        records["bytes"] = first + np.arange(len(part))
        records["key"] = mixed(records["bytes"].astype(np.uint64))
        nothing = TokenizedDocuments(
            records, np.empty(0, "<u2"), np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, LOSS_SPAN)
        )
        write_run(folder / f"{first}.run", nothing, TokenBuffer(folder, np.dtype("<u2")))
        runs.append(SortedRun(folder / f"{first}.run", np.dtype("<u2"), len(part), 0, 0, 0, 0))
    return runs


@settings(max_examples=40, deadline=None)
@given(hashes=HASHES, size=st.integers(1, 7), documents=st.sampled_from([1, 5, 1 << 21]))
def test_every_document_but_the_first_of_its_hash_is_a_copy(
    tmp_path_factory: pytest.TempPathFactory, hashes: list[int], size: int, documents: int
) -> None:
    runs = runs_of(tmp_path_factory.mktemp("runs"), hashes, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "RANGE_DOCUMENTS", documents)
        found = [
            (
                copy.content_hash,
                int(runs[copy.run].records()[copy.position]["bytes"]),
                int(runs[copy.first_run].records()[copy.first_position]["bytes"]),
            )
            for copy in copies(runs)
        ]
    assert found == sorted((h, n, hashes.index(h)) for n, h in enumerate(hashes) if hashes.index(h) < n)
