"""Documents from files: JSON lines, plain or gzipped, and .txt with one document a file.

Every line is either a document or is rejected with its place and reason; nothing is dropped in
silence and a bad line never ends the reading of its file.
"""

import glob
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
    """Every document or rejected line of the files, in order. IntegrityFault: a broken gzip file."""
    for number, path in enumerate(files):
        if path.name.endswith(".txt"):
            yield _read_text(path, number)
        else:
            yield from _read_lines(path, number, text_key)


def _read_text(path: Path, number: int) -> Document | Rejected:
    content = path.read_bytes()
    text = _decode(content.removeprefix(_BYTE_ORDER_MARK))
    if isinstance(text, _Reason):
        return Rejected(number, 1, text)
    return Document(text, number, 1, len(content))


def _read_lines(path: Path, number: int, text_key: str) -> Iterator[Document | Rejected]:
    with path.open("rb") as raw:
        compressed = path.name.endswith(".gz")
        lines = enumerate(_gunzip(raw, path) if compressed else raw, start=1)
        position = 0
        for line, content in lines:
            position = raw.tell() if compressed else position + len(content)
            text = _text_of(content.removeprefix(_BYTE_ORDER_MARK) if line == 1 else content, text_key)
            if isinstance(text, _Reason):
                yield Rejected(number, line, text)
            else:
                yield Document(text, number, line, position)


def _gunzip(raw: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=raw, mode="rb") as lines:
            yield from lines
    except (EOFError, OSError, zlib.error) as error:
        raise IntegrityFault(f"{path}: is not a whole gzip file ({error}). Copy it again.") from error


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
