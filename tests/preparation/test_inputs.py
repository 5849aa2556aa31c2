import gzip
from pathlib import Path

import pytest
import zstandard

from megatron_cpt.config.errors import BadInput
from megatron_cpt.preparation.inputs import Input, input_files

LINE = b'{"text": "x"}\n'


def test_inputs_are_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", "notes.md"):
        (tmp_path / name).write_text("x")
    names = [source.path.name for source in input_files([str(tmp_path / "*.txt"), str(tmp_path / "*.jsonl")])]
    assert names == ["c.txt", "a.jsonl", "b.jsonl"]
    assert [source.path.name for source in input_files([str(tmp_path)])] == ["a.jsonl", "b.jsonl", "c.txt"]


@pytest.mark.parametrize(
    ("name", "content", "kind", "compression"),
    [
        ("a.jsonl", LINE, "json_lines", None),
        ("a.json", LINE, "json_lines", None),
        ("a.ndjson", LINE, "json_lines", None),
        ("a.jsonl.gz", gzip.compress(LINE, mtime=0), "json_lines", "gzip"),
        ("a.jsonl.zst", zstandard.compress(LINE), "json_lines", "Zstandard"),
        # A wrong name does no harm where the content tells.
        ("a.jsonl", zstandard.compress(LINE), "json_lines", "Zstandard"),
        ("a.jsonl.gz", LINE, "json_lines", None),
        ("part-00000", LINE, "json_lines", None),
        ("part-00000", gzip.compress(LINE, mtime=0), "json_lines", "gzip"),
        ("a.txt", b"x", "text", None),
        ("a.txt.gz", gzip.compress(b"x", mtime=0), "text", "gzip"),
        ("part-00000", b"PAR1....", "parquet", None),
    ],
)
def test_what_a_file_is_is_told_by_its_content(
    tmp_path: Path, name: str, content: bytes, kind: str, compression: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert input_files([str(path)]) == [Input(path, kind, compression)]  # type: ignore[arg-type]


def test_lines_of_a_text_file_are_documents_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_bytes(LINE)
    assert [source.kind for source in input_files([str(tmp_path)], document_per_line=True)] == [
        "text_lines",
        "json_lines",
    ]


def test_every_wrong_input_is_listed_at_once(tmp_path: Path) -> None:
    contents = {
        "a.jsonl": LINE,
        "b.pdf": b"x",
        "c.json": b'[{"text": "x"}]',
        "d.parquet": b"x",
        "e.jsonl.gz": gzip.compress(LINE, mtime=0)[2:],
        "f.jsonl.zst": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        input_files([str(tmp_path / name) for name in ("missing", *contents, "a.jsonl")])
    assert [fault.rule for fault in caught.value.faults] == [
        "is not there, or holds no corpus file.",
        "is not a kind of file that is read.",
        "is one JSON array, not JSON lines.",
        "is not a parquet file.",
        "is not a whole gzip or Zstandard file.",
        "is not a whole gzip or Zstandard file.",
        "is named twice.",
    ]
