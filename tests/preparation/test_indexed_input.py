"""A pair of tokens as the input of `prepare`: split by content as its text would be, without tokenizing again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.indexed import IndexedDataset, bin_path, idx_path, manifest_path
from megatron_cpt.corpus.manifest import load_manifest, verify_dataset
from megatron_cpt.preparation import pieces
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.texts import save_tokenizer, unigram

WriteJsonl = Callable[..., Path]
ODD = ["Zürich\n\n  x", "漢字かな 😀👩‍👩‍👧‍👦", " blank before", "e\u0301 and \u00e9", "\tx = {1: 'a'}\r\n"]


@pytest.fixture
def corpus(write_jsonl: WriteJsonl, texts: list[str]) -> Path:
    """Real text, odd text, and copies of some."""
    return write_jsonl("a.jsonl", [*texts, *ODD, *texts[3:9]])


def by_megatron(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> Path:
    """A pair that Megatron-Core writes."""
    builder = IndexedDatasetBuilder(str(bin_path(prefix)), dtype=dtype)
    for ids in documents:
        builder.add_document(ids, [len(ids)])
    builder.finalize(str(idx_path(prefix)))
    return prefix


def same(one: Path, other: Path) -> None:
    for name in ("", ".validation"):
        for ending in ("bin", "idx", "documents.npy"):
            assert Path(f"{one}{name}.{ending}").read_bytes() == Path(f"{other}{name}.{ending}").read_bytes(), ending


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("holdout", ["20%", "2000"])
def test_the_same_documents_are_held_out_as_of_the_text(
    tmp_path: Path,
    tokenizer_folder: Path,
    corpus: Path,
    described: bool,
    holdout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--workers", "2"]
    held_out = [*words, "--holdout", holdout]
    assert main(["prepare", str(corpus), *held_out, "--output", f"{tmp_path}/expected"]) == 0
    pair = tmp_path / "pair"
    if described:
        assert main(["prepare", str(corpus), *words, "--keep-duplicates", "--output", str(pair)]) == 0
    else:
        tokenizer = Tokenizer.load(tokenizer_folder)
        found = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
        by_megatron(pair, [[*ids.tolist(), tokenizer.eod] for ids in tokenizer.encode_batch(found)])
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 3000)
    assert main(["prepare", str(pair), *held_out, "--output", f"{tmp_path}/split"]) == 0
    same(tmp_path / "split", tmp_path / "expected")
    assert {name for name in before if name.startswith("pair")} == {
        path.name for path in tmp_path.iterdir() if path.name.startswith("pair")
    }
    manifest, expected = verify_dataset(tmp_path / "split"), load_manifest(tmp_path / "expected")
    assert manifest.duplicates == expected.duplicates and manifest.bytes == expected.bytes
    # What is left out is told by its number in the pair.
    entry = json.loads((tmp_path / "split.duplicates.jsonl").read_text().splitlines()[0])
    assert entry["file"] == str(bin_path(pair)) and entry["line"] > entry["of"]["line"]
    assert main(["prepare", f"{pair}.idx", *held_out, "--output", f"{tmp_path}/split"]) == 0  # already complete


def test_pairs_and_text_together_in_shards(
    tmp_path: Path, tokenizer_folder: Path, corpus: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--tokenizer", str(tokenizer_folder), "--quiet"]
    assert main(["prepare", str(corpus), *words, "--output", f"{tmp_path}/old"]) == 0
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 3000)
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts[:4], "new text, not there yet"]))
    both = ["prepare", f"{tmp_path}/old", str(more), *words]
    for shard in ("1/2", "2/2"):
        assert main([*both, "--output", f"{tmp_path}/both", "--shard", shard]) == 0
    assert main(["merge", f"{tmp_path}/both"]) == 0
    manifest, old = load_manifest(tmp_path / "both"), load_manifest(tmp_path / "old")
    assert (manifest.documents, manifest.duplicates) == (old.documents + 1, 4)
    assert main(["prepare", f"{tmp_path}/old", *words, "--limit", "2", "--output", f"{tmp_path}/x"]) == 0


def test_documents_get_the_ends_of_the_call_and_keep_their_control_tokens(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    plain = [ids.tolist() for ids in tokenizer.encode_batch(["one text", "two texts", "three"])]
    eod = tokenizer.eod
    by_megatron(tmp_path / "pair", [plain[0], [*plain[1], eod], [eod, *plain[2], eod, *plain[0], eod], [eod], []])
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--max-rejected", "50%"]
    assert main(["prepare", f"{tmp_path}/pair", *words, "--output", f"{tmp_path}/out"]) == 0
    dataset = IndexedDataset(tmp_path / "out")
    found = [dataset.document(number).tolist() for number in range(dataset.documents)]
    assert found == [[*plain[0], eod], [*plain[1], eod], [eod, *plain[2], eod, *plain[0], eod]]
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [(line["line"], line["reason"]) for line in rejected] == [(4, "no tokens"), (5, "no tokens")]


def test_text_that_a_tokenizer_changes_keeps_its_hash_or_is_warned_of(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    folder = tmp_path / "lossy"
    save_tokenizer(folder, unigram(["▁a", "b", "c", "▁"], ["</s>"]), {"eos_token": "</s>"})
    corpus = write_jsonl("a.jsonl", ["abc  " + "b" * n for n in range(1, 40)])
    words = ["--tokenizer", str(folder), "--order", "as_read", "--quiet"]
    assert main(["prepare", str(corpus), *words, "--holdout", "30%", "--output", f"{tmp_path}/expected"]) == 0
    assert main(["prepare", str(corpus), *words, "--output", f"{tmp_path}/pair"]) == 0
    assert main(["prepare", f"{tmp_path}/pair", *words, "--holdout", "30%", "--output", f"{tmp_path}/split"]) == 0
    same(tmp_path / "split", tmp_path / "expected")
    # Without the hashes that prepare kept, only the text of the tokens is known.
    manifest_path(tmp_path / "pair").unlink()
    with pytest.warns(UserWarning, match=r"16 of 16 documents that were looked at have other tokens"):
        assert main(["prepare", f"{tmp_path}/pair", *words, "--output", f"{tmp_path}/foreign"]) == 0


def test_a_pair_with_another_eod_is_refused_until_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(tmp_path / "t", unigram(["▁a", "b", "▁"], ["</s>", "<|im_end|>"]), {"eos_token": "</s>"})
    tokenizer = Tokenizer.load(tmp_path / "t")
    end = tokenizer.library.number_of("<|im_end|>")
    assert end is not None
    pair = by_megatron(tmp_path / "pair", [[2, *[3] * number, end] for number in range(1, 9)])
    words = ["prepare", str(pair), "--tokenizer", str(tmp_path / "t"), "--quiet", "--output", f"{tmp_path}/out"]
    assert main(words) == 2
    assert "has documents that end with <|im_end|>, where the EOD here is </s>" in capsys.readouterr().err
    assert main([*words, "--eod", "<|im_end|>", "--order", "as_read"]) == 0
    for ending in ("bin", "idx"):
        assert Path(f"{tmp_path}/out.{ending}").read_bytes() == Path(f"{pair}.{ending}").read_bytes()


def test_what_cannot_be_read_as_asked_is_refused(
    tmp_path: Path, tokenizer_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tokenizer", str(tokenizer_folder), "--quiet", "--output", f"{tmp_path}/out"]
    tokenizer = Tokenizer.load(tokenizer_folder)
    plain = tokenizer.encode_batch(["one", "two"])[0].tolist()
    by_megatron(tmp_path / "beyond", [[1, tokenizer.vocabulary_size]])
    sentences = IndexedDatasetBuilder(str(tmp_path / "sentences.bin"), dtype=np.uint16)
    sentences.add_document([*plain, *plain], [len(plain), len(plain)])
    sentences.finalize(str(tmp_path / "sentences.idx"))
    assert main(["prepare", str(corpus), *words, "--output", f"{tmp_path}/other"]) == 0
    for name, more, told in (
        ("beyond", [], "holds ids that"),
        ("sentences", [], "documents of several sequences"),
        ("beyond", ["--where", "len(text) > 3"], "--where: needs text and fields"),
        ("beyond", ["--id-key", "id"], "--id-key: needs text and fields"),
        ("none", [], "is not there"),
    ):
        assert main(["prepare", f"{tmp_path}/{name}", *words, *more]) == 2, name
        assert told in capsys.readouterr().err
    assert main(["score", f"{tmp_path}/other", "--by", "field", "--field", "x", "--input", f"{tmp_path}/beyond"]) == 2
    assert "a dataset, whose documents have no fields" in capsys.readouterr().err
    bin_path(tmp_path / "other").write_bytes(b"\0\0\0")
    assert main(["prepare", f"{tmp_path}/other", *words]) == 3


def test_a_pair_of_megatron_lms_own_release_is_split_whole(
    tmp_path: Path, shared: Callable[[str], Path], unpack: Callable[[str], Path], recwarn: pytest.WarningsRecorder
) -> None:
    """1,000 documents of OpenWebText, as Megatron-LM tokenized them with a small GPT-2 vocabulary."""
    name = "megatron_fixtures/meg-gpt2-openwebtext_text_document"
    pair = unpack(f"{name}.bin.zst").with_suffix("")
    shutil.copyfile(shared(f"{name}.idx"), idx_path(pair))
    (tmp_path / "gpt2").mkdir()
    for ours, theirs in (("vocab.json", "gpt2-tiny-vocab.json"), ("merges.txt", "gpt2-tiny-merges.txt")):
        shutil.copyfile(shared(f"megatron_fixtures/{theirs}"), tmp_path / "gpt2" / ours)
    words = ["--tokenizer", str(tmp_path / "gpt2"), "--quiet", "--holdout", "10%", "--keep-duplicates"]
    assert main(["prepare", str(pair), *words, "--output", f"{tmp_path}/out"]) == 0
    assert not [warning for warning in recwarn if "other tokens" in str(warning.message)]
    before, parts = IndexedDataset(pair), [IndexedDataset(f"{tmp_path}/out{name}") for name in ("", ".validation")]
    assert 60 < parts[1].documents < 140
    after = [part.document(number).tobytes() for part in parts for number in range(part.documents)]
    assert sorted(after) == sorted(before.document(number).tobytes() for number in range(before.documents))


def test_a_dataset_that_was_held_out_from_is_not_held_out_from_again(
    tmp_path: Path, tokenizer_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tokenizer", str(tokenizer_folder), "--quiet"]
    assert main(["prepare", str(corpus), *words, "--holdout", "20%", "--output", f"{tmp_path}/first"]) == 0
    for prefix in ("first", "first.validation"):
        again = ["prepare", f"{tmp_path}/{prefix}", *words, "--output", f"{tmp_path}/second"]
        assert main([*again, "--holdout", "25%"]) == 2
        assert f"{prefix}: was prepared with --holdout itself" in capsys.readouterr().err
    assert main(["prepare", f"{tmp_path}/first", *words, "--output", f"{tmp_path}/second"]) == 0
