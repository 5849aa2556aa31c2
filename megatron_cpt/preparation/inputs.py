"""The input files: what paths, folders, globs and URLs name, and what of it is not read.

Of a folder every file is looked at, at any depth; those that are none of a corpus are named in a warning.
"""

import glob
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.indexed import bin_path, idx_path
from megatron_cpt.corpus.parts import HELD_OUT, held_out_faults, named_by, part_faults
from megatron_cpt.corpus.stream import prefix_of
from megatron_cpt.preparation.input_kinds import (
    FILES_READ,
    PRETTY_JSON,
    STANDARD_INPUT,
    Input,
    described,
    lacks_text,
    table_fault,
)
from megatron_cpt.preparation.remote_file import RemoteFile, is_remote, remote_files

_SIDE_FILES = re.compile(
    r"(readme|licen[cs]e|copying|copyright|notice|changelog|citation|authors|contributing|contributors|requirements"
    r"|sha256sums?|md5sums?|checksums?)([-_][^.]*)?(\.(txt|md|rst))?|(dataset_infos?|dataset_dict|state)\.json"
    r"|cache-[^.]*\.arrow",
)
"""Names of what stands beside the documents in a folder: licences and the like, and Hugging Face's own files."""


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
        what = _all_described(found, document_per_line)
        of_folders: list[Input] = []
        for (file, of_folder), known in zip(found, what, strict=True):
            if known is None:
                not_read.append(file)
                continue
            if isinstance(known, Fault):
                faults.append(known)
            elif (table := table_fault(known, text_key)) is not None:
                faults.append(table)
            elif file.resolve() in seen:
                faults.append(Fault(str(file), "is named twice.", "Name each input once."))
            else:
                inputs.append(known)
                of_folders += [known] if of_folder else []
            seen.add(file.resolve())
        beside = [source for source in of_folders if text_key is not None and lacks_text(source, text_key)]
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
    return [*part_faults(prefixes), *held_out_faults(prefixes)]


_REQUESTS = 16
"""Of an object store at a time: each takes long, and a corpus has thousands of files."""


def _all_described(
    found: Sequence[tuple[Path | RemoteFile, bool]], document_per_line: bool
) -> list[Input | Fault | None]:
    """What each file is, as `described` says it."""

    def of_one(file: Path | RemoteFile, of_folder: bool) -> Input | Fault | None:
        if of_folder and _SIDE_FILES.fullmatch(file.name.lower()):
            return None
        try:
            return described(file, document_per_line, of_folder)
        except PermissionError as error:
            if isinstance(file, RemoteFile):
                raise
            return _unreadable(str(file), error)

    if any(isinstance(file, RemoteFile) for file, _ in found):
        with ThreadPoolExecutor(_REQUESTS) as pool:
            return list(pool.map(of_one, *zip(*found, strict=True)))
    return [of_one(*one) for one in found]


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
        return Fault(text, "is not there, or holds no file.", FILES_READ)
    rule = f"holds no corpus file: {len(there):,} others, such as {there[0].name}."
    pretty = next((file for file in there if described(file, False, False) == Fault(str(file), *PRETTY_JSON)), None)
    return Fault(str(pretty), *PRETTY_JSON) if pretty is not None else Fault(text, rule, FILES_READ)


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
