import json
from pathlib import Path

import pytest

from megatron_cpt.preparation import documents
from megatron_cpt.preparation.documents import Blank, Document, Keys, Line, Rejected, read_piece
from megatron_cpt.preparation.input_kinds import Kind
from megatron_cpt.preparation.pieces import Piece

BAD = [
    (b'{"text": "no end}', "broken JSON"),
    (b'{"other": "x"}', "no key 'text'"),
    (b'{"text": null}', "'text' is not a string"),
    (b'{"text": 3}', "'text' is not a string"),
    (b'{"text": ["a"]}', "'text' is not a string"),
    (b'["text"]', "not a JSON object"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"text": "\\ud800"}', "broken JSON"),
    (b'{"text": ""}', "empty text"),
    (b'{"text": " \\n"}', "empty text"),
]


def read(path: Path, text_key: str = "text", kind: Kind = "json_lines", **keys: str) -> list[Line]:
    """A file as one piece."""
    return list(read_piece(Piece(0, 0, path, 0, path.stat().st_size), kind, Keys(text_key, **keys)))


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_rejected_with_its_place_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    first, bad, last = read(path)
    assert isinstance(first, Document) and isinstance(last, Document) and isinstance(bad, Rejected)
    assert (first.text, last.text, last.line) == ("one", "two", 3)
    assert bad.line == 2
    assert reason in bad.reason


def test_a_cut_last_line_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "tw')
    assert [type(line) for line in read(path)] == [Document, Rejected]


def test_text_that_looks_odd_is_kept_as_it_is(tmp_path: Path) -> None:
    texts = ["a\r\nb", "nul\x00", "line\u2028separator\x85", "\ufeffmark", "😀"]
    path = tmp_path / "corpus.jsonl"
    lines = "\r\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    found = read(path)
    assert [line.text for line in found if isinstance(line, Document)] == texts
    content = path.read_bytes()
    for document, text in zip(found, texts, strict=True):
        assert isinstance(document, Document)
        assert json.loads(content[document.place :].removeprefix(b"\xef\xbb\xbf").split(b"\r\n")[0])["text"] == text


@pytest.mark.parametrize("size", [1, 7, 16, 64, 1000])
def test_pieces_of_any_size_give_every_line_once(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "%s"}' % (b"x" * (n * 7 % 40 + 1)) for n in range(50)]
    path.write_bytes(b"\n".join(lines))
    end = path.stat().st_size
    found = [
        line
        for start in range(0, end, size)
        for line in read_piece(Piece(0, 0, path, start, min(end, start + size)), "json_lines", Keys("text"))
    ]
    assert [line.text for line in found] == [json.loads(line)["text"] for line in lines]  # type: ignore[union-attr]
    places = [sum(len(line) + 1 for line in lines[:n]) for n in range(50)]
    assert [line.place for line in found] == places  # type: ignore[union-attr]


def test_a_line_over_the_limit_is_skipped_and_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST_DOCUMENT", 30)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + b'{"text": "%s"}\n' % (b"x" * 200) + b'{"text": "two"}')
    assert [(type(line), line.line) for line in read(path)] == [(Document, 1), (Rejected, 2), (Document, 3)]
    (tmp_path / "b.txt").write_text("x" * 31)
    assert [type(line) for line in read(tmp_path / "b.txt", kind="text")] == [Rejected]


def test_a_text_file_is_one_document_or_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("two\nlines\r\n\nafter a blank one")
    assert read(path, kind="text") == [Document(path.read_bytes().decode(), 1, 0)]
    assert read(path, kind="text_lines") == [
        Document("two", 1, 0),
        Document("lines", 2, 4),
        Blank(),
        Document("after a blank one", 4, 12),
    ]
    path.write_bytes(b"\xff")
    assert read(path, kind="text") == [Rejected(1, "invalid UTF-8")]
    path.write_text("")
    assert read(path, kind="text") == [Rejected(1, "empty text")]


def test_ids_stand_with_documents_and_rejected_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "url": "a"}\n{"text": "two"}\n{"url": 3, "text": ""}\n')
    assert [line.id for line in read(path, id="url") if not isinstance(line, Blank)] == ["a", "", "3"]
