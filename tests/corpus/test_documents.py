import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus import documents
from megatron_cpt.corpus.documents import Document, Rejected, input_files, read_documents

BAD = [
    (b'{"text": "no end}', "broken JSON"),
    (b'{"other": "x"}', "no key 'text'"),
    (b'{"text": null}', "'text' is not a string"),
    (b'{"text": 3}', "'text' is not a string"),
    (b'{"text": ["a"]}', "'text' is not a string"),
    (b'["text"]', "not a JSON object"),
    (b"", "blank line"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"text": "\\ud800"}', "broken JSON"),
    (b'{"text": ""}', "empty text"),
    (b'{"text": " \\n"}', "empty text"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_rejected_with_its_place_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    first, bad, last = read_documents([path], "text")
    assert isinstance(first, Document) and isinstance(last, Document) and isinstance(bad, Rejected)
    assert (first.text, last.text, last.line) == ("one", "two", 3)
    assert (bad.file, bad.line) == (0, 2)
    assert reason in bad.reason


def test_a_cut_last_line_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "tw')
    assert [type(line) for line in read_documents([path], "text")] == [Document, Rejected]


def test_text_that_looks_odd_is_kept_as_it_is(tmp_path: Path) -> None:
    texts = ["a\r\nb", "nul\x00", "line\u2028separator\x85", "\ufeffmark", "😀"]
    path = tmp_path / "corpus.jsonl"
    lines = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    read = list(read_documents([path], "text"))
    assert [line.text for line in read if isinstance(line, Document)] == texts
    assert read[-1].position == path.stat().st_size  # type: ignore[union-attr]


LINES = b"".join(b'{"body": "%d"}\n' % number for number in range(5000))


def zstd(content: bytes) -> bytes:
    """Three frames, the last with an empty one behind it, as parallel compressors and `cat` leave them."""
    parts = [content[:7], content[7:1000], content[1000:], b""]
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstd)])
def test_a_compressed_file_reads_as_plain(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(compress(LINES))
    read = list(read_documents([path], "body"))
    assert [line.text for line in read] == [str(number) for number in range(5000)]  # type: ignore[union-attr]
    assert read[-1].position == path.stat().st_size  # type: ignore[union-attr]


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
@pytest.mark.parametrize("damage", [slice(0, -5), slice(2, None), slice(0, 100)])
def test_a_broken_compressed_file_is_an_integrity_fault(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes], damage: slice
) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(compress(LINES)[damage])
    with pytest.raises(IntegrityFault, match=rf"a\.jsonl\.{ending}: is not a whole"):
        list(read_documents([path], "body"))


def test_a_line_over_the_limit_is_skipped_and_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST_DOCUMENT", 30)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + b'{"text": "%s"}\n' % (b"x" * 200) + b'{"text": "two"}')
    (tmp_path / "b.txt").write_text("x" * 31)
    read = list(read_documents(input_files([str(tmp_path)]), "text"))
    places = [(type(line), line.file, line.line) for line in read]
    assert places == [(Document, 0, 1), (Rejected, 0, 2), (Document, 0, 3), (Rejected, 1, 1)]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("two\nlines")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    (tmp_path / "c.txt").write_text("")
    documents = list(read_documents(input_files([str(tmp_path)]), "text"))
    assert documents == [
        Document("two\nlines", 0, 1, 9),
        Rejected(1, 1, "invalid UTF-8"),
        Rejected(2, 1, "empty text"),
    ]


def test_inputs_are_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt", "notes.md"):
        (tmp_path / name).write_text("x")
    names = [path.name for path in input_files([str(tmp_path / "*.txt"), str(tmp_path / "*.jsonl")])]
    assert names == ["c.txt", "a.jsonl", "b.jsonl"]
    assert [path.name for path in input_files([str(tmp_path)])] == ["a.jsonl", "b.jsonl", "c.txt"]


def test_every_wrong_input_is_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("x")
    (tmp_path / "b.pdf").write_text("x")
    with pytest.raises(BadInput) as caught:
        input_files([str(tmp_path / name) for name in ("missing", "b.pdf", "a.jsonl", "a.jsonl")])
    assert [fault.rule for fault in caught.value.faults] == [
        "is not there, or holds no corpus file.",
        "is not a kind of file that is read.",
        "is named twice.",
    ]
