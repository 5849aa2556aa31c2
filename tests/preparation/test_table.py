"""Parquet input: every row a document or rejected, whatever the row groups and pieces."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.preparation import pieces
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.preparation.table import row_spans, rows_of
from megatron_cpt.tokenizer.tokenizer import Tokenizer

WriteJsonl = Callable[..., Path]


def write_table(path: Path, texts: list[str | None], rows_of_group: int, kind: pyarrow.DataType) -> Path:
    columns = {"body": pyarrow.array(texts, kind), "number": list(range(len(texts)))}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_of_group)
    return path


@pytest.mark.parametrize("size", [300, 5000, 1 << 20])
@pytest.mark.parametrize("rows_of_group", [7, 1000])
def test_the_spans_hold_every_row_once(tmp_path: Path, texts: list[str], rows_of_group: int, size: int) -> None:
    path = write_table(tmp_path / "a.parquet", [*texts], rows_of_group, pyarrow.string())
    spans = row_spans(path, "body", size)
    assert [row for start, end, _ in spans for row in range(start, end)] == list(range(len(texts)))
    read = [row for start, end, _ in spans for row in rows_of(path, start, end, ["number", "body", "none"])]
    assert read == [(number, text, None) for number, text in enumerate(texts)]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_a_table_gives_the_bytes_that_json_lines_give(
    tmp_path: Path,
    write_jsonl: WriteJsonl,
    tokenizer_folder: Path,
    texts: list[str],
    kind: pyarrow.DataType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = PrepareSettings(order="as_read")
    prepare([str(write_jsonl("a.jsonl", texts))], tokenizer_folder, tmp_path / "lines", settings)
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 4000)
    path = write_table(tmp_path / "a.parquet", [*texts], 9, kind)
    settings = PrepareSettings(order="as_read", text_key="body", id_key="number")
    prepare([str(path)], tokenizer_folder, tmp_path / "rows", settings, workers=2)
    for ending in ("bin", "idx"):
        assert Path(f"{tmp_path}/rows.{ending}").read_bytes() == Path(f"{tmp_path}/lines.{ending}").read_bytes()
    ids = [json.loads(line) for line in Path(f"{tmp_path}/rows.ids.jsonl").read_text().splitlines()]
    assert ids == [str(number) for number in range(len(texts))]


def test_rows_without_text_are_rejected_with_their_number(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = write_table(tmp_path / "a.parquet", ["one", None, " \n", "two"], 2, pyarrow.string())
    settings = PrepareSettings(text_key="body", id_key="number", max_rejected=0.5, order="as_read")
    prepare([str(path)], tokenizer_folder, tmp_path / "x", settings)
    listed = [json.loads(line) for line in Path(f"{tmp_path}/x.rejected.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["id"], entry["reason"]) for entry in listed] == [
        (2, "1", "'body' is not a string"),
        (3, "2", "empty text"),
    ]
    tokenizer, dataset = Tokenizer.load(tokenizer_folder), IndexedDataset(tmp_path / "x")
    assert [tokenizer.decode(dataset.document(n)[:-1].tolist()) for n in range(2)] == ["one", "two"]


def test_a_table_without_the_column_or_cut_short_is_refused(tmp_path: Path, texts: list[str]) -> None:
    path = write_table(tmp_path / "a.parquet", [*texts], 9, pyarrow.string())
    with pytest.raises(BadInput, match=r"--text-key text.*Its columns are body, number"):
        row_spans(path, "text", 1000)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityFault, match="is not a whole parquet file"):
        row_spans(path, "body", 1000)


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_a_cell_that_is_no_text_costs_itself_alone(tmp_path: Path, tokenizer_folder: Path, kind: str) -> None:
    cells = pyarrow.array([b"one", b"\xff\xfe", None, b"two \xc3\xa9"], pyarrow.binary())
    if kind == "string":
        cells = pyarrow.StringArray.from_buffers(4, *cells.buffers()[1:], cells.buffers()[0])
    elif kind == "large_string":
        large = cells.cast(pyarrow.large_binary()).buffers()
        cells = pyarrow.LargeStringArray.from_buffers(4, *large[1:], large[0])
    elif kind == "dictionary":
        buffers = cells.drop_null().buffers()
        texts = pyarrow.StringArray.from_buffers(3, *buffers[1:])
        cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 1, None, 2], pyarrow.int32()), texts)
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": cells}), path)
    settings = PrepareSettings(max_rejected=0.5, order="as_read")
    prepare([str(path)], tokenizer_folder, tmp_path / "x", settings)
    listed = [json.loads(line) for line in Path(f"{tmp_path}/x.rejected.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in listed] == [
        (2, "invalid UTF-8"),
        (3, "'text' is not a string"),
    ]
    tokenizer, dataset = Tokenizer.load(tokenizer_folder), IndexedDataset(tmp_path / "x")
    assert [tokenizer.decode(dataset.document(n)[:-1].tolist()) for n in range(2)] == ["one", "two é"]


def test_columns_of_one_name_matter_only_where_they_are_read(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = [pyarrow.array(["one", "two"]), pyarrow.array([1, 2]), pyarrow.array([3, 4])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["text", "score", "score"]), path)
    assert prepare([str(path)], tokenizer_folder, tmp_path / "x").training.documents == 2
    columns = [pyarrow.array(["one"]), pyarrow.array(["two"])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["text", "text"]), path)
    with pytest.raises(BadInput, match="--text-key text: names 2 columns of"):
        prepare([str(path)], tokenizer_folder, tmp_path / "y")
