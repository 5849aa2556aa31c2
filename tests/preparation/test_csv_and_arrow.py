"""CSV files, plain and compressed, and the folders that Hugging Face's `datasets` saves."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.preparation import pieces
from megatron_cpt.preparation.inputs import find_inputs
from megatron_cpt.preparation.table import row_spans, rows_of

WriteJsonl = Callable[..., Path]
TRICKY = ['says "no", twice', "two\nlines\r\nof it", "a,b\tc;d", " blanks ", "“漢字”", "x\u2028y\x85z", "''"]


def rows(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": f"d{number}", "body": text, "score": number / 4} for number, text in enumerate(texts)]


def write_csv(path: Path, texts: Sequence[str], delimiter: str = ",") -> bytes:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "body", "score"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows(texts))
    return path.read_bytes()


def prepared(prefix: Path) -> tuple[bytes, bytes, str]:
    names = [prefix.with_name(f"{prefix.name}.{ending}") for ending in ("bin", "idx", "ids.jsonl")]
    return names[0].read_bytes(), names[1].read_bytes(), names[2].read_text()


@pytest.fixture
def words(tokenizer_folder: Path) -> list[str]:
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--text-key", "body"]
    return [*words, "--id-key", "id", "--where", "score >= 1"]


@pytest.fixture
def expected(tmp_path: Path, texts: list[str], words: list[str]) -> tuple[bytes, bytes, str]:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows([*texts, *TRICKY])))
    assert main(["prepare", str(path), *words, "--output", f"{tmp_path}/lines"]) == 0
    return prepared(tmp_path / "lines")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.bz2", "a.csv.xz"])
def test_csv_gives_the_bytes_that_json_lines_give(
    tmp_path: Path, texts: list[str], words: list[str], expected: tuple[bytes, bytes, str], name: str
) -> None:
    path = tmp_path / name
    plain = b"\xef\xbb\xbf" + write_csv(path, [*texts, *TRICKY], "\t" if "tsv" in name else ",")
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(plain))
    assert main(["prepare", str(path), *words, "--output", f"{tmp_path}/out"]) == 0
    assert prepared(tmp_path / "out") == expected


def test_a_row_that_is_wrong_costs_itself_alone_and_a_quote_without_end_is_refused(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    lines = [b"id,body,score", b'1,"one\ntext",5', b"2,two", b"", b"3,\xff\xfe,5", b'4,"four"4,5', b"5,,5", b"6,six,x"]
    path.write_bytes(b"\n".join([*lines, b"7,seven,5"]))
    assert main(["prepare", str(path), *words, "--max-rejected", "90%", "--output", f"{tmp_path}/out"]) == 0
    assert load_manifest(tmp_path / "out").documents == 2
    rejected = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [(line["line"], line["reason"].partition(":")[0]) for line in rejected] == [
        (4, "2 cells where the header has 3"),
        (6, "invalid UTF-8"),
        (7, "broken CSV"),
        (8, "empty text"),
        (9, "score is a text and 1 is a number, which --where cannot compare"),
    ]
    path.write_bytes(gzip.compress(b'id,body,score\n1,one,5\n2,"two,5\n3,three,5\n'))
    other = [word.replace("body", "text") for word in words]
    zipped = path.rename(tmp_path / "b.csv.gz")
    assert main(["prepare", str(zipped), *words, "--output", f"{tmp_path}/other"]) == 2
    assert f"{zipped}: has a quote in line 3 that does not end" in capsys.readouterr().err
    assert main(["prepare", str(zipped), *other, "--output", f"{tmp_path}/other"]) == 2
    assert "Its first line names id, body, score" in capsys.readouterr().err


def test_a_table_of_something_else_in_a_folder_is_not_read(
    tmp_path: Path, write_jsonl: WriteJsonl, texts: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_csv(folder / "a.csv", texts)
    (folder / "sizes.csv").write_text("file,rows\na.csv,80\n")
    with pytest.warns(UserWarning, match=r"1 files of the folders .*sizes\.csv"):
        assert main(["prepare", str(folder), *words, "--output", f"{tmp_path}/out"]) == 0
    (folder / "a.csv").unlink()
    assert main(["prepare", str(folder), *words, "--output", f"{tmp_path}/none"]) == 2
    assert "Its first line names file, rows" in capsys.readouterr().err


def test_a_folder_of_hugging_faces_datasets_is_read_as_it_is(
    tmp_path: Path,
    texts: list[str],
    words: list[str],
    expected: tuple[bytes, bytes, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 5000)
    dataset = datasets.Dataset.from_list(rows([*texts, *TRICKY]))
    dataset.save_to_disk(tmp_path / "saved", num_shards=3)
    found = find_inputs([str(tmp_path / "saved")])
    assert [source.kind for source in found.inputs] == ["arrow"] * 3
    assert main(["prepare", f"{tmp_path}/saved", *words, "--output", f"{tmp_path}/out", "--workers", "2"]) == 0
    assert prepared(tmp_path / "out") == expected


@pytest.mark.parametrize("size", [300, 5000, 1 << 20])
def test_the_spans_of_arrow_files_hold_every_row_once(tmp_path: Path, texts: list[str], size: int) -> None:
    table = pyarrow.table({"body": pyarrow.array(texts, pyarrow.large_string()), "number": list(range(len(texts)))})
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow", chunksize=7)
    with pyarrow.ipc.new_stream(tmp_path / "b.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)
    for name in ("a.arrow", "b.arrow"):
        spans = row_spans(tmp_path / name, "body", size)
        assert [row for start, end, _ in spans for row in range(start, end)] == list(range(len(texts)))
        read = [row for start, end, _ in spans for row in rows_of(tmp_path / name, start, end, ["number", "body", "x"])]
        assert read == [(number, text, None) for number, text in enumerate(texts)]


def test_an_arrow_file_without_the_column_or_cut_short_is_refused(
    tmp_path: Path, texts: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = pyarrow.table({"body": texts, "id": texts, "score": [2.0] * len(texts)})
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=10)
        end = (tmp_path / "a.arrow").stat().st_size
        stream.write_table(table, max_chunksize=10)
    out = ["--output", f"{tmp_path}/out"]
    other = [word.replace("body", "text") for word in words]
    assert main(["prepare", f"{tmp_path}/a.arrow", *other, *out]) == 2
    assert "Its columns are body, id, score" in capsys.readouterr().err
    whole = (tmp_path / "a.arrow").read_bytes()
    for cut in (end, end + 100, len(whole) - 8):
        (tmp_path / "a.arrow").write_bytes(whole[:cut])
        assert main(["prepare", f"{tmp_path}/a.arrow", *words, *out]) == 3
        assert "is not a whole Arrow file" in capsys.readouterr().err
    (tmp_path / "a.arrow").write_bytes(b"text")
    assert main(["prepare", f"{tmp_path}/a.arrow", *words, *out]) == 2
    assert "is not an Arrow file" in capsys.readouterr().err
