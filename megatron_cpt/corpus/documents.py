"""Documents from files: JSON lines, plain or compressed, and .txt with one document a file.

Every line is either a document or is rejected with its place and reason; nothing is dropped in
silence and a bad line never ends the reading of its file.
"""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.lines import COMPRESSED, read_lines

JSON_LINES = (".jsonl", ".json")
SUFFIXES = (*JSON_LINES, *(kind + ending for kind in JSON_LINES for ending in COMPRESSED), ".txt")
LONGEST_DOCUMENT = 128 << 20
"""Bytes of a line, or of a .txt file, that are taken for one document: bounds memory."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TOO_LONG = f"longer than {LONGEST_DOCUMENT >> 20} MiB"


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read."""

    text: str
    """Its text, not empty."""
    file: int
    """Number of the file among the inputs."""
    line: int
    """Line of the file, from 1."""
    position: int
    """Bytes of the file read so far (compressed ones, in a compressed file)."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that gives no document."""

    file: int
    """Number of the file among the inputs."""
    line: int
    """Line of the file, from 1."""
    reason: str
    """Why."""


def input_files(paths: Sequence[str]) -> list[Path]:
    """The files that paths, folders and globs name, in the order given, those of one folder or glob by name.

    Raises BadInput listing each path that is missing, of an unknown kind, or named twice.
    """
    faults: list[Fault] = []
    files: list[Path] = []
    for text in paths:
        found = _files_of(text)
        if not found:
            faults.append(Fault(text, "is not there, or holds no corpus file.", f"Give {', '.join(SUFFIXES)} files."))
        for file in found:
            if not file.name.endswith(SUFFIXES):
                faults.append(Fault(str(file), "is not a kind of file that is read.", f"Use {', '.join(SUFFIXES)}."))
            elif file in files:
                faults.append(Fault(str(file), "is named twice.", "Name each input once."))
            files.append(file)
    if faults:
        raise BadInput(*faults)
    return files


def _files_of(text: str) -> list[Path]:
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
    return [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]


def read_documents(files: Sequence[Path], text_key: str) -> Iterator[Document | Rejected]:
    """Every document or rejected line of the files, in order. IntegrityFault: a broken compressed file."""
    for number, path in enumerate(files):
        if path.name.endswith(".txt"):
            yield _read_text(path, number)
        else:
            yield from _read_lines(path, number, text_key)


def _read_text(path: Path, number: int) -> Document | Rejected:
    if path.stat().st_size > LONGEST_DOCUMENT:
        return Rejected(number, 1, _TOO_LONG)
    content = path.read_bytes()
    text = _decode(content.removeprefix(_BYTE_ORDER_MARK))
    if isinstance(text, _Reason):
        return Rejected(number, 1, text)
    return Document(text, number, 1, len(content))


def _read_lines(path: Path, number: int, text_key: str) -> Iterator[Document | Rejected]:
    for line, (content, position) in enumerate(read_lines(path, LONGEST_DOCUMENT), start=1):
        if content is None:
            yield Rejected(number, line, _TOO_LONG)
            continue
        text = _text_of(content.removeprefix(_BYTE_ORDER_MARK) if line == 1 else content, text_key)
        if isinstance(text, _Reason):
            yield Rejected(number, line, text)
        else:
            yield Document(text, number, line, position)


class _Reason(str):
    """Why a line gives no text."""

    __slots__ = ()


def _text_of(line: bytes, text_key: str) -> str | _Reason:
    if not line.strip():
        return _Reason("blank line")
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        reason = _decode(line)
        return reason if isinstance(reason, _Reason) else _Reason(f"broken JSON: {error}")
    if not isinstance(value, dict):
        return _Reason("not a JSON object")
    if text_key not in value:
        return _Reason(f"no key {text_key!r}")
    text = value[text_key]
    if not isinstance(text, str):
        return _Reason(f"{text_key!r} is not a string")
    return text if text.strip() else _Reason("empty text")


def _decode(content: bytes) -> str | _Reason:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return _Reason("invalid UTF-8")
    return text if text.strip() else _Reason("empty text")
