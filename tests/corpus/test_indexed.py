from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.indexed import IndexedDataset, IndexedWriter, bin_path, dtype_for, idx_path, manifest_path
from megatron_cpt.corpus.manifest import load_manifest, verify_dataset
from tests.texts import SHARED

Documents = list[list[list[int]]]
documents_of_sequences = st.lists(
    st.lists(st.lists(st.integers(0, 65_000), max_size=5), max_size=3), min_size=1, max_size=8
)
same_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(prefix: Path, documents: Documents, dtype: str = "uint16") -> None:
    with IndexedWriter(prefix, dtype) as writer:
        for sequences in documents:
            tokens = np.array([token for sequence in sequences for token in sequence], np.int64)
            writer.add(tokens, np.array([len(sequence) for sequence in sequences], np.int64))


def write_with_megatron(prefix: Path, documents: Documents, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    builders = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = builders.IndexedDatasetBuilder(str(bin_path(prefix)), getattr(np, dtype))
    for sequences in documents:
        for sequence in sequences:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(str(idx_path(prefix)))


@same_folder
@given(documents=documents_of_sequences, dtype=st.sampled_from(["uint16", "int32"]))
def test_bytes_are_megatrons(tmp_path: Path, documents: Documents, dtype: str) -> None:
    write(tmp_path / "ours", documents, dtype)
    write_with_megatron(tmp_path / "theirs", documents, dtype)
    assert bin_path(tmp_path / "ours").read_bytes() == bin_path(tmp_path / "theirs").read_bytes()
    assert idx_path(tmp_path / "ours").read_bytes() == idx_path(tmp_path / "theirs").read_bytes()


@same_folder
@given(documents=documents_of_sequences, dtype=st.sampled_from(["uint16", "int32"]))
def test_reads_what_megatron_wrote(tmp_path: Path, documents: Documents, dtype: str) -> None:
    write_with_megatron(tmp_path / "theirs", documents, dtype)
    dataset = IndexedDataset(tmp_path / "theirs")
    flat = [[token for sequence in sequences for token in sequence] for sequences in documents]
    assert [dataset.document(number).tolist() for number in range(dataset.documents)] == flat
    assert dataset.token_count == sum(map(len, flat)) == len(dataset.tokens)
    assert dataset.document_starts.tolist() == np.cumsum([0, *map(len, flat)]).tolist()


def test_megatron_reads_what_we_wrote(tmp_path: Path) -> None:
    theirs = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    write(tmp_path / "ours", [[[5, 6, 7], [8]], [[9]]])
    dataset = theirs.IndexedDataset(str(tmp_path / "ours"))
    assert [dataset[number].tolist() for number in range(len(dataset))] == [[5, 6, 7], [8], [9]]
    assert dataset.document_indices.tolist() == [0, 2, 3]


@given(lengths=st.lists(st.integers(0, 6), max_size=10))
@same_folder
def test_many_documents_at_once_are_the_same_as_one_by_one(tmp_path: Path, lengths: list[int]) -> None:
    tokens = np.arange(sum(lengths))
    with IndexedWriter(tmp_path / "many", "int32") as writer:
        writer.add_many(tokens, np.array(lengths, np.int64))
    with IndexedWriter(tmp_path / "one", "int32") as writer:
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            writer.add(tokens[end - length : end])
    assert idx_path(tmp_path / "many").read_bytes() == idx_path(tmp_path / "one").read_bytes()
    assert bin_path(tmp_path / "many").read_bytes() == bin_path(tmp_path / "one").read_bytes()


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(65_499, "uint16"), (65_500, "int32"), (65_535, "int32"), (65_537, "int32"), (152_064, "int32")],
)
def test_ids_of_every_vocabulary_round_trip_and_others_are_refused(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    assert dtype_for(vocabulary).name == dtype
    with IndexedWriter(tmp_path / "data", dtype_for(vocabulary), vocabulary) as writer:
        writer.add(np.array([0, vocabulary - 1]))
        for wrong in (-1, vocabulary):
            with pytest.raises(BadInput, match=f"token id {wrong} "):
                writer.add(np.array([3, wrong]))
    assert IndexedDataset(tmp_path / "data").tokens.tolist() == [0, vocabulary - 1]


def test_an_id_never_wraps_in_a_small_dtype(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="70000"), IndexedWriter(tmp_path / "data", "uint16") as writer:
        writer.add(np.array([70_000]))
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_dataset_whole(tmp_path: Path) -> None:
    write(tmp_path / "data", [[[1, 2, 3]]])
    old = load_manifest(tmp_path / "data")
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "data", "uint16") as writer:
        writer.add(np.array([7]))
        raise RuntimeError
    assert load_manifest(tmp_path / "data") == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.bin", "data.idx", "data.manifest.json"]


def test_old_manifest_and_index_go_before_new_data_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "data"
    write(prefix, [[[1, 2, 3]]])
    load_manifest(prefix)
    seen = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append((target.name, idx_path(prefix).exists(), manifest_path(prefix).exists()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    write(prefix, [[[4, 5, 6]]])
    assert seen == [("data.bin", False, False), ("data.idx", False, False)]


@pytest.mark.parametrize("missing", ["bin", "idx"])
def test_a_missing_file_is_bad_input(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "data", [[[1]]])
    (tmp_path / f"data.{missing}").unlink()
    with pytest.raises(BadInput, match=rf"data\.{missing}: is not there"):
        IndexedDataset(tmp_path / "data")


@pytest.mark.parametrize("size", [0, 1, 5, 39, 41])
def test_data_of_another_length_are_refused(tmp_path: Path, size: int) -> None:
    write(tmp_path / "data", [[list(range(20))]])
    content = bin_path(tmp_path / "data").read_bytes()
    bin_path(tmp_path / "data").write_bytes((content + b"\0")[:size])
    with pytest.raises(IntegrityFault, match=r"data\.bin"):
        IndexedDataset(tmp_path / "data")


def test_an_index_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", [[[1, 2]], [[3]], [[4, 5]]])
    content = idx_path(tmp_path / "data").read_bytes()
    for size in range(len(content)):
        idx_path(tmp_path / "data").write_bytes(content[:size])
        with pytest.raises(IntegrityFault, match=r"data\.idx"):
            IndexedDataset(tmp_path / "data")


def test_every_flipped_bit_of_an_index_is_refused(tmp_path: Path) -> None:
    prefix = tmp_path / "data"
    write(prefix, [[[1, 2], [3]], [], [[4]]])
    load_manifest(prefix)
    content = idx_path(prefix).read_bytes()
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        idx_path(prefix).write_bytes(flipped)
        with pytest.raises(IntegrityFault):
            load_manifest(prefix)


def test_a_dtype_of_floats_and_a_later_version_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "data", [[[1, 2]]])
    content = bytearray(idx_path(tmp_path / "data").read_bytes())
    for place, value, words in ((17, 7, "dtype code 7"), (9, 2, "version 2")):
        altered = bytearray(content)
        altered[place] = value
        idx_path(tmp_path / "data").write_bytes(altered)
        with pytest.raises(IntegrityFault, match=words):
            IndexedDataset(tmp_path / "data")


def test_a_dataset_without_documents_reads(tmp_path: Path) -> None:
    write(tmp_path / "data", [])
    dataset = IndexedDataset(tmp_path / "data")
    assert (dataset.documents, dataset.token_count, dataset.tokens.tolist()) == (0, 0, [])
    assert dataset.document_starts.tolist() == [0]


def test_lengths_that_do_not_make_up_the_tokens_are_our_own_error(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "data", "int32") as writer:
        with pytest.raises(ValueError):
            writer.add(np.arange(3), np.array([1, 1]))
        with pytest.raises(ValueError):
            writer.add_many(np.arange(3), np.array([4]))


def test_a_pair_written_by_megatron_itself_reads_and_verifies(unpack: Callable[[str], Path]) -> None:
    name = "megatron_fixtures/meg-gpt2-openwebtext_text_document"
    data = unpack(f"{name}.bin.zst")
    prefix = data.with_suffix("")
    idx_path(prefix).write_bytes((SHARED / f"{name}.idx").read_bytes())
    dataset = IndexedDataset(prefix)
    assert (dataset.documents, dataset.token_count, dataset.dtype.name) == (1000, 1_361_845, "uint16")
    assert all(dataset.document(number)[-1] == 4999 for number in range(1000))
    manifest = verify_dataset(prefix)
    assert (manifest.documents, manifest.bytes, manifest.eod) == (1000, None, None)
