"""Scores of documents: PREFIX.NAME.npy, a column, and PREFIX.NAME.score.json, which says how it was made.

The record names the dataset's content; a score of other content is refused. A .npy array without a record, made
elsewhere, is used as it is; only its length can be checked.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.columns import DOCUMENTS, LOSS_SPANS, ColumnWriter, column_path, read_column
from megatron_cpt.corpus.manifest import Manifest, refuse_other_content, tool_version
from megatron_cpt.runs.folder import file_sha256, only_writer, read_json_object, write_checked_json

_OF_THE_DATASET = (DOCUMENTS, LOSS_SPANS, "selection", "ids", "manifest", "validation", "tokens")
"""Names of files beside a dataset that are no scores, and of what a condition knows without one."""


_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """The content of PREFIX.NAME.score.json."""

    how: dict[str, Any]
    """What decides the numbers, the dataset aside: method, settings, references with their hashes."""
    documents: int
    """Documents scored: all of the dataset."""
    lowest: float | None
    """Smallest score; None for a dataset without documents."""
    highest: float | None
    """Largest score."""
    data_sha256: str
    """SHA-256 of the dataset's .bin."""
    index_sha256: str
    """SHA-256 of the dataset's .idx."""
    array_sha256: str
    """SHA-256 of PREFIX.NAME.npy."""
    tool_version: str
    """Version of this package that wrote it."""


def record_path(prefix: str | Path, name: str) -> Path:
    """The file of a score's record."""
    return Path(f"{prefix}.{name}.score.json")


def scores_beside(prefix: str | Path) -> list[str]:
    """The names of the scores of a dataset, in alphabetical order."""
    path = Path(prefix)
    names = (file.name[len(path.name) + 1 : -len(".npy")] for file in path.parent.glob(f"{escape(path.name)}.*.npy"))
    return sorted(name for name in names if _NAME.fullmatch(name) and name not in _OF_THE_DATASET)


def check_name(name: str) -> None:
    """BadInput for a name that cannot be a part of a file name, or is of a file of the dataset's own."""
    if name in _OF_THE_DATASET:
        rule = "is the name of something else that a dataset has."
        raise BadInput(Fault(f"score {name!r}", rule, f"Use another than {', '.join(_OF_THE_DATASET)}."))
    if not _NAME.fullmatch(name):
        raise BadInput(
            Fault(f"score {name!r}", "is no name for a score.", "Use letters, digits, - and _, as in ngram-medical.")
        )


def read_score(prefix: str | Path, name: str, manifest: Manifest) -> npt.NDArray[Any]:
    """The scores of a dataset, mapped from disk: a number for each of manifest.documents.

    Raises BadInput where there is no such score, it was made for other content, or it is not a number
    somewhere; IntegrityFault where its files are torn or altered.
    """
    check_name(name)
    scores = read_column(prefix, name, manifest.documents)
    record = read_record(prefix, name)
    if record is not None:
        remade = "Run `megatron-cpt score --overwrite`."
        array = column_path(prefix, name)
        refuse_other_content(array, prefix, manifest, record.data_sha256, record.index_sha256, remade)
        if file_sha256(column_path(prefix, name)) != record.array_sha256:
            raise IntegrityFault(
                f"{column_path(prefix, name)}: is not the array that {record_path(prefix, name).name} describes. "
                "Run `megatron-cpt score` again."
            )
    if scores.dtype.kind not in "fiu":
        raise BadInput(Fault(f"score {name}", f"has no numbers ({prefix}: {scores.dtype}).", "Name a score."))
    missing = int(np.isnan(scores).sum())
    if missing:
        rule = f"is not a number for {missing:,} documents of {prefix}."
        raise BadInput(Fault(f"score {name}", rule, "Score it again."))
    return scores


def read_record(prefix: str | Path, name: str) -> ScoreRecord | None:
    """The record of a score, or None where there is none. IntegrityFault: it is no such record."""
    path = record_path(prefix, name)
    content = read_json_object(path)
    if content is None:
        return None
    try:
        known = {field.name for field in fields(ScoreRecord)}
        return ScoreRecord(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise IntegrityFault(f"{path}: is not the record of a score ({error}). Score the dataset again.") from error


def whole_record(prefix: str | Path, name: str) -> ScoreRecord:
    """The record of a score that is known to be there."""
    record = read_record(prefix, name)
    assert record is not None, f"no record of {name} beside {prefix}"
    return record


def write_score(
    prefix: str | Path,
    name: str,
    manifest: Manifest,
    chunks: Iterable[npt.NDArray[np.float32]],
    how: dict[str, Any],
    *,
    overwrite: bool = False,
    wait: bool = False,
) -> ScoreRecord:
    """Writes both files from scores that come a piece at a time: float32[any], manifest.documents in all.

    Args:
        overwrite: whether another score of this name is replaced.
        wait: whether another process that writes one of this name is waited for; if it is this very score, it stays.
    Raises:
        BadInput: a score is not a number, then nothing is written; there is another score of this name; or another
            process writes it, and is not waited for.
    """
    array, beside = column_path(prefix, name), record_path(prefix, name)
    with only_writer(array, (array, beside), wait=wait):
        there = is_scored(prefix, name, manifest, how)
        if there and wait:
            return whole_record(prefix, name)
        if not (there or overwrite):
            refuse_other_score(prefix, name)
        return _write_score(prefix, name, manifest, chunks, how)


def _write_score(
    prefix: str | Path, name: str, manifest: Manifest, chunks: Iterable[npt.NDArray[np.float32]], how: dict[str, Any]
) -> ScoreRecord:
    lowest, highest = np.inf, -np.inf
    with ColumnWriter(prefix, name, "<f4") as column:
        for chunk in chunks:
            if np.isnan(chunk).any():
                number = column.count + int(np.argmax(np.isnan(chunk)))
                rule = f"is not a number for document {number:,} of {prefix}."
                raise BadInput(Fault(f"score {name}", rule, "See what the document holds: `megatron-cpt inspect`."))
            column.add(chunk)
            if len(chunk):
                lowest, highest = min(lowest, float(chunk.min())), max(highest, float(chunk.max()))
        assert column.count == manifest.documents, f"{column.count} scores for {manifest.documents} documents"
    record = ScoreRecord(
        how=how,
        documents=manifest.documents,
        lowest=lowest if manifest.documents else None,
        highest=highest if manifest.documents else None,
        data_sha256=manifest.data_sha256,
        index_sha256=manifest.index_sha256,
        array_sha256=file_sha256(column_path(prefix, name)),
        tool_version=tool_version(),
    )
    write_checked_json(record_path(prefix, name), asdict(record))
    return record


def refuse_other_score(prefix: str | Path, name: str) -> None:
    """Raises BadInput where a whole score has this name: it was made in another way, or elsewhere."""
    array = column_path(prefix, name)
    try:
        record = read_record(prefix, name)
    except IntegrityFault:
        return
    if not array.is_file() or (record is not None and file_sha256(array) != record.array_sha256):
        return  # A killed call left one of the two files, or one of another score.
    how = "elsewhere" if record is None else "in another way, or of other content"
    remedy = "Give another --name, or --overwrite to replace it."
    raise BadInput(Fault(str(array), f"is a score that was made {how}.", remedy))


def is_scored(prefix: str | Path, name: str, manifest: Manifest, how: dict[str, Any]) -> bool:
    """Whether a dataset has this very score already, whole."""
    try:
        record = read_record(prefix, name)
        read_score(prefix, name, manifest)
    except (BadInput, IntegrityFault):
        return False
    # As JSON holds it: tuples are lists there.
    return record is not None and record.how == orjson.loads(orjson.dumps(how))
