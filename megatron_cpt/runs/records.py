"""records.jsonl: what a run measured, one JSON object a line, in the order of training.

A kill can tear the last line: it is dropped on reading and cut off before anything is appended. Any
other line that cannot be read is a corrupt file.
"""

import os
from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.runs.durable import named_errors, sync_folder, write_durably

Record = dict[str, Any]

# Fields that differ between two runs of the same configuration; all others are equal.
TIMING_FIELDS = frozenset({"seconds", "tokens_per_second", "mfu", "memory_bytes"})


class RecordWriter:
    """Appends records to a file; they are on disk once `flush` has returned."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending: list[bytes] = []
        _cut_torn_line(path)
        self._file = path.open("ab", buffering=0)
        sync_folder(path.parent)

    def append(self, record: Record) -> None:
        """Takes a record. Numpy scalars and arrays are allowed; a number that is not finite becomes null."""
        self._pending.append(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY))

    def flush(self) -> None:
        """Writes what was appended and waits until it is on disk."""
        if not self._pending:
            return
        unwritten = memoryview(b"\n".join([*self._pending, b""]))
        self._pending.clear()
        with named_errors(self._path):
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        self._file.close()


def read_records(path: Path) -> list[Record]:
    """All records of a file, in order.

    Raises:
        BadInput: there is no such file.
        IntegrityFault: a line other than a torn last one is not a JSON object.
    """
    return [_parse(line, number, path) for number, line in enumerate(_whole_lines(path), start=1)]


def drop_records_after(path: Path, step: int) -> None:
    """Removes the records of later steps, durably: what a resume from a checkpoint at `step` does again.

    A file that is not there is left so. Raises IntegrityFault as `read_records` does.
    """
    if not path.exists():
        return
    lines = _whole_lines(path)
    kept = [line for number, line in enumerate(lines, start=1) if _step(line, number, path) <= step]
    write_durably(path, b"".join(line + b"\n" for line in kept))


def without_timing(record: Record) -> Record:
    """A record without the fields that depend on the machine's speed and memory."""
    return {name: value for name, value in record.items() if name not in TIMING_FIELDS}


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file without a torn last one."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        fault = Fault(str(path), f"the records cannot be read: {error.strerror or error}.", "Give a run folder.")
        raise BadInput(fault) from error
    last = lines.pop()
    return [*lines, last] if _is_object(last) else lines


def _cut_torn_line(path: Path) -> None:
    """Makes a file end with a whole line, so that what is appended begins a line of its own."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return
    with path.open("r+b") as file:
        if _is_object(content[whole:]):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(whole)
        os.fsync(file.fileno())


def _is_object(line: bytes) -> bool:
    """Whether a line without its newline is whole: no proper beginning of a JSON object is an object."""
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _parse(line: bytes, number: int, path: Path) -> Record:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise IntegrityFault(
            f"{path}, line {number}: not a record ({error}). The file was altered or damaged."
        ) from error
    if not isinstance(record, dict):
        raise IntegrityFault(f"{path}, line {number}: not a record but {type(record).__name__}. The file was altered.")
    return record


def _step(line: bytes, number: int, path: Path) -> int:
    """The step of a record."""
    step = _parse(line, number, path).get("step")
    if not isinstance(step, int):
        raise IntegrityFault(f"{path}, line {number}: a record without a step. The file was altered.")
    return step
