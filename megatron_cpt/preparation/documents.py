"""The documents of a piece: JSON lines, lines or whole files of text, rows of a table.

Each is a document or is rejected with its place and reason; nothing is dropped in silence and a bad line
never ends the reading of its file.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from megatron_cpt.preparation.fields import field_of
from megatron_cpt.preparation.inputs import Kind, Piece, lines_of

LONGEST_DOCUMENT = 128 << 20
"""Bytes of a line, or of a .txt file, that are taken for one document: bounds memory."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TOO_LONG = f"longer than {LONGEST_DOCUMENT >> 20} MiB"


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read."""

    text: str
    """Its text, not empty."""
    line: int
    """Its line, or row, from 1 within the piece."""
    place: int
    """The byte of the unpacked input, or the row, at which it begins."""
    id: str = ""
    """What --id-key names; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line or row that gives no document."""

    line: int
    """From 1 within the piece."""
    reason: str
    """Why."""
    id: str = ""
    """What --id-key names, where it could be read."""


@dataclass(frozen=True, slots=True)
class Blank:
    """A line of blanks alone: no document, and nothing that is wrong."""


Line = Document | Rejected | Blank


@dataclass(frozen=True)
class Keys:
    """Where text and id stand in a JSON object or a table; a key may be nested (fields.py)."""

    text: str
    id: str | None = None


def read_piece(piece: Piece, kind: Kind, keys: Keys) -> Iterator[Line]:
    """Every line of a piece, in order. IntegrityFault: a broken parquet file."""
    if kind == "parquet":
        yield from _rows(piece, keys)
    elif kind == "text":
        yield _whole(piece)
    else:
        yield from _lines(piece, kind, keys)


def _whole(piece: Piece) -> Document | Rejected:
    if piece.end > LONGEST_DOCUMENT:
        return Rejected(1, _TOO_LONG)
    text = _decode(piece.path.read_bytes().removeprefix(_BYTE_ORDER_MARK))
    return Rejected(1, text) if isinstance(text, _Reason) else Document(text, 1, 0)


def _lines(piece: Piece, kind: Kind, keys: Keys) -> Iterator[Line]:
    longest = LONGEST_DOCUMENT
    for line, (content, begin) in enumerate(lines_of(piece.path, piece.start, piece.end, longest), start=1):
        if content is None:
            yield Rejected(line, _TOO_LONG)
            continue
        place = piece.base + begin
        if place == 0:
            content = content.removeprefix(_BYTE_ORDER_MARK)
        if not content.strip():
            yield Blank()
            continue
        if kind == "text_lines":
            text, name = _decode(content.rstrip(b"\r\n")), ""
        else:
            text, name = _of_json(content, keys)
        yield Rejected(line, text, name) if isinstance(text, _Reason) else Document(text, line, place, name)


def _rows(piece: Piece, keys: Keys) -> Iterator[Document | Rejected]:
    # Its library takes 50 MB of every process: only where there is a table.
    from megatron_cpt.preparation.parquet import rows_of  # noqa: PLC0415

    columns = [keys.text] if keys.id is None else [keys.text, keys.id]
    for line, values in enumerate(rows_of(piece.path, piece.start, piece.end, columns), start=1):
        name = _name(values[1]) if keys.id is not None else ""
        text = _usable(values[0], keys.text)
        if isinstance(text, _Reason):
            yield Rejected(line, text, name)
        else:
            yield Document(text, line, piece.start + line - 1, name)


_MISSING = object()
"""Stands for a key that is not there, which null is not."""


class _Reason(str):
    """Why a line gives no text."""

    __slots__ = ()


def _of_json(line: bytes, keys: Keys) -> "tuple[str | _Reason, str]":
    """Text, or why there is none, and id of a JSON line."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        value = _by_python(line, error, keys)
        if isinstance(value, _Reason):
            return value, ""
    if not isinstance(value, dict):
        return _Reason("not a JSON object"), ""
    name = _name(field_of(value, keys.id)) if keys.id is not None else ""
    text = field_of(value, keys.text, _MISSING)
    if text is _MISSING:
        return _Reason(f"no key {keys.text!r}"), name
    return _usable(text, keys.text), name


def _by_python(line: bytes, error: orjson.JSONDecodeError, keys: Keys) -> Any:
    """What Python's own json reads of a line and writes, but orjson does not: NaN and Infinity, also in metadata."""
    text = _decode(line)
    if isinstance(text, _Reason):
        return text
    try:
        value = json.loads(text)
        orjson.dumps(list(_texts_of(value, keys)))
    except (ValueError, TypeError, RecursionError):
        return _Reason(f"broken JSON: {error}")
    return value


def _texts_of(value: Any, keys: Keys) -> Iterator[str]:
    """The strings at the top of an object and those that are read of it, which must be texts: a lone surrogate is
    none."""
    if isinstance(value, dict):
        read = (field_of(value, key) for key in (keys.text, keys.id) if key is not None)
        yield from (text for text in (*value.values(), *read) if isinstance(text, str))


def _usable(text: object, key: str) -> "str | _Reason":
    if isinstance(text, bytes):
        return _decode(text)
    if not isinstance(text, str):
        return _Reason(f"{key!r} is not a string")
    return _Reason("empty text") if not text or text.isspace() else text


def _name(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def _decode(content: bytes) -> "str | _Reason":
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return _Reason("invalid UTF-8")
    return _Reason("empty text") if not text or text.isspace() else text
