"""The input files: what each one is, its lines with bounded memory, and the pieces it is cut into.

The first bytes of a file tell its format, and its name where they do not. Of a folder every file is looked at, at any
depth; those that are none of a corpus are named in a warning. A plain file is cut every so many bytes, a
Parquet file into groups of rows. A compressed file and standard input can only be read from the beginning: they are
unpacked piece by piece into files that live until their piece is finished. The cuts follow from file sizes alone, and
no byte of the dataset depends on them.
"""

import bz2
import csv
import glob
import gzip
import io
import lzma
import math
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import orjson
import zstandard

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.indexed import IndexedDataset, bin_path, idx_path
from megatron_cpt.corpus.parts import HELD_OUT, named_by, part_faults
from megatron_cpt.corpus.stream import prefix_of
from megatron_cpt.preparation.remote_file import RemoteFile, is_remote, remote_files
from megatron_cpt.runs.folder import named_errors

Compression = Literal["gzip", "Zstandard", "bzip2", "xz"]
_MAGIC: dict[bytes, Compression] = {
    rb"\x1f\x8b": "gzip",
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": "Zstandard",  # a frame, or one to be skipped: pzstd begins so
    rb"BZh[1-9](\x31\x41\x59|\x17\x72\x45)": "bzip2",
    rb"\xfd7zXZ\x00": "xz",
}
MAGIC_BYTES = 7
"""First bytes of a file that tell how it is compressed."""
_LARGEST_WINDOW = 1 << 31
"""Bytes of text that Zstandard may look back, of `zstd --ultra --long=31`; its library alone allows 128 MB."""
_READ_BYTES = 8 << 10
"""Compressed bytes that are decompressed at a time. Zstandard expands at most 32,768-fold: 256 MB."""
_BROKEN = (EOFError, OSError, zlib.error, zstandard.ZstdError, lzma.LZMAError)


def lines_of(path: Path, start: int, end: int, longest: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line that begins in bytes start to end - 1 of a plain file, its end included, and where it begins.

    None stands for a line of more than `longest` bytes.
    """
    with path.open("rb", buffering=1 << 20) as file:
        position = _first_line(file, start, end)
        while position < end and (line := file.readline(longest + 1)):
            length = len(line)
            whole: bytes | None = line
            while length > longest and not line.endswith(b"\n"):
                whole = None
                line = file.readline(longest + 1)
                if not line:
                    break
                length += len(line)
            yield whole, position
            position += length


def _first_line(file: BinaryIO, start: int, end: int) -> int:
    """Goes to the first line that begins at `start` or behind it, or to somewhere from `end` on."""
    if start == 0:
        return 0
    position = start - 1
    file.seek(position)
    while position < end:
        part = file.readline(1 << 20)
        position += len(part)
        if not part or part.endswith(b"\n"):
            break
    return position


def compression_of(head: bytes) -> Compression | None:
    """How a file is compressed, by its first bytes."""
    return next((name for magic, name in _MAGIC.items() if re.match(magic, head, re.DOTALL)), None)


def _first_bytes(head: bytes, compression: Compression | None) -> bytes:
    """What the beginning of a file begins with when decompressed, as far as it goes."""
    if compression is None:
        return head
    plain = b""
    with suppress(IntegrityFault), decompressed(io.BytesIO(head), "", compression) as stream:
        # What came before the head is cut off, not what a larger reading would give.
        while len(plain) < _LOOKED_AT and (more := cast(io.BufferedReader, stream).read1(_LOOKED_AT)):
            plain += more
    return plain


@contextmanager
def decompressed(raw: BinaryIO, name: str, compression: Compression | None) -> Iterator[BinaryIO]:
    """The plain content of a stream. Raises IntegrityFault where it is broken or cut short."""
    if compression is None:
        yield raw
        return
    openers: dict[Compression, Callable[[], object]] = {
        "gzip": partial(gzip.GzipFile, fileobj=raw, mode="rb"),
        "Zstandard": lambda: io.BufferedReader(_Zstandard(raw), 1 << 20),
        "bzip2": partial(bz2.BZ2File, raw),
        "xz": partial(lzma.LZMAFile, raw),
    }
    try:
        yield cast(BinaryIO, openers[compression]())
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # What the system says of a file, this one or one that is written from it: not of its content.
        raise IntegrityFault(f"{name}: is not a whole {compression} file ({error}). Copy it again.") from error


class _Zstandard(io.RawIOBase):
    """Frames of a Zstandard file, one behind the other, as one stream.

    The library's own stream reader stops at the first frame unless told otherwise, and ends a file that is
    cut short as if it were whole; here its end must be the end of a frame.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = self._new_frame()
        self._begun = False
        self._ahead = b""
        self._ready = memoryview(b"")

    @staticmethod
    def _new_frame() -> "zstandard.ZstdDecompressionObj":
        return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            compressed = self._ahead or self._raw.read(_READ_BYTES)
            if not compressed:
                if self._begun:
                    raise EOFError("it ends inside a frame")
                return 0
            self._ready = memoryview(self._frame.decompress(compressed))
            self._begun, self._ahead = not self._frame.eof, b""
            if self._frame.eof:
                self._ahead = self._frame.unused_data
                self._frame = self._new_frame()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


@contextmanager
def plain_stream(source: "Input") -> Iterator[BinaryIO]:
    """The plain content of an input, or of standard input, from its beginning. IntegrityFault: broken or cut short."""
    standard = source.path == STANDARD_INPUT
    with (
        io.BufferedReader(standard_input(), BLOCK) if standard else source.path.open("rb") as raw,
        decompressed(raw, str(source.path), source.compression) as stream,
    ):
        yield stream


Kind = Literal["json_lines", "text", "text_lines", "csv", "tsv", "parquet", "arrow", "indexed"]
"""JSON objects, one a line; a document a file; a document a line; rows of a table; a pair .bin and .idx."""
WHOLE: tuple[Kind, ...] = ("text", "csv", "tsv", "parquet", "arrow")
"""Kinds of files that are unpacked whole: where a line ends says nothing of where a document ends."""
DELIMITERS: dict[Kind, str] = {"csv": ",", "tsv": "\t"}
"""Between the cells of a row."""
TABLES: tuple[Kind, ...] = ("parquet", "arrow")
"""Kinds that pyarrow reads."""
KINDS: dict[str, Kind] = {
    ".jsonl": "json_lines",
    ".jsonlines": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json_lines",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
STANDARD_INPUT = Path("-")
_HEADS: dict[Kind, tuple[bytes, ...]] = {"parquet": (b"PAR1",), "arrow": (b"ARROW1", b"\xff\xff\xff\xff")}
"""First bytes of tables: of Arrow files those with random access, and streams."""
_SAID = (
    f"Give {', '.join(KINDS)} (all but parquet and arrow also {', '.join(_COMPRESSED)}), the prefix of a dataset, or - "
    "for standard input."
)
_SIDE_FILES = re.compile(
    r"(readme|licen[cs]e|copying|copyright|notice|changelog|citation|authors|contributing|contributors|requirements"
    r"|sha256sums?|md5sums?|checksums?)([-_][^.]*)?(\.(txt|md|rst))?|(dataset_infos?|dataset_dict|state)\.json"
    r"|cache-[^.]*\.arrow",
)
"""Names of what stands beside the documents in a folder: licences and the like, and Hugging Face's own files."""


@dataclass(frozen=True)
class Input:
    """One input file."""

    path: Path | RemoteFile
    """Where it is; STANDARD_INPUT for the stream."""
    kind: Kind
    compression: Compression | None = None

    @property
    def streamed(self) -> bool:
        """Whether it can only be read from its beginning to its end."""
        return self.compression is not None or self.path == STANDARD_INPUT or isinstance(self.path, RemoteFile)

    @property
    def local(self) -> Path:
        """Its path, where it is a file of this machine or standard input."""
        assert isinstance(self.path, Path), "remote files are unpacked"
        return self.path


@dataclass(frozen=True)
class FoundInputs:
    """What paths name."""

    inputs: list[Input]
    not_read: list[Path | RemoteFile]
    """Files of folders that are no files of a corpus."""


def input_files(paths: Sequence[str], document_per_line: bool = False) -> list[Input]:
    """As `find_inputs`, without the files that are not read."""
    return find_inputs(paths, document_per_line).inputs


def find_inputs(paths: Sequence[str], document_per_line: bool = False, text_key: str | None = None) -> FoundInputs:
    """What paths, folders and globs name, in the order given, files of one folder or glob by name.

    Folders are read at every depth; names that begin with a point are left out. Warns of the files of a folder that are
    not read, CSV files without a column `text_key` among others too, and of held-out datasets that a glob leaves out.
    `document_per_line` takes each line of a text file for a document. Raises BadInput listing each path that is
    missing, unreadable, of an unknown kind, or named twice, parts of a dataset without the others, and a dataset beside
    its held-out part; and for a folder that may not be looked into.
    """
    faults: list[Fault] = []
    inputs: list[Input] = []
    not_read: list[Path | RemoteFile] = []
    seen: set[Path | RemoteFile] = set()
    for text in paths:
        try:
            found = _files(text)
        except BadInput as error:
            faults += error.faults
            continue
        before = len(inputs), len(faults)
        described = _all_described(found, document_per_line)
        of_folders: list[Input] = []
        for (file, of_folder), known in zip(found, described, strict=True):
            if known is None:
                not_read.append(file)
                continue
            if isinstance(known, Fault):
                faults.append(known)
            elif known.path == STANDARD_INPUT and known.kind == "text" and _is_table(_beginning(file)[1], text_key):
                faults.append(_TABLE_ON_STANDARD_INPUT)
            elif file.resolve() in seen:
                faults.append(Fault(str(file), "is named twice.", "Name each input once."))
            else:
                inputs.append(known)
                of_folders += [known] if of_folder else []
            seen.add(file.resolve())
        beside = [source for source in of_folders if text_key is not None and _lacks_text(source, text_key)]
        # Where there is nothing else the column is what is wrong.
        if len(beside) < len(of_folders):
            inputs = [source for source in inputs if source not in beside]
            not_read += [source.path for source in beside]
        if (len(inputs), len(faults)) == before:
            faults.append(_no_input(text, [file for file, _ in found]))
    faults += _pair_faults([source.local.with_suffix("") for source in inputs if source.kind == "indexed"])
    if faults:
        raise BadInput(*faults)
    if not_read:
        warnings.warn(not_read_line(not_read), stacklevel=2)
    return FoundInputs(inputs, not_read)


def _pair_faults(prefixes: Sequence[Path]) -> list[Fault]:
    """Datasets among the inputs that are not to be read without others, or not with them."""
    faults = part_faults(prefixes)
    remedy = "Leave it out: what validates is not to be trained on."
    named = set(prefixes)
    for prefix in prefixes:
        if prefix.with_name(prefix.name + HELD_OUT) in named:
            faults.append(Fault(f"{prefix}{HELD_OUT}", f"is held out from {prefix}, which is read too.", remedy))
    return faults


_REQUESTS = 16
"""Of an object store at a time: each takes long, and a corpus has thousands of files."""


def _all_described(
    found: Sequence[tuple[Path | RemoteFile, bool]], document_per_line: bool
) -> list[Input | Fault | None]:
    """What each file is, as `_described` says it."""

    def described(file: Path | RemoteFile, of_folder: bool) -> Input | Fault | None:
        if of_folder and _SIDE_FILES.fullmatch(file.name.lower()):
            return None
        try:
            return _described(file, document_per_line, of_folder)
        except PermissionError as error:
            if isinstance(file, RemoteFile):
                raise
            return _unreadable(str(file), error)

    if any(isinstance(file, RemoteFile) for file, _ in found):
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return list(pool.map(described, *zip(*found, strict=True)))
    return [described(*one) for one in found]


def _files(text: str) -> list[tuple[Path | RemoteFile, bool]]:
    """The files that a path, folder, glob or URL names, and which are of a folder."""
    if is_remote(text):
        return [*remote_files(text)]
    try:
        return [(file, folder) for path, folder in _named(text) for file in (_files_under(path) if folder else [path])]
    except PermissionError as error:
        raise BadInput(_unreadable(str(error.filename), error)) from error


def _unreadable(name: str, error: PermissionError) -> Fault:
    return Fault(name, f"cannot be read: {error.strerror}.", "Allow reading it, or leave it out.")


def _no_input(text: str, there: Sequence[Path | RemoteFile]) -> Fault:
    if not there:
        return Fault(text, "is not there, or holds no file.", _SAID)
    rule = f"holds no corpus file: {len(there):,} others, such as {there[0].name}."
    pretty = next((file for file in there if _described(file, False, False) == Fault(str(file), *_PRETTY)), None)
    return Fault(str(pretty), *_PRETTY) if pretty is not None else Fault(text, rule, _SAID)


_TOLD_NOT_READ = 10
"""Files that a message names; the manifest has all."""


def not_read_line(files: Sequence[Path | RemoteFile | str]) -> str:
    """A line on files that are not read."""
    more = f" and {len(files) - _TOLD_NOT_READ:,} more" if len(files) > _TOLD_NOT_READ else ""
    names = ", ".join(str(file) for file in files[:_TOLD_NOT_READ])
    return f"{len(files):,} files of the folders are not of a corpus and are not read: {names}{more}"


def _named(text: str) -> list[tuple[Path, bool]]:
    """The files and folders that a path or glob names, and which are folders."""
    path = Path(text)
    if path == STANDARD_INPUT or (path.is_file() and prefix_of(text) == text):
        return [(path, False)]
    if path.is_dir():
        return [(path, True)]
    if idx_path(prefix_of(text)).is_file() and bin_path(prefix_of(text)).is_file():
        return [(bin_path(prefix_of(text)), False)]
    if path.is_file():
        return [(path, False)]
    if (parts := named_by(prefix_of(text))) != [prefix_of(text)]:
        return [(bin_path(part), False) for part in parts]
    _refuse_closed_on_the_way(text)
    matched = _without_held_out([Path(name) for name in sorted(glob.glob(text, recursive=True))])
    matched = [found for found in matched if not (found.suffix == ".idx" and found.with_suffix(".bin") in matched)]
    # `**` names the files of its folders itself.
    return [(found, found.is_dir()) for found in matched if found.is_file() or (found.is_dir() and "**" not in text)]


def _refuse_closed(error: OSError) -> None:
    """Raises BadInput for a folder that may not be looked into, and the error itself for any other reason."""
    folder = str(error.filename)
    if not isinstance(error, PermissionError):
        raise error
    if os.path.basename(os.path.normpath(folder)) != _LOST_AND_FOUND:
        rule = f"is a folder that cannot be read: {error.strerror}."
        raise BadInput(Fault(folder, rule, "Allow reading it, or name the other folders and files."))


_LOST_AND_FOUND = "lost+found"
"""A folder of the file system itself, of no user."""


def _refuse_closed_on_the_way(pattern: str) -> None:
    """Raises BadInput for a folder that a glob passes and that may not be looked into: globs leave it out silently."""
    parts = Path(pattern).parts
    wild = [number for number, part in enumerate(parts) if glob.has_magic(part)]
    # `**` at the end lists the folders that it matches too.
    for number in range(wild[0], len(parts) + (parts[-1] == "**")) if wild else ():
        passed = os.path.join(*parts[:number], "") if number else os.path.join(os.curdir, "")
        for folder in glob.glob(passed, recursive=True):
            try:
                os.stat(os.path.join(folder, os.curdir))  # which needs what looking up a name in it needs
                if number == len(parts) or glob.has_magic(parts[number]):
                    os.scandir(folder).close()
            except OSError as error:
                error.filename = os.path.normpath(folder)
                _refuse_closed(error)


def _without_held_out(matched: Sequence[Path]) -> list[Path]:
    """What a glob matches, without held-out datasets where it matches others too. It warns of them."""
    pairs = [found for found in matched if found.suffix == ".bin" and found.with_suffix(".idx").is_file()]
    held_out = [found for found in pairs if found.stem.endswith(HELD_OUT)]
    if len(held_out) == len(pairs):
        return [*matched]
    for found in held_out:
        rule = "is held out, and left out. A glob of such datasets alone is read."
        warnings.warn(f"{found.with_suffix('')}: {rule}", stacklevel=2)
    left_out = {found.with_suffix("") for found in held_out}
    return [found for found in matched if not (found.suffix in (".bin", ".idx") and found.with_suffix("") in left_out)]


def _files_under(folder: Path) -> list[Path]:
    """Every file of a folder and of the folders in it, also of linked ones, by name."""
    files: list[Path] = []
    visited: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_refuse_closed, followlinks=True):
        visited.add(os.path.realpath(place))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in visited
        ]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _described(path: Path | RemoteFile, document_per_line: bool, of_folder: bool) -> Input | Fault | None:
    """What a file is, or why it cannot be read. None: it is a file of a folder and of no corpus."""
    if not _is_text(str(path.absolute())):
        return Fault(repr(str(path)), "has a name that is not UTF-8 text.", "Rename the file or folder.")
    if not (path == STANDARD_INPUT or path.is_file()):
        return Fault(str(path), "is a link to nothing.", "Mend the link, or take it away.")
    if isinstance(path, Path) and path.suffix == ".bin" and path.with_suffix(".idx").is_file() and not of_folder:
        return Input(path, "indexed")
    head, plain, compression, whole = _beginning(path)
    kind = _kind(path, head, plain, compression)
    if kind is None and compression is None and path.name.lower().endswith(_COMPRESSED):
        return Fault(str(path), "is not a whole compressed file.", "Copy it again.")
    if kind is None:
        return None if of_folder else Fault(str(path), "is not a kind of file that is read.", _SAID)
    if kind in TABLES:
        if path == STANDARD_INPUT:
            return Fault("-", f"is a table ({kind}), which cannot be read as a stream.", "Give the file itself, whole.")
        if not head.startswith(_HEADS[kind]):
            rule = f"is not {'a parquet' if kind == 'parquet' else 'an Arrow'} file."
            return Fault(str(path), rule, "Give the file itself, whole.")
        return Input(path, kind, compression)
    if kind == "text" and document_per_line:
        kind = "text_lines"
    wrong = _not_as_needed(plain, kind, whole)
    if wrong is None:
        return Input(path, kind, compression)
    # An object over many lines in a folder is a file of settings.
    return None if of_folder and wrong == _PRETTY else Fault(str(path), *wrong)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_LOOKED_AT = 64 << 10
"""Plain bytes of a file that tell what it is."""
_LARGEST_HEAD = 1 << 20
"""Compressed bytes that are read for them at most."""
_ARRAY = ("is one JSON array, not JSON lines.", "Write its items one a line, for example with `jq -c '.[]'`.")
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*\{")
_PRETTY = ("has JSON objects over several lines.", "Write each in one line, for example with `jq -c .`.")
_UTF16 = ("is text in UTF-16 or UTF-32.", "Convert it, for example with `iconv -f UTF-16 -t UTF-8`.")
_CARRIAGE_RETURNS = ("has lines that end in a carriage return alone.", "Convert it, for example with `tr '\\r' '\\n'`.")


def _not_as_needed(plain: bytes, kind: Kind, whole: bool) -> tuple[str, str] | None:
    """Rule and remedy where the beginning of a text shows that all of it would be read wrongly."""
    if plain.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in plain[:2]:
        return _UTF16
    content = _first_content(plain)
    if kind in ("json_lines", "text_lines") and b"\r" in content.rstrip() and b"\n" not in content:
        return _CARRIAGE_RETURNS
    if kind != "json_lines":
        return None
    if content.startswith(b"["):
        return _ARRAY
    return _PRETTY if re.match(rb"\{[ \t\r]*\n", content) else None


def _first_content(plain: bytes) -> bytes:
    return plain.removeprefix(b"\xef\xbb\xbf").lstrip()


def _kind(path: Path | RemoteFile, head: bytes, plain: bytes, compression: Compression | None) -> Kind | None:
    if head.startswith(_HEADS["parquet"]):
        return "parquet"
    name = path.name.lower()
    if compression is not None:
        for ending in _COMPRESSED:
            name = name.removesuffix(ending)
    for ending, kind in KINDS.items():
        if name.endswith(ending):
            return kind
    content = _first_content(plain)
    if content.startswith(b"{"):
        return "json_lines"
    if path != STANDARD_INPUT:
        return None
    # What writes to a pipe may say something of itself before the first document.
    return "json_lines" if _ARRAY_OF_OBJECTS.match(content) or _has_object(content) else "text"


def _has_object(content: bytes) -> bool:
    """Whether one of the whole lines is a JSON object with something in it."""
    for line in content.splitlines():
        if line.startswith(b"{"):
            with suppress(orjson.JSONDecodeError):
                if orjson.loads(line):
                    return True
    return False


_TABLE_ON_STANDARD_INPUT = Fault(
    "-", "is a table (CSV), which is told by the name of a file.", "Give the file itself, named .csv or .tsv."
)


def _is_table(plain: bytes, text_key: str | None) -> bool:
    """Whether a text without a name begins as CSV does: with the names of columns, the text's among them or as many as
    there are cells in the next row."""
    for delimiter in DELIMITERS.values():
        try:
            header, *row = islice(csv_rows(io.BytesIO(plain.lstrip()), delimiter), 2)
        except (csv.Error, ValueError):
            continue
        # Behind a comma of prose there is a blank.
        named = all(name and name == name.strip() for name in header) and len(set(header)) == len(header)
        if named and row and (text_key in header or len(row[0]) == len(header) > 1):
            return True
    return False


def _beginning(path: Path | RemoteFile) -> tuple[bytes, bytes, Compression | None, bool]:
    """Of a file, read until it is known what it is: its first bytes, also decompressed, how it is compressed, and
    whether that is all of it."""
    head, whole = b"", False
    while True:
        head, whole = _more_of(path, head)
        compression = compression_of(head)
        plain = _first_bytes(head, compression)
        known = path == STANDARD_INPUT and _told_by(_first_content(plain))
        if known or whole or len(plain) >= _LOOKED_AT or len(head) >= _LARGEST_HEAD:
            return head, plain, compression, whole


def _told_by(content: bytes) -> bool:
    """Whether the beginning of a text is enough to say what it is."""
    first_line = content.startswith(b"{") and b"\n" in content
    return first_line or bool(_ARRAY_OF_OBJECTS.match(content)) or _has_object(content)


def _more_of(path: Path | RemoteFile, head: bytes) -> tuple[bytes, bool]:
    """More of the beginning of a file, left where it is, and whether that is all of it."""
    if path == STANDARD_INPUT:
        return standard_input().look(len(head) + 1)
    size = _LARGEST_HEAD if head else _LOOKED_AT
    with path.open("rb") as file:
        head = file.read(size)
    return head, len(head) < size


class _StandardInput(io.RawIOBase):
    """Standard input, whose beginning may be looked at before it is read."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._ahead = b""

    def look(self, size: int) -> tuple[bytes, bool]:
        """So many first bytes and what came with them, waiting for them; and whether there are no more than these."""
        while len(self._ahead) < size:
            more = self._stream.read1(_LOOKED_AT)
            if not more:
                return self._ahead, True
            self._ahead += more
        return self._ahead, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._ahead[: len(buffer)] or self._stream.read1(len(buffer))
        self._ahead = self._ahead[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)


@lru_cache(maxsize=1)
def _standard_input(stream: io.BufferedReader) -> _StandardInput:
    return _StandardInput(stream)


def standard_input() -> _StandardInput:
    """Standard input."""
    return _standard_input(cast(io.BufferedReader, sys.stdin.buffer))


SMALLEST_PIECE, _LARGEST_PIECE = 2 << 20, 64 << 20
"""Bytes of text."""
_PIECES = 1024
"""Of an input of 2 to 64 GB; smaller ones have fewer, larger ones more."""
_TEXT_OF_TOKEN = 4
"""Text bytes of a token, about."""
_COMPRESSION = 4
"""Text bytes of a compressed byte, about."""
BLOCK = 1 << 20
"""Bytes that are unpacked at a time."""


@dataclass(frozen=True)
class Piece:
    """A part of an input that is tokenized by one worker."""

    file: int
    """Number of the file among the inputs."""
    number: int
    """Number of the piece within the file."""
    path: Path
    """What is read: the input itself, or what was unpacked of it."""
    start: int
    """First byte, row, or document of `path`."""
    end: int
    """One behind the last. Of lines, those that begin in between belong to the piece."""
    base: int = 0
    """Place in the unpacked input of byte 0 of `path`; of a dataset, the token at which document `start` begins."""
    digest: str = ""
    """Hash of what was read from standard input."""
    origin: str = ""
    """The input that `path` was unpacked of."""

    @property
    def input(self) -> str:
        """The input, for people."""
        return self.origin or str(self.path)

    @property
    def name(self) -> str:
        """By which its results are named."""
        return piece_name(self.file, self.number)


@dataclass(frozen=True)
class Span:
    """A stretch of the inputs that one shard takes whole: a piece, or a stream with all its pieces."""

    piece: Piece
    streamed: bool
    size: int
    """Bytes of text, about."""


def piece_name(file: int, number: int) -> str:
    """Of the piece of a file."""
    return f"{file:06d}-{number:06d}"


def piece_size(inputs: Sequence[Input]) -> int:
    """Bytes of a piece."""
    return min(_LARGEST_PIECE, max(SMALLEST_PIECE, sum(map(_text_size, inputs)) // _PIECES))


def _text_size(source: Input) -> int:
    """Bytes of text in an input, about; of standard input nothing is known."""
    if source.path == STANDARD_INPUT:
        return 0
    size = source.path.stat().st_size
    return size * _COMPRESSION if source.compression is not None or source.kind == "parquet" else size


def spans(inputs: Sequence[Input], size: int, text_key: str) -> list[Span]:
    """The inputs in spans, in the order read. Raises BadInput for a table without the column of the text."""
    found: list[Span] = []
    for file, source in enumerate(inputs):
        if source.kind in DELIMITERS:
            _refuse_without_cells(source, text_key)
        if source.streamed:
            found.append(Span(Piece(file, 0, Path(str(source.path)), 0, 0), True, _text_size(source)))
            continue
        if source.kind == "indexed":
            found += _document_spans(file, source.local, size)
            continue
        if source.kind in TABLES:
            # Its library takes 50 MB of every process: only where there is a table.
            from megatron_cpt.preparation.table import row_spans  # noqa: PLC0415

            cuts = row_spans(source.local, text_key, size)
        else:
            length = source.path.stat().st_size
            step = size if source.kind in ("json_lines", "text_lines") else max(1, length)
            cuts = [
                (start, min(start + step, length), min(step, length - start))
                for start in range(0, max(1, length), step)
            ]
        found += [Span(Piece(file, n, source.local, a, b), False, text) for n, (a, b, text) in enumerate(cuts)]
    return found


def csv_rows(file: BinaryIO, delimiter: str) -> Any:
    """The rows of a CSV file, its header first; bytes that are no UTF-8 stay to be found."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    return csv.reader(text, delimiter=delimiter, strict=True)


def _header(source: Input) -> list[str]:
    """The columns of a CSV file; none where its first line names none."""
    with plain_stream(source) as stream:
        try:
            return list(next(csv_rows(stream, DELIMITERS[source.kind]), []))
        except csv.Error:
            return []


def _lacks_text(source: Input, text_key: str) -> bool:
    """Whether a file is CSV and has no column of the text."""
    return source.kind in DELIMITERS and text_key not in _header(source)


def _refuse_without_cells(source: Input, text_key: str) -> None:
    """Raises BadInput where the header of a CSV file does not name the text, once."""
    header = _header(source)
    if header.count(text_key) != 1:
        rule = (
            f"is no column of {source.path}." if text_key not in header else f"names several columns of {source.path}."
        )
        remedy = f"Its first line names {', '.join(header)[:200] or 'nothing'}: name one with --text-key."
        raise BadInput(Fault(f"--text-key {text_key}", rule, remedy))


def _document_spans(file: int, path: Path, size: int) -> list[Span]:
    """Stretches of documents of a dataset."""
    starts = IndexedDataset(path.with_suffix("")).document_starts
    step = max(1, size // _TEXT_OF_TOKEN)
    cuts = np.searchsorted(starts, np.arange(0, int(starts[-1]) + step, step), side="left")
    cuts = np.unique(np.append(cuts[cuts < len(starts)], [0, len(starts) - 1]))
    return [
        Span(
            Piece(file, number, path, first, end, base=int(starts[first])),
            False,
            int(starts[end] - starts[first]) * _TEXT_OF_TOKEN,
        )
        for number, (first, end) in enumerate(pairwise(cuts.tolist()))
    ]


def of_shard(found: Sequence[Span], shard: int, shards: int) -> list[Span]:
    """The spans of shard 1 to `shards`: neighbours, about as much text as every other shard has."""
    total = sum(span.size for span in found)
    taken: list[Span] = []
    before = 0
    for number, span in enumerate(found):
        middle = (before + span.size / 2) / total if total else (number + 0.5) / len(found)
        before += span.size
        if min(shards, math.floor(middle * shards) + 1) == shard:
            taken.append(span)
    return taken


def unpacked(stream: BinaryIO, file: int, whole: bool, hashed: bool, folder: Path, size: int) -> Iterator[Piece]:
    """The pieces of a stream, cut behind a line end, each in a file of its own; all in one if it is kept `whole`."""
    number = base = 0
    block = stream.read(BLOCK)
    while block:
        path = folder / f"{piece_name(file, number)}.input"
        length, digest = 0, blake2b(digest_size=16)
        with named_errors(path), path.open("wb") as out:
            while block:
                cut = 0 if whole or length + len(block) < size else block.rfind(b"\n") + 1
                part, rest = (block[:cut], block[cut:]) if cut else (block, b"")
                out.write(part)
                length += len(part)
                if hashed:
                    digest.update(part)
                block = rest or stream.read(BLOCK)
                if cut:
                    break
        yield Piece(file, number, path, 0, length, base, digest.hexdigest() if hashed else "")
        number, base = number + 1, base + length
