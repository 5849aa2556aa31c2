"""The documents of a piece: JSON lines, lines or whole files of text, rows of a table; or conversations in JSON lines.

Each is a document or is rejected with its place and reason; nothing is dropped in silence and a bad line
never ends the reading of its file.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.conversations import Conversation, Unusable, read_conversation
from megatron_cpt.preparation.fields import Cell, Condition, Unanswerable, field_of
from megatron_cpt.preparation.input_kinds import DELIMITERS, TABLES, WHOLE, Input, Kind, csv_rows, plain_stream
from megatron_cpt.preparation.pieces import Piece, lines_of, piece_size, spans, unpacked

LONGEST_DOCUMENT = 128 << 20
"""Bytes of a line, or of a .txt file, that are taken for one document: bounds memory."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TOO_LONG = f"longer than {LONGEST_DOCUMENT >> 20} MiB"


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read."""

    text: str
    """Its text, not empty where it has no `tokens`."""
    line: int
    """Its line, or row, from 1 within the piece."""
    place: int
    """The byte of the unpacked input, or the row, at which it begins."""
    id: str = ""
    """What --id-key names; empty where there is none."""
    tokens: npt.NDArray[np.int32] | None = None
    """Its ids, without BOS and EOD, where it was tokenized before (indexed_input.py)."""
    hashed: tuple[int, int] | None = None
    """Hash and UTF-8 bytes of its text, where they are known; the text is empty then unless it is needed."""
    conversation: Conversation | None = None
    """What is said in it by whom (--chat); the text is what is said."""
    part: int = 0
    """Its number, from 1, among the parts of a document that was cut; 0: it is whole."""

    @property
    def content(self) -> bytes:
        """What makes it another document than others."""
        return self.text.encode() if self.conversation is None else self.conversation.canonical


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


OUTSIDE = "--where"
"""Why a document is left out, as a reason that is counted."""


@dataclass(frozen=True, slots=True)
class Filtered:
    """A document that does not meet --where."""


Line = Document | Rejected | Blank | Filtered


TokenizedPieces = Callable[[Piece], Iterator[Document]]
"""The documents of a piece of a dataset."""


@dataclass(frozen=True)
class Keys:
    """Where text and id stand in a JSON object or a table; a key may be nested (fields.py)."""

    text: str
    id: str | None = None
    where: Condition | None = None
    """What documents must meet. Those that cannot be judged are rejected."""
    chat: bool = False
    """Whether each JSON object is a conversation, by its own keys (conversations.py)."""


def read_piece(piece: Piece, kind: Kind, keys: Keys, tokenized: TokenizedPieces | None = None) -> Iterator[Line]:
    """Every line of a piece, in order. IntegrityFault: a broken parquet file or dataset.

    `tokenized` reads pieces of datasets; without it BadInput is raised for them.
    """
    if kind == "indexed":
        if tokenized is None:
            rule = "is a dataset, whose documents have no fields."
            raise BadInput(Fault(str(piece.path.with_suffix("")), rule, "Name the files of text."))
        yield from tokenized(piece)
    elif kind in TABLES:
        yield from _rows(piece, keys)
    elif kind in DELIMITERS:
        yield from _cells(piece, DELIMITERS[kind], keys)
    elif kind == "text":
        yield _whole(piece, keys)
    else:
        yield from _lines(piece, kind, keys)


def read_inputs(
    inputs: Sequence[Input], keys: Keys, tokenized: TokenizedPieces | None = None
) -> Iterator[tuple[int, Line]]:
    """Every line of whole inputs, in the order read, with the number of its file. Raises as `read_piece` does."""
    size = piece_size(inputs)
    for span in spans(inputs, size, keys.text):
        file = span.piece.file
        source = inputs[file]
        if not span.streamed:
            yield from ((file, line) for line in read_piece(span.piece, source.kind, keys, tokenized))
            continue
        with TemporaryDirectory() as folder, plain_stream(source) as stream:
            for piece in unpacked(stream, file, source.kind in WHOLE, False, Path(folder), size):
                piece = replace(piece, origin=str(source.path))
                yield from ((file, line) for line in read_piece(piece, source.kind, keys))
                piece.path.unlink()


def _whole(piece: Piece, keys: Keys) -> Line:
    if piece.end > LONGEST_DOCUMENT:
        return Rejected(1, _TOO_LONG)
    return _of_text(_decode(piece.path.read_bytes().removeprefix(_BYTE_ORDER_MARK)), keys, 1, 0)


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
        elif kind == "text_lines":
            yield _of_text(_decode(content.rstrip(b"\r\n")), keys, line, place)
        else:
            value = _of_json(content, keys)
            yield Rejected(line, value) if isinstance(value, _Reason) else _of_fields(value, keys, line, place)


def _rows(piece: Piece, keys: Keys) -> Iterator[Line]:
    # Its library takes 50 MB of every process: only where there is a table.
    from megatron_cpt.preparation.table import row_spans, rows_of  # noqa: PLC0415

    end = piece.end
    if piece.origin:  # unpacked: what it holds is known only now
        spans_of_rows = row_spans(piece.path, keys.text, 1 << 62, piece.origin)
        end = spans_of_rows[-1][1] if spans_of_rows else 0
    named = [keys.text, *([keys.id] if keys.id is not None else []), *(keys.where.fields if keys.where else ())]
    columns = list(dict.fromkeys(named))
    for line, values in enumerate(rows_of(piece.path, piece.start, end, columns), start=1):
        yield _of_fields(dict(zip(columns, values, strict=True)), keys, line, piece.start + line - 1)


def _cells(piece: Piece, delimiter: str, keys: Keys) -> Iterator[Line]:
    """The rows of a CSV file behind its header, told by the lines at which they begin. BadInput: a quote that does not
    end."""
    csv.field_size_limit(LONGEST_DOCUMENT)
    with piece.path.open("rb") as file:
        rows = csv_rows(file, delimiter)
        header: list[str] = next(rows, [])
        while True:
            line = rows.line_num + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error) or "field larger" in str(error):
                    # What comes behind it cannot be told from text within the quotes.
                    rule = f"has a quote in line {line:,} that does not end."
                    raise BadInput(Fault(piece.input, rule, "Write quotes within a text twice.")) from error
                yield Rejected(line, f"broken CSV: {error}")
                continue
            if not cells:
                yield Blank()
            elif len(cells) != len(header):
                yield Rejected(line, f"{len(cells)} cells where the header has {len(header)}")
            elif any(_is_broken(cell) for cell in cells):
                yield Rejected(line, "invalid UTF-8")
            else:
                # An empty cell is none; an empty text is told as such.
                fields = {name: Cell(cell) for name, cell in zip(header, cells, strict=True) if cell}
                yield _of_fields({keys.text: ""} | fields, keys, line, line)


def _is_broken(cell: str) -> bool:
    """Whether bytes that are no UTF-8 stand in a cell."""
    try:
        cell.encode()
    except UnicodeEncodeError:
        return True
    return False


def _of_text(text: "str | _Reason", keys: Keys, line: int, place: int) -> Line:
    """The document of a text that has no other field."""
    return Rejected(line, text) if isinstance(text, _Reason) else _of_fields({keys.text: text}, keys, line, place)


def _of_fields(fields: Mapping[str, Any], keys: Keys, line: int, place: int) -> Line:
    name = _name(field_of(fields, keys.id)) if keys.id is not None else ""
    if keys.where is not None:
        try:
            if not keys.where.met(partial(field_of, fields)):
                return Filtered()
        except Unanswerable as reason:
            return Rejected(line, str(reason), name)
    if keys.chat:
        try:
            said = read_conversation(fields)
        except Unusable as reason:
            return Rejected(line, str(reason), name)
        return Document(said.text, line, place, name, conversation=said)
    found = field_of(fields, keys.text, _MISSING)
    text = _Reason(f"no key {keys.text!r}") if found is _MISSING else _usable(found, keys.text)
    return Rejected(line, text, name) if isinstance(text, _Reason) else Document(text, line, place, name)


_MISSING = object()
"""Stands for a key that is not there, which null is not."""


class _Reason(str):
    """Why a line gives no text."""

    __slots__ = ()


def _of_json(line: bytes, keys: Keys) -> "dict[str, Any] | _Reason":
    """The object of a JSON line, or why there is none."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        value = _by_python(line, error, keys)
    return value if isinstance(value, (dict, _Reason)) else _Reason("not a JSON object")


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
