"""The files that are read, and what each one is: told by its first bytes, and by its name where these do not tell."""

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal, cast

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.preparation.lines import Compression, compression_of, first_bytes

Kind = Literal["json_lines", "text", "text_lines", "parquet"]
"""JSON objects, one a line; a document a file; a document a line; rows of a table."""
KINDS: dict[str, Kind] = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json_lines",
    ".txt": "text",
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".zst")
SUFFIXES = (*KINDS, *(kind + ending for kind in KINDS if kind != ".parquet" for ending in COMPRESSED))
STANDARD_INPUT = Path("-")
_PARQUET = b"PAR1"
_SAID = f"Give {', '.join(KINDS)} (all but parquet also {' or '.join(COMPRESSED)}), or - for standard input."


@dataclass(frozen=True)
class Input:
    """One input file."""

    path: Path
    """Where it is; STANDARD_INPUT for the stream."""
    kind: Kind
    compression: Compression | None = None

    @property
    def streamed(self) -> bool:
        """Whether it can only be read from its beginning to its end."""
        return self.compression is not None or self.path == STANDARD_INPUT


def input_files(paths: Sequence[str], document_per_line: bool = False) -> list[Input]:
    """What paths, folders and globs name, in the order given, files of one folder or glob by name.

    `document_per_line` takes each line of a text file for a document. Raises BadInput listing each path that
    is missing, of an unknown kind, or named twice.
    """
    faults: list[Fault] = []
    inputs: list[Input] = []
    seen: set[Path] = set()
    for text in paths:
        found = _files_of(text)
        if not found:
            faults.append(Fault(text, "is not there, or holds no corpus file.", _SAID))
        for file in found:
            known = _described(file, document_per_line)
            if isinstance(known, Fault):
                faults.append(known)
            elif file.resolve() in seen:
                faults.append(Fault(str(file), "is named twice.", "Name each input once."))
            else:
                inputs.append(known)
            seen.add(file.resolve())
    if faults:
        raise BadInput(*faults)
    return inputs


def _files_of(text: str) -> list[Path]:
    path = Path(text)
    if path == STANDARD_INPUT or path.is_file():
        return [path]
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
    return [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]


def _described(path: Path, document_per_line: bool) -> Input | Fault:
    """What a file is, or why it cannot be read."""
    head = _head(path)
    compression = compression_of(head)
    kind = _kind(path, head, compression)
    if kind is None and path.name.endswith(COMPRESSED):
        return Fault(str(path), "is not a whole gzip or Zstandard file.", "Copy it again.")
    if kind is None:
        return Fault(str(path), "is not a kind of file that is read.", _SAID)
    if kind == "json_lines" and _plain(head, compression).lstrip().startswith(b"["):
        remedy = "Write its items one a line, for example with `jq -c '.[]'`."
        return Fault(str(path), "is one JSON array, not JSON lines.", remedy)
    if kind == "parquet" and (path == STANDARD_INPUT or not head.startswith(_PARQUET)):
        rule = "is not a parquet file." if path != STANDARD_INPUT else "is parquet, which cannot be read as a stream."
        return Fault(str(path), rule, "Give the file itself, whole.")
    return Input(path, "text_lines" if kind == "text" and document_per_line else kind, compression)


def _kind(path: Path, head: bytes, compression: Compression | None) -> Kind | None:
    if head.startswith(_PARQUET):
        return "parquet"
    name = path.name.lower()
    if compression is not None:
        name = name.removesuffix(".gz").removesuffix(".zst")
    for ending, kind in KINDS.items():
        if name.endswith(ending):
            return kind
    if _plain(head, compression).lstrip().startswith(b"{"):
        return "json_lines"
    return "text" if path == STANDARD_INPUT else None


def _head(path: Path) -> bytes:
    """Some first bytes, left where they are."""
    if path == STANDARD_INPUT:
        return cast(BufferedReader, sys.stdin.buffer).peek()
    with path.open("rb") as file:
        return file.read(1 << 16)


def _plain(head: bytes, compression: Compression | None) -> bytes:
    try:
        return first_bytes(head, compression)
    except IntegrityFault:
        return b""
