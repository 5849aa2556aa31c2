"""Rows of Parquet and Arrow files, read a batch at a time. Arrow is what Hugging Face's `datasets` saves."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.preparation.fields import key_parts

_BATCH_ROWS = 512
_PARQUET, _ARROW_FILE = b"PAR1", b"ARROW1"
"""First bytes of a Parquet file, and of an Arrow file with random access; other Arrow files are streams."""
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""Last bytes of an Arrow stream."""


def row_spans(path: Path, text_key: str, size: int, name: str = "") -> list[tuple[int, int, int]]:
    """Rows from and to, and bytes of text about, of the pieces of a file: whole row groups, or parts of large ones.

    `name` is what messages call the file, where it is not its path.
    Raises BadInput where the file has no such column, IntegrityFault where it is broken.
    """
    spans: list[tuple[int, int, int]] = []
    first = start = text = 0
    for rows, text_bytes in _groups(path, text_key, name or str(path)):
        parts = math.ceil(text_bytes / size) or 1
        if parts > 1 and start > first:
            spans.append((first, start, text))
            first, text = start, 0
        for part in range(1, parts):
            cut = start + rows * part // parts
            spans.append((first, cut, size))
            first = cut
        start += rows
        text += text_bytes // parts
        if text >= size:
            spans.append((first, start, text))
            first, text = start, 0
    if start > first:
        spans.append((first, start, text))
    return spans


def _groups(path: Path, text_key: str, name: str) -> list[tuple[int, int]]:
    """Rows, and bytes of text about, of each row group or record batch."""
    try:
        if not _is_parquet(path):
            with _arrow(path) as table:
                _refuse_without(table.schema, text_key, name)
                return [(len(batch), _column(batch, text_key).nbytes) for batch in _record_batches(table)]
        metadata = pyarrow.parquet.ParquetFile(path)
        _refuse_without(metadata.schema_arrow, text_key, name)
        groups = (metadata.metadata.row_group(number) for number in range(metadata.metadata.num_row_groups))
        return [(group.num_rows, _text_bytes(group, text_key)) for group in groups]
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def rows_of(path: Path, start: int, end: int, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Values of columns, row by row, of rows start to end - 1; None for a column that the file has not, bytes where a
    text is none.

    Raises IntegrityFault where the file is broken.
    """
    try:
        for batch in _batches(path, start, end, columns):
            found = {name: _values(_column(batch, name)) for name in columns if _holds(batch.schema, name)}
            missing = [None] * len(batch)
            yield from zip(*(found.get(name, missing) for name in columns), strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _batches(path: Path, start: int, end: int, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
    """Rows start to end - 1, some at a time."""
    if not _is_parquet(path):
        first = 0
        with _arrow(path) as table:
            for batch in _record_batches(table):
                for begin in range(max(0, start - first), min(len(batch), end - first), _BATCH_ROWS):
                    yield batch.slice(begin, min(_BATCH_ROWS, end - first - begin))
                first += len(batch)
                if first >= end:
                    return
        return
    table = pyarrow.parquet.ParquetFile(path)
    there = [name for name in columns if _holds(table.schema_arrow, name)]
    groups, first = _groups_over(table, start, end)
    for batch in table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=there):
        yield batch.slice(max(0, start - first), max(0, min(end, first + len(batch)) - max(start, first)))
        first += len(batch)
        if first >= end:
            return


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PARQUET)) == _PARQUET


def _arrow(path: Path) -> Any:
    """An Arrow file, mapped: a stream, or one with random access. It closes with the block."""
    source = pyarrow.memory_map(str(path))
    if source.read(len(_ARROW_FILE)) == _ARROW_FILE:
        return pyarrow.ipc.open_file(source)
    # The library takes a stream that is cut between two batches for a whole one.
    source.seek(max(0, source.size() - len(_STREAM_END)))
    if source.read() != _STREAM_END:
        raise pyarrow.ArrowInvalid("it has no end")
    source.seek(0)
    return pyarrow.ipc.open_stream(source)


def _record_batches(table: Any) -> Iterator[pyarrow.RecordBatch]:
    if isinstance(table, pyarrow.ipc.RecordBatchFileReader):
        return (table.get_batch(number) for number in range(table.num_record_batches))
    return iter(table)


def _refuse_without(schema: pyarrow.Schema, text_key: str, path: str) -> None:
    """Raises BadInput where a table has no column of the text, or several."""
    names = schema.names
    if names.count(text_key) > 1:
        rule = f"names {names.count(text_key)} columns of {path}."
        raise BadInput(Fault(f"--text-key {text_key}", rule, "Give each column a name of its own."))
    if not _holds(schema, text_key):
        remedy = f"Its columns are {', '.join(_names(schema))}: name one with --text-key."
        raise BadInput(Fault(f"--text-key {text_key}", f"is no column of {path}.", remedy))


def _holds(schema: pyarrow.Schema, key: str) -> bool:
    """Whether a key names one column: by its own name, or within columns of structs (fields.py)."""
    if key in schema.names:
        return bool(schema.names.count(key) == 1)
    first, *inner = key_parts(key)
    if schema.names.count(first) != 1:
        return False
    kind = schema.field(first).type
    for name in inner:
        if not pyarrow.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return False
        kind = kind.field(name).type
    return True


def _names(schema: pyarrow.Schema) -> list[str]:
    """Its columns, those within structs by the keys on the way to them."""

    def within(prefix: str, field: pyarrow.Field) -> Iterator[str]:
        if not pyarrow.types.is_struct(field.type):
            yield prefix + field.name
            return
        for number in range(field.type.num_fields):
            yield from within(f"{prefix}{field.name}.", field.type.field(number))

    return [name for field in schema for name in within("", field)]


def _column(batch: pyarrow.RecordBatch, key: str) -> pyarrow.Array:
    """The column that a key names; its values are null where one of the structs around it is."""
    if key in batch.schema.names:
        return batch.column(key)
    first, *inner = key_parts(key)
    return pyarrow.compute.struct_field(batch.column(first), inner)


def _values(column: pyarrow.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        # One cell that is no text must not cost the others.
        plain = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
        values = [
            value if value is None else _decoded(value) for value in plain.cast(pyarrow.large_binary()).to_pylist()
        ]
    return values


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _groups_over(table: pyarrow.parquet.ParquetFile, start: int, end: int) -> tuple[list[int], int]:
    """The row groups that hold rows start to end - 1, and the first row of the first of them."""
    groups: list[int] = []
    first = before = 0
    for number in range(table.metadata.num_row_groups):
        behind = before + table.metadata.row_group(number).num_rows
        if before < end and behind > start:
            first = before if not groups else first
            groups.append(number)
        before = behind
    return groups, first


def _text_bytes(group: Any, text_key: str) -> int:
    columns = (group.column(number) for number in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if f"{c.path_in_schema}.".startswith(f"{text_key}."))


def _broken(path: Path, error: Exception) -> Exception:
    """What a failed reading is: the system's own error, or a file that is no whole table."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    with path.open("rb") as file:
        kind = "parquet" if file.read(len(_PARQUET)) == _PARQUET else "Arrow"
    return IntegrityFault(f"{path}: is not a whole {kind} file ({error}). Copy it again.")
