"""What an input is: its kind and compression, by its first bytes, and by its name where they do not tell.

What would be read wrongly from its beginning on is refused: an array, objects over several lines, UTF-16. Standard
input is looked at before it is read; it is known when the first whole document is.
"""

import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.preparation.compression import Compression, compression_of, decompressed, first_bytes
from megatron_cpt.preparation.remote_file import RemoteFile

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
_BUFFER = 1 << 20
"""Bytes of standard input that are taken at a time."""
_HEADS: dict[Kind, tuple[bytes, ...]] = {"parquet": (b"PAR1",), "arrow": (b"ARROW1", b"\xff\xff\xff\xff")}
"""First bytes of tables: of Arrow files those with random access, and streams."""
FILES_READ = (
    f"Give {', '.join(KINDS)} (all but parquet and arrow also {', '.join(_COMPRESSED)}), the prefix of a dataset, or - "
    "for standard input."
)


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


def described(path: Path | RemoteFile, document_per_line: bool, of_folder: bool) -> Input | Fault | None:
    """What a file is, or why it cannot be read. None: it is a file of a folder and of no corpus."""
    if not _is_text(str(path.absolute())):
        return Fault(repr(str(path)), "has a name that is not UTF-8 text.", "Rename the file or folder.")
    if not (path == STANDARD_INPUT or path.is_file()):
        return Fault(str(path), "is a link to nothing.", "Mend the link, or take it away.")
    if isinstance(path, Path) and path.suffix == ".bin" and path.with_suffix(".idx").is_file() and not of_folder:
        return Input(path, "indexed")
    head, plain, compression = _beginning(path)
    kind = _kind(path, head, plain, compression)
    if kind is None and compression is None and path.name.lower().endswith(_COMPRESSED):
        return Fault(str(path), "is not a whole compressed file.", "Copy it again.")
    if kind is None:
        return None if of_folder else Fault(str(path), "is not a kind of file that is read.", FILES_READ)
    if kind in TABLES:
        if path == STANDARD_INPUT:
            return Fault("-", f"is a table ({kind}), which cannot be read as a stream.", "Give the file itself, whole.")
        if not head.startswith(_HEADS[kind]):
            rule = f"is not {'a parquet' if kind == 'parquet' else 'an Arrow'} file."
            return Fault(str(path), rule, "Give the file itself, whole.")
        return Input(path, kind, compression)
    if kind == "text" and document_per_line:
        kind = "text_lines"
    wrong = _not_as_needed(plain, kind)
    if wrong is None:
        return Input(path, kind, compression)
    # An object over many lines in a folder is a file of settings.
    return None if of_folder and wrong == PRETTY_JSON else Fault(str(path), *wrong)


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
PRETTY_JSON = ("has JSON objects over several lines.", "Write each in one line, for example with `jq -c .`.")
_UTF16 = ("is text in UTF-16 or UTF-32.", "Convert it, for example with `iconv -f UTF-16 -t UTF-8`.")
_CARRIAGE_RETURNS = ("has lines that end in a carriage return alone.", "Convert it, for example with `tr '\\r' '\\n'`.")


def _not_as_needed(plain: bytes, kind: Kind) -> tuple[str, str] | None:
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
    return PRETTY_JSON if re.match(rb"\{[ \t\r]*\n", content) else None


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


def table_fault(source: Input, text_key: str | None) -> Fault | None:
    """Why standard input is not read as the text that it seems to be: it begins as CSV does."""
    if source.path != STANDARD_INPUT or source.kind != "text" or not _is_table(_beginning(source.path)[1], text_key):
        return None
    rule = "is a table (CSV), which is told by the name of a file."
    return Fault("-", rule, "Give the file itself, named .csv or .tsv.")


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


def _beginning(path: Path | RemoteFile) -> tuple[bytes, bytes, Compression | None]:
    """Of a file, read until it is known what it is: its first bytes, also decompressed, how it is compressed, and
    whether that is all of it."""
    head, whole = b"", False
    while True:
        head, whole = _more_of(path, head)
        compression = compression_of(head)
        plain = first_bytes(head, compression, _LOOKED_AT)
        known = path == STANDARD_INPUT and _told_by(_first_content(plain))
        if known or whole or len(plain) >= _LOOKED_AT or len(head) >= _LARGEST_HEAD:
            return head, plain, compression


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


@contextmanager
def plain_stream(source: Input) -> Iterator[BinaryIO]:
    """The plain content of an input, or of standard input, from its beginning. IntegrityFault: broken or cut short."""
    standard = source.path == STANDARD_INPUT
    with (
        io.BufferedReader(standard_input(), _BUFFER) if standard else source.path.open("rb") as raw,
        decompressed(raw, str(source.path), source.compression) as stream,
    ):
        yield stream


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


def lacks_text(source: Input, text_key: str) -> bool:
    """Whether a file is CSV and has no column of the text."""
    return source.kind in DELIMITERS and text_key not in _header(source)


def refuse_without_cells(source: Input, text_key: str) -> None:
    """Raises BadInput where the header of a CSV file does not name the text, once."""
    header = _header(source)
    if header.count(text_key) != 1:
        rule = (
            f"is no column of {source.path}." if text_key not in header else f"names several columns of {source.path}."
        )
        remedy = f"Its first line names {', '.join(header)[:200] or 'nothing'}: name one with --text-key."
        raise BadInput(Fault(f"--text-key {text_key}", rule, remedy))
