from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.columns import DOCUMENT_RECORD, ColumnWriter, column_path, read_column


@pytest.mark.parametrize("sizes", [[3], [1, 0, 12_345], [9, 1]])
def test_a_column_written_in_pieces_is_a_plain_npy_file(tmp_path: Path, sizes: list[int]) -> None:
    values = np.zeros(sum(sizes), DOCUMENT_RECORD)
    values["bytes"] = np.arange(len(values))
    with ColumnWriter(tmp_path / "data", "documents", DOCUMENT_RECORD) as writer:
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            writer.add(values[end - size : end])
    assert (np.load(tmp_path / "data.documents.npy", allow_pickle=False) == values).all()
    assert (read_column(tmp_path / "data", "documents", len(values)) == values).all()


def test_a_column_of_another_dataset_or_a_torn_one_is_refused(tmp_path: Path) -> None:
    prefix = tmp_path / "data"
    with pytest.raises(BadInput, match=r"data\.ngram\.npy"):
        read_column(prefix, "ngram", 4)
    np.save(column_path(prefix, "ngram"), np.arange(5.0))
    with pytest.raises(IntegrityFault, match="5,"):
        read_column(prefix, "ngram", 4)
    column_path(prefix, "ngram").write_bytes(column_path(prefix, "ngram").read_bytes()[:-3])
    with pytest.raises(IntegrityFault, match="whole"):
        read_column(prefix, "ngram", 5)


def test_an_error_leaves_no_column(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ColumnWriter(tmp_path / "data", "score", "<f4"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
