"""`prepare --min-length` and `--max-length`: short documents are left out, long ones cut into parts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import documents_column, load_manifest
from megatron_cpt.corpus.scores import read_score
from megatron_cpt.preparation.conversations import Unusable
from megatron_cpt.preparation.encode_documents import parts_of
from megatron_cpt.preparation.indexed_input import part_numbers
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.tokenizer.formats import Encoded
from megatron_cpt.tokenizer.tokenizer import Tokenizer

WriteJsonl = Callable[..., Path]
MOST = 120
CUT = PrepareSettings(order="as_read", max_length=MOST)


def by_character(texts: Sequence[str]) -> Encoded:
    return Encoded.of([[*map(ord, text)] for text in texts])


def more_together(texts: Sequence[str]) -> Encoded:
    """A text has more tokens than its parts together."""
    return Encoded.of([[1] * (len(text) + len(text) // 3) for text in texts])


@pytest.mark.parametrize("encode", [by_character, more_together])
@settings(max_examples=60, deadline=None)
@given(text=st.text("ab .\n\u3002", min_size=1, max_size=200), most=st.integers(3, 60))
def test_parts_are_the_text_and_none_is_too_long(
    encode: Callable[[Sequence[str]], Encoded], text: str, most: int
) -> None:
    parts, encoded = parts_of(text, most, encode)
    assert "".join(parts) == text
    assert encoded.lengths.tolist() == encode(parts).lengths.tolist()
    assert encoded.lengths.min() > 0
    assert encoded.lengths.max() <= most


def test_a_text_is_cut_at_the_largest_thing_that_ends() -> None:
    paragraphs = ["One two.\n\n", "Three four.\n \n", "Five.\n\n", "Six."]
    assert parts_of("".join(paragraphs), 24, by_character)[0] == ["One two.\n\nThree four.\n \n", "Five.\n\nSix."]
    assert parts_of("a line\nanother one\nlast", 12, by_character)[0] == ["a line\n", "another one\n", "last"]
    assert parts_of("Is it? It is. So be it.", 14, by_character)[0] == ["Is it? It is. ", "So be it."]
    assert parts_of("one two three", 8, by_character)[0] == ["one two ", "three"]
    assert parts_of("abcdefg", 3, by_character)[0] == ["abc", "def", "g"]
    with pytest.raises(Unusable, match="a character of more than the 2 tokens"):
        parts_of("ab", 2, lambda texts: Encoded.of([[1] * 3 * len(text) for text in texts]))


def test_each_document_is_numbered_among_its_neighbours_of_one_hash() -> None:
    hashes = np.array([5, 7, 7, 7, 9, 9, 4], np.uint64)
    assert part_numbers(hashes, 0, 7) == [0, 1, 2, 3, 1, 2, 0]
    for first in range(7):
        for end in range(first + 1, 8):
            assert part_numbers(hashes, first, end) == [0, 1, 2, 3, 1, 2, 0][first:end]
    assert part_numbers(hashes[:0], 0, 0) == []


def test_parts_are_what_their_texts_are_as_documents(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    documents = [{"text": text, "id": f"d{number}", "quality": number / 2} for number, text in enumerate(texts[:25])]
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps(one) + "\n" for one in documents))
    parts: list[str] = []
    ids: list[str] = []
    for one in documents:
        whole = len(tokenizer.encode_batch([one["text"]])[0])
        of_one = [one["text"]] if whole < MOST else parts_of(one["text"], MOST - 1, tokenizer.encode_flat)[0]
        parts += of_one
        ids += [one["id"]] * len(of_one)
    assert len(parts) > len(documents) + 10
    spelled = write_jsonl("parts.jsonl", parts)
    done = prepare([str(corpus)], tokenizer_folder, tmp_path / "cut", replace(CUT, id_key="id")).training
    prepare([str(spelled)], tokenizer_folder, tmp_path / "spelled", PrepareSettings(order="as_read"))
    for ending in ("bin", "idx"):
        assert (tmp_path / f"cut.{ending}").read_bytes() == (tmp_path / f"spelled.{ending}").read_bytes()
    assert int(IndexedDataset(tmp_path / "cut").sequence_lengths.max()) <= MOST
    assert done.cut == len({one for one in ids if ids.count(one) > 1})
    assert done.bytes == sum(len(one["text"].encode()) for one in documents)
    assert [json.loads(line) for line in (tmp_path / "cut.ids.jsonl").read_text().splitlines()] == ids
    assert main(["score", f"{tmp_path}/cut", "--by", "field", "--field", "quality"]) == 0
    assert read_score(tmp_path / "cut", "field", done).tolist() == [int(one[1:]) / 2 for one in ids]
    # All parts have the hash of the whole, which is that of the same document where it is not cut.
    prepare([str(corpus)], tokenizer_folder, tmp_path / "whole", PrepareSettings(order="as_read"))
    of_whole = documents_column(tmp_path / "whole", load_manifest(tmp_path / "whole"))["content_hash"]
    of_parts = documents_column(tmp_path / "cut", done)["content_hash"]
    assert of_parts.tolist() == [of_whole[int(one[1:])] for one in ids]


def test_all_parts_are_held_out_or_copies_where_the_whole_would_be(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = [str(write_jsonl("a.jsonl", [*texts[:30], *texts[:4]]))]
    shuffled = replace(CUT, order="shuffled", holdout=0.3)
    cut = prepare(corpus, tokenizer_folder, tmp_path / "cut", shuffled)
    whole = prepare(corpus, tokenizer_folder, tmp_path / "whole", replace(shuffled, max_length=None))
    assert cut.validation is not None and whole.validation is not None
    for name, one, other in (
        (".validation", cut.validation, whole.validation),
        ("", cut.training, whole.training),
    ):
        hashes = documents_column(tmp_path / f"cut{name}", one)["content_hash"].tolist()
        assert set(hashes) == set(documents_column(tmp_path / f"whole{name}", other)["content_hash"].tolist())
        # The parts of a document are together.
        assert len(set(hashes)) == 1 + sum(a != b for a, b in pairwise(hashes)) < len(hashes)
    listed = [json.loads(line) for line in (tmp_path / "cut.duplicates.jsonl").read_text().splitlines()]
    assert len({entry["line"] for entry in listed}) == whole.training.duplicates == 4
    assert cut.training.duplicates == len(listed) > 4
    numbered = [entry["part"] for entry in listed if entry["line"] == listed[-1]["line"]]
    assert numbered == [*range(1, len(numbered) + 1)] and len(numbered) > 1

    # As an input: no part is a copy of another, and what was held out stays held out.
    again = prepare([str(tmp_path / "cut")], tokenizer_folder, tmp_path / "again", PrepareSettings())
    assert (again.training.documents, again.training.duplicates) == (cut.training.documents, 0)
    assert again.training.cut == sum(hashes.count(one) > 1 for one in set(hashes))
    twice = prepare([*corpus, str(tmp_path / "cut")], tokenizer_folder, tmp_path / "twice", PrepareSettings())
    assert twice.training.documents == 30
    known = PrepareSettings(dedup_against={str(tmp_path / "whole"): ""}, holdout=0.0)
    with pytest.raises(BadInput, match="would get no document"):
        prepare([str(tmp_path / "cut")], tokenizer_folder, tmp_path / "none", known)


def test_near_duplicates_are_found_part_by_part(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    pytest.importorskip("rensa")
    book = "\n\n".join(" ".join(text.split()) for text in texts[:12])
    corpus = [str(write_jsonl("a.jsonl", [book, book.replace("the", "teh", 2)]))]
    near = replace(CUT, near_duplicates=0.75, max_length=2000)
    done = prepare(corpus, tokenizer_folder, tmp_path / "out", near).training
    assert done.near_duplicates == done.documents > 1


def test_short_documents_are_left_out_and_counted(
    tmp_path: Path,
    write_jsonl: WriteJsonl,
    tokenizer_folder: Path,
    texts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    lengths = [len(ids) + 1 for ids in tokenizer.encode_batch(texts[:40])]
    least = sorted(lengths)[15]
    corpus = write_jsonl("a.jsonl", texts[:40])
    words = ["prepare", str(corpus), "--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet"]
    words += ["--min-length", str(least), "--output", f"{tmp_path}/out"]
    assert main(words) == 0
    short = sum(length < least for length in lengths)
    assert f"left out {short} documents by --min-length" in capsys.readouterr().out
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.filtered, manifest.filtered_by, manifest.rejected) == (short, {"--min-length": short}, 0)
    assert IndexedDataset(tmp_path / "out").sequence_lengths.tolist() == [n for n in lengths if n >= least]
    assert main([*words, "--limit", "40"]) == 0
    assert f"left out {short} documents by --min-length" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-length", "9"], "--max-length 9: must be 16 or more"),
        (["--max-length", "90", "--split-sentences"], "a document of sentences is not cut"),
        (["--min-length", "100000"], "would get no document. Left out: --min-length 2"),
    ],
)
def test_lengths_that_cannot_be_are_refused(
    words: list[str],
    message: str,
    tmp_path: Path,
    write_jsonl: WriteJsonl,
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = write_jsonl("a.jsonl", ["one", "two"])
    call = ["prepare", str(corpus), "--tokenizer", str(tokenizer_folder), "--quiet", "--output", f"{tmp_path}/out"]
    assert main([*call, *words]) == 2
    assert message in capsys.readouterr().err
