"""What is known to hang or corrupt Megatron-LM's preparation, one by one, through the whole of ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import verify_dataset
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.tools.test_preprocess_data import script

BAD_LINES = {
    "an unterminated string": (b'{"text": "no end}\n', "broken JSON"),
    "a missing key": (b'{"other": "x"}\n', "no key 'text'"),
    "null for a text": (b'{"text": null}\n', "'text' is not a string"),
    "text that is no number": (b'{"text": NaN}\n', "'text' is not a string"),
    "NaN and a lone surrogate": (b'{"text": "\\ud800", "score": NaN}\n', "broken JSON"),
    "invalid UTF-8": (b'{"text": "\xff"}\n', "invalid UTF-8"),
    "a lone surrogate": (b'{"text": "\\ud800"}\n', "broken JSON"),
    "an empty text": (b'{"text": ""}\n', "empty text"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_costs_itself_alone(tmp_path: Path, tokenizer_folder: Path, name: str) -> None:
    line, reason = BAD_LINES[name]
    good = [b'{"text": "document %d"}\n' % number for number in range(20)]
    (tmp_path / "a.jsonl").write_bytes(b"".join([*good[:10], line, *good[10:]]))
    settings = PrepareSettings(max_rejected=0.1)
    prepared = prepare([str(tmp_path / "a.jsonl")], tokenizer_folder, tmp_path / "x", settings, workers=2)
    assert (prepared.training.documents, prepared.training.rejected) == (20, 1)
    listed = json.loads((tmp_path / "x.rejected.jsonl").read_text())
    assert listed["line"] == 11
    assert reason in listed["reason"]


def test_a_last_line_that_is_cut_short_costs_itself_alone(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": "two"}\n{"text": "thr')
    settings = PrepareSettings(max_rejected=0.5)
    prepared = prepare([str(tmp_path / "a.jsonl")], tokenizer_folder, tmp_path / "x", settings, workers=2)
    assert (prepared.training.documents, prepared.training.rejected) == (2, 1)


def numbers(size: int) -> Tokenizer:
    """A vocabulary of so many ids, the last of which closes documents."""
    return Tokenizer.of(Path("numbers"), script("preprocess_data").open_numbers(size - 1))


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (65_499, "uint16"),
        (65_500, "int32"),
        (65_535, "int32"),
        (65_536, "int32"),
        (65_537, "int32"),
        (152_064, "int32"),
    ],
)
def test_vocabularies_near_65536_come_back_exactly(tmp_path: Path, size: int, dtype: str) -> None:
    ids = [0, 1, size - 2]
    texts = [" ".join(map(str, ids)), f"{size}", "-1"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = PrepareSettings(order="as_read", max_rejected=1.0)
    prepared = prepare([str(tmp_path / "a.jsonl")], numbers(size), tmp_path / "x", settings, workers=1, fast=False)
    # An id behind the last and one below the first are refused, never wrapped.
    assert (prepared.training.rejected, prepared.training.dtype) == (2, dtype)
    assert IndexedDataset(tmp_path / "x").tokens.tolist() == [*ids, size - 1]
    verify_dataset(tmp_path / "x")


def test_a_library_that_gives_ids_outside_its_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "70000"}\n')
    tokenizer = numbers(80_000)
    narrow = Tokenizer(
        **{**tokenizer.__dict__, "vocabulary_size": 60_000, "_eod": 5, "_control": np.zeros(80_000, bool)}
    )
    with pytest.raises(BadInput, match="gives ids outside 0 to 59999"):
        prepare([str(tmp_path / "a.jsonl")], narrow, tmp_path / "x", workers=1, fast=False)
    assert not (tmp_path / "x.idx").exists()


def test_blank_lines_are_no_documents_and_nan_in_metadata_is_read(tmp_path: Path, tokenizer_folder: Path) -> None:
    """As Python's json writes them; places of rejected lines still count every line."""
    lines = [b'{"text": "document %d", "score": NaN, "far": [-Infinity, Infinity]}' % number for number in range(300)]
    (tmp_path / "a.jsonl").write_bytes(b"\n" + b"\n \t\n".join([*lines, b"{broken", b""]) + b"\n\n")
    settings = PrepareSettings(order="as_read")
    manifest = prepare([str(tmp_path / "a.jsonl")], tokenizer_folder, tmp_path / "x", settings, workers=2).training
    assert (manifest.documents, manifest.rejected) == (300, 1)
    listed = json.loads((tmp_path / "x.rejected.jsonl").read_text())
    assert (tmp_path / "a.jsonl").read_bytes().split(b"\n")[listed["line"] - 1] == b"{broken"
    clean = b"\n".join(line.replace(b"NaN", b"1").replace(b"-Infinity, Infinity", b"") for line in lines)
    (tmp_path / "b.jsonl").write_bytes(clean)
    prepare([str(tmp_path / "b.jsonl")], tokenizer_folder, tmp_path / "y", settings)
    assert (tmp_path / "x.bin").read_bytes() == (tmp_path / "y.bin").read_bytes()


def test_the_reason_that_most_lines_share_is_told(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n' * 20)
    with pytest.raises(BadInput, match=r"20 of 20 documents: were rejected, .*, all because: no key 'text';"):
        prepare([str(tmp_path / "a.jsonl")], tokenizer_folder, tmp_path / "x")
