from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.indexed import bin_path, idx_path, manifest_path
from megatron_cpt.corpus.manifest import load_manifest, verify_dataset
from megatron_cpt.planning.checks import row_faults
from tests.corpus.datasets import write_dataset


def test_a_foreign_pair_gets_a_manifest_of_what_can_be_known(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [2, 3])
    manifest = load_manifest(prefix)
    assert (manifest.documents, manifest.tokens, manifest.dtype) == (2, 5, "int32")
    assert manifest.bytes is manifest.tokenizer is manifest.eod is manifest.sources is None
    assert len(manifest.data_sha256) == 64 and manifest.only_sampled
    assert manifest_path(prefix).is_file()
    assert load_manifest(prefix) == manifest


def test_a_foreign_pair_whose_manifest_cannot_be_written_is_usable(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [2, 3])
    # A folder in its place stops root, too, whom a read-only folder would not.
    manifest_path(prefix).mkdir()
    assert load_manifest(prefix).tokens == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.bin", "data.idx", "data.manifest.json"]


def test_a_replaced_dataset_is_refused(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [2, 3])
    load_manifest(prefix)
    other = write_dataset(tmp_path / "other", [3, 2])
    idx_path(prefix).write_bytes(idx_path(other).read_bytes())
    with pytest.raises(IntegrityFault, match=r"data\.idx"):
        load_manifest(prefix)


def test_other_data_of_the_same_size_are_found_by_verify(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [2, 3])
    verify_dataset(prefix)
    other = write_dataset(tmp_path / "other", [2, 3], first=1)
    bin_path(prefix).write_bytes(bin_path(other).read_bytes())
    with pytest.raises(IntegrityFault, match=r"data\.bin"):
        verify_dataset(prefix)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"documents": 2}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    prefix = write_dataset(tmp_path / "data", [2, 3])
    manifest_path(prefix).write_text(content)
    with pytest.raises(IntegrityFault, match="manifest"):
        load_manifest(prefix)


def test_no_dataset_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere"):
        load_manifest(tmp_path / "nowhere")


def test_of_a_large_foreign_pair_samples_are_read_and_the_whole_on_demand(tmp_path: Path) -> None:
    """Its identity stays what it was; ids between the samples are counted, and bytes compared, from then on."""
    prefix = write_dataset(tmp_path / "data", [400_000], vocabulary=1000)
    ids = np.memmap(bin_path(prefix), dtype="<i4", mode="r+")
    ids[20_000] = 5000  # between the first two samples, of 16,384 ids each
    ids.flush()
    manifest = load_manifest(prefix)
    assert manifest.largest_id == 999 and manifest.last_id is None
    assert row_faults("data.sources.a", manifest, "model.hf = x", 1000) == []
    verified = verify_dataset(prefix)
    assert verified == load_manifest(prefix)
    assert (verified.last_id, verified.data_sha256) == (5000, manifest.data_sha256)
    assert verified.whole_sha256 == sha256(bin_path(prefix).read_bytes()).hexdigest()
    ids[20_000] = 5001
    ids.flush()
    with pytest.raises(IntegrityFault, match=r"data\.bin: is not the content"):
        verify_dataset(prefix)


def test_a_foreign_pair_of_altered_samples_is_another(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [400_000], vocabulary=1000)
    before = load_manifest(prefix).data_sha256
    ids = np.memmap(bin_path(prefix), dtype="<i4", mode="r+")
    ids[-1] += 1
    ids.flush()
    with pytest.raises(IntegrityFault, match=r"data\.bin: samples of its tokens are not those"):
        verify_dataset(prefix)
    manifest_path(prefix).unlink()
    assert load_manifest(prefix).data_sha256 != before
    ids[0] = -2
    ids.flush()
    manifest_path(prefix).unlink()
    with pytest.raises(IntegrityFault, match="token 0 is -2, which is no id"):
        load_manifest(prefix)


def test_ids_of_a_foreign_pair_beyond_a_models_rows_are_refused(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [2, 3], first=995)
    manifest = load_manifest(prefix)
    [fault] = row_faults("data.sources.a", manifest, "model.hf = x", 999)
    assert "ids up to 999: model.hf = x has 999 embedding rows" in str(fault)
    assert row_faults("data.sources.a", manifest, "model.hf = x", 1000) == []


def test_indices_of_other_kinds_are_told_as_what_they_are(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [2, 3])
    index = idx_path(prefix).read_bytes()
    idx_path(prefix).write_bytes(index + b"\x00\x01")
    with pytest.raises(IntegrityFault, match="multimodal datasets; only text is read"):
        load_manifest(prefix)
    for code, what in ((9, "nothing that Megatron-LM writes, such as uint32"), (7, "floating-point numbers")):
        idx_path(prefix).write_bytes(index[:17] + bytes([code]) + index[18:])
        with pytest.raises(IntegrityFault, match=f"dtype code {code}, which stands for {what}"):
            load_manifest(prefix)
