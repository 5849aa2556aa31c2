"""Files of object stores, s3:// gs:// hf:// and whatever else fsspec knows, with as much of a path as reading needs."""

import errno
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from megatron_cpt.config.errors import BadInput, Fault

_BLOCK = 1 << 20
"""Bytes that are read at a time."""
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")
"""What the file systems call the time of the last change."""


class RemoteState(NamedTuple):
    """What is known of a file, by the names that local files have."""

    st_size: int
    """Bytes."""
    st_mtime_ns: int
    """Nanoseconds since 1970; 0 where the file system does not say."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that fsspec opens, as it was when it was listed."""

    url: str
    size: int
    """Bytes."""
    modified_ns: int
    """Nanoseconds since 1970; 0 where the file system does not say."""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.url).name

    def absolute(self) -> "RemoteFile":
        """Itself: a URL is whole."""
        return self

    def resolve(self) -> "RemoteFile":
        """Itself: there are no links."""
        return self

    def is_file(self) -> bool:
        """It was, when it was listed."""
        return True

    def stat(self) -> RemoteState:
        """As it was listed."""
        return RemoteState(self.size, self.modified_ns)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its content from the beginning. OSError, at once or in the middle: it cannot be read."""
        files, path = _file_system(self.url)
        with _as_os_error(self.url):
            return io.BufferedReader(_Reader(files.open(path, mode), self.url), _BLOCK)

    def now(self) -> "RemoteFile | None":
        """The file as it is now; None where it is gone. OSError: that cannot be known."""
        files, path = _file_system(self.url)
        files.invalidate_cache()
        with _as_os_error(self.url):
            try:
                return _described(self.url, files.info(path))
            except FileNotFoundError:
                return None


class _Reader(io.RawIOBase):
    """An open file whose errors are those of files."""

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with _as_os_error(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _as_os_error(url: str) -> Iterator[None]:
    """Each file system has errors of its own, for missing rights, names, and networks that fail."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        raise OSError(errno.EIO, str(error) or type(error).__name__, url) from error


def is_remote(text: str) -> bool:
    """Whether a path is a URL."""
    return _URL.match(text) is not None


def absolute_path(text: str) -> str:
    """A path as it reads in any folder: a URL as it is."""
    return text if is_remote(text) else os.path.abspath(text)


def remote_files(text: str) -> list[tuple[RemoteFile, bool]]:
    """The files that a URL names, a file, a folder at every depth or a glob, by name, and which are of a folder.

    Names that begin with a point are left out of folders. Raises BadInput where the file system is not known, lacks a
    package, or cannot be read.
    """
    files, path = _file_system(text)
    try:
        if not any(sign in path for sign in "*?[") and files.isfile(path):
            return [(_described(text, files.info(path)), False)]
        of_folder = not any(sign in path for sign in "*?[")
        found = files.find(path, detail=True) if of_folder else files.glob(path, detail=True)
    except Exception as error:  # of whatever kind, as in `_as_os_error`
        rule = f"cannot be listed: {str(error) or type(error).__name__}."
        raise BadInput(Fault(text, rule, "Mend the address, or the credentials that its package reads.")) from error
    return [
        (_described(files.unstrip_protocol(name), info), of_folder)
        for name, info in sorted(found.items())
        if info["type"] == "file" and not (of_folder and _is_hidden(name.removeprefix(path)))
    ]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _described(url: str, info: Mapping[str, Any]) -> RemoteFile:
    time = next((info[name] for name in _MODIFIED if info.get(name)), 0)
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    seconds = time.timestamp() if isinstance(time, datetime) else float(time)
    return RemoteFile(url, int(info.get("size") or 0), int(seconds * 1_000_000_000))


def _file_system(url: str) -> tuple[Any, str]:
    try:
        # Only where there is a URL: it is a part of the package that is not always installed.
        from fsspec.core import url_to_fs  # noqa: PLC0415

        files, path = url_to_fs(url)
        return files, str(path)
    except ImportError as error:
        rule = f"needs a package that is not installed ({error})."
        raise BadInput(
            Fault(url, rule, "Install it: pip install s3fs (s3://), gcsfs (gs://), adlfs (abfs://).")
        ) from error
    except ValueError as error:
        raise BadInput(Fault(url, f"is no address that is known ({error}).", "Write s3://, gs://, hf://.")) from error
