"""Scores that stand in the documents already: a number in a field, matched by the hash of each document's text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.manifest import documents_column
from megatron_cpt.corpus.parts import source_files
from megatron_cpt.corpus.scores import check_name, whole_record, write_score
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.preparation.documents import Keys, read_inputs
from megatron_cpt.preparation.input_kinds import Input
from megatron_cpt.preparation.inputs import input_files
from megatron_cpt.preparation.process_piece import batches
from megatron_cpt.preparation.remote_file import RemoteFile, absolute_path
from megatron_cpt.preparation.sorted_runs import content_hash
from megatron_cpt.quality.engines import Engine, OneMachine
from megatron_cpt.quality.score import HERE, Scored, already


@dataclass(frozen=True)
class Field:
    """Where the number of a document stands."""

    key: str
    """`metadata.score` is nested."""
    text_key: str | None = None
    """Key of the text. None: the one that the dataset was prepared with."""
    paths: tuple[str, ...] = ()
    """The files that the dataset was prepared from. None given: those that its manifest names."""
    missing: float | None = None
    """Score of a document without a number. None: such a document is refused."""


def score_by_field(
    datasets: Sequence[SelectedDataset],
    name: str,
    field: Field,
    engine: Engine = HERE,
    *,
    overwrite: bool = False,
) -> list[Scored]:
    """Writes the score of each dataset from the field of its documents.

    Raises BadInput where files are unknown, gone or changed, or a document has no number and `missing` is None, or no
    document of all the datasets has one, or a dataset has another score of this name and it may not be replaced
    (`overwrite`).
    """
    check_name(name)
    field = replace(field, paths=tuple(map(absolute_path, field.paths)))
    done: dict[Path, bool] = {}
    for part in datasets:
        inputs = _inputs(field, part)
        done |= already([part], name, _how(field, _keys(field, part), inputs), overwrite)
    left = [part for part in datasets if not done[part.prefix]]
    found = engine.each(partial(_score, name, field, len(datasets) > 1, overwrite), left)
    without = {part.prefix: count for part, count in zip(left, found, strict=True)}
    # Written last, when another dataset is known to have numbers: where none has, the field is the wrong one.
    empty = [part for part in left if without[part.prefix] == part.manifest.documents > 0]
    with_numbers = {part.prefix for part in datasets} - {part.prefix for part in empty}
    if empty and not any(part.manifest.documents for part in datasets if part.prefix in with_numbers):
        raise _no_number(field.key, sum(part.manifest.documents for part in empty), empty, False)
    for part in empty:
        how = _how(field, _keys(field, part), _inputs(field, part))
        scores = np.full(part.manifest.documents, field.missing, np.float32)
        write_score(part.prefix, name, part.manifest, [scores], how, overwrite=overwrite)
    return [
        Scored(part.prefix, whole_record(part.prefix, name), done[part.prefix], without.get(part.prefix, 0))
        for part in datasets
    ]


def _score(name: str, field: Field, several: bool, overwrite: bool, part: SelectedDataset, here: OneMachine) -> int:
    """Writes the score of a dataset unless none of its documents has a number; returns how many have none."""
    inputs, keys = _inputs(field, part), _keys(field, part)
    scores, documents = _numbers(part, inputs, keys), part.manifest.documents
    without = int(np.isnan(scores).sum())
    if without and field.missing is None:
        raise _no_number(field.key, without, [part], several or without < documents)
    if without < documents or not documents:
        scores[np.isnan(scores)] = field.missing
        how = _how(field, keys, inputs)
        write_score(part.prefix, name, part.manifest, [scores], how, overwrite=overwrite, wait=here.waits)
    return without


def _keys(field: Field, part: SelectedDataset) -> Keys:
    settings = part.manifest.settings or {}
    chat = settings.get("train_on") is not None
    return Keys(field.text_key or settings.get("text_key", "text"), field.key, chat=chat)


def _how(field: Field, keys: Keys, inputs: Sequence[Input]) -> dict[str, Any]:
    state = [[str(source.path.resolve()), *_state(source.path)] for source in inputs]
    how: dict[str, Any] = {"by": "field", "field": field.key, "text_key": keys.text, "sources": state}
    return how if field.missing is None else how | {"missing": field.missing}


def _no_number(field: str, without: int, datasets: Sequence[SelectedDataset], may_be_missing: bool) -> BadInput:
    of = str(datasets[0].prefix) + (f" and {len(datasets) - 1:,} more datasets" if len(datasets) > 1 else "")
    documents = sum(part.manifest.documents for part in datasets)
    rule = f"gives no number for {without:,} of the {documents:,} documents of {of}."
    remedy = "Name another field, or --input with the files as prepared"
    remedy += ", or give those documents a --missing number." if may_be_missing else "."
    return BadInput(Fault(f"--field {field}", rule, remedy))


def _inputs(field: Field, part: SelectedDataset) -> list[Input]:
    """The files that were given, or those that a manifest names, as they were then."""
    if field.paths:
        return input_files(field.paths)
    sources = source_files(part.prefix, part.manifest)
    if not sources:
        rule = "does not say which files it was prepared from."
        raise BadInput(Fault(str(part.prefix), rule, "Name them with --input."))
    for source in sources:
        path = Path(source.path)
        if not path.is_file() or _state(path) != (source.size, source.modified_ns):
            rule = f"was prepared from {path}, which is gone or changed."
            raise BadInput(Fault(str(part.prefix), rule, "Name the files, as they are now, with --input."))
    return input_files([source.path for source in sources])


def _state(path: Path | RemoteFile) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _numbers(part: SelectedDataset, inputs: Sequence[Input], keys: Keys) -> npt.NDArray[np.float32]:
    """The number under keys.id of each document, of copies the first that has one: float32[documents]. NaN where there
    is none."""
    prefix, manifest = part.prefix, part.manifest
    hashes = documents_column(prefix, manifest)["content_hash"]
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    scores = np.full(manifest.documents, np.nan, np.float32)
    for batch in batches((line for _, line in read_inputs(inputs, keys)), []):
        numbers = np.array([_number(document.id) for document in batch], np.float32)
        found = np.frombuffer(b"".join(content_hash(document.content) for document in batch), "<u8")
        first, end = np.searchsorted(ordered, found), np.searchsorted(ordered, found, side="right")
        for number, begin, behind in zip(numbers, first, end, strict=True):
            same = order[begin:behind]
            scores[same[np.isnan(scores[same])]] = number
    return scores


def _number(text: str) -> float:
    """The number of a field; NaN where it is none that a score can be."""
    try:
        number = float(text)
    except ValueError:
        return np.nan
    return number if abs(number) <= _LARGEST else np.nan


_LARGEST = float(np.finfo(np.float32).max)
