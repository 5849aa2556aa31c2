"""Ids that are none of a dataset's, in a `.bin` that was changed: an error that names the place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.corpus.indexed import bin_path
from megatron_cpt.corpus.manifest import verify_dataset, write_manifest
from megatron_cpt.corpus.selection import concatenate
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.quality.select import HowMany, select
from tests.corpus.datasets import write_dataset


def change(prefix: Path, token: int, value: int) -> None:
    """Another id at one place of the tokens."""
    tokens = np.memmap(bin_path(prefix), dtype="<i4", mode="r+")
    tokens[token] = value
    tokens.flush()


@pytest.mark.parametrize("value", [130, 2**31 - 1, -1])
def test_a_read_of_a_foreign_id_names_dataset_document_and_offset(tmp_path: Path, value: int) -> None:
    """Those of the second dataset are 100 to 129, and its second document begins at its token 10."""
    write_dataset(tmp_path / "one", [10, 20])
    write_dataset(tmp_path / "two", [10, 20], first=100)
    verify_dataset(tmp_path / "two")
    stream = TokenStream([tmp_path / "one", tmp_path / "two"])
    change(tmp_path / "two", 13, value)
    assert stream.read(0, 43).tolist() == [*range(30), *range(100, 113)]
    with pytest.raises(IntegrityFault) as error:
        stream.read(35, 20)
    assert f"{tmp_path / 'two.bin'}: document 1, token 3 of it (byte 52): id {value}, where" in str(error.value)
    assert "ids are 0 to 129" in str(error.value)


def test_a_selection_names_the_document_of_its_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", [10, 10, 10])
    verify_dataset(tmp_path / "one")
    np.save(tmp_path / "one.q.npy", np.array([3.0, 1.0, 2.0]))
    select([str(tmp_path / "one")], tmp_path / "s", HowMany(documents=2), keep="lowest", by="q")
    stream = TokenStream([tmp_path / "s.selection.json"])
    change(tmp_path / "one", 22, 99)
    with pytest.raises(IntegrityFault, match="document 2, token 2 of it"):
        stream.read(0, 20)


def test_a_file_of_other_content_is_found_at_the_start(tmp_path: Path) -> None:
    """Of 100,000 tokens 8 x 1,024 are looked at where the manifest of an earlier version tells of no samples."""
    write_dataset(tmp_path / "part", [100_000], vocabulary=1000)
    manifest = concatenate([tmp_path / "part"], tmp_path / "one")
    write_manifest(tmp_path / "one", replace(manifest, samples_sha256=None))
    stream = TokenStream([tmp_path / "one"])
    stream.spot_check()
    np.memmap(bin_path(tmp_path / "one"), dtype="<i4", mode="r+")[:] = np.arange(500_000, 600_000)
    with pytest.raises(IntegrityFault, match="where the dataset's ids are 0 to 999"):
        stream.spot_check()


def test_of_a_pair_that_was_sampled_each_read_is_compared_with_the_models_rows(tmp_path: Path) -> None:
    """Ids between the samples are met when they are read: an embedding would be read past its end."""
    write_dataset(tmp_path / "one", [400_000], vocabulary=1000)
    change(tmp_path / "one", 20_000, 1000)
    stream = TokenStream([tmp_path / "one"])
    assert stream.read(20_000, 1).tolist() == [1000]
    stream.rows = 1001
    assert stream.read(20_000, 1).tolist() == [1000]
    stream.rows = 1000
    with pytest.raises(IntegrityFault, match=r"token 20,000 of it .*: id 1000, where the model has 1000 emb"):
        stream.read(19_999, 3)
    change(tmp_path / "one", 20_000, -1)
    with pytest.raises(IntegrityFault, match="id -1, where the dataset's ids are 0 to 999"):
        stream.read(19_999, 3)
