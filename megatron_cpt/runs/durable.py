"""Files that are whole or absent: temporary name, fsync, rename.

A name in a run folder or beside a dataset is given only to bytes that are all on disk, so that a
kill at any moment leaves the old file or the new one, never a torn one.
"""

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megatron_cpt.config.errors import Fault, refuse

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for what is written: on the disk, by a quota, by a limit."""


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Gives an error of writing the name of the file, which the system leaves out."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def refuse_to_replace(paths: Iterable[Path], overwrite: bool) -> None:
    """Raises BadInput with every result that is there already, unless it may be replaced."""
    remedy = "Give another name, or --overwrite to replace it."
    refuse([Fault(str(path), "is there already.", remedy) for path in paths if not overwrite and path.exists()])


@contextmanager
def renamed_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears as `path` only when the block ends without an error.

    Whole after a kill, but not after a loss of power: for what is checked when it is read and can be made again.
    """
    # Process numbers repeat between machines that share a folder, and in containers nearly always.
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with named_errors(path), temporary.open("wb") as file:
            yield file
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears as `path`, on disk, only when the block ends without an error."""
    with renamed_file(path) as file:
        yield file
        with named_errors(path):
            file.flush()
            os.fsync(file.fileno())
    sync_folder(path.parent)


def write_durably(path: Path, content: bytes | str) -> None:
    """Writes the whole content under a final name."""
    with durable_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON with a final newline; numpy scalars and arrays are allowed."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    write_durably(path, orjson.dumps(value, option=options))


def sync_file(path: Path) -> None:
    """Waits until a file's bytes are on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
