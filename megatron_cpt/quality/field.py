"""A number that stands in the JSON already, as a score: found again by the hash of each document's text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.columns import DOCUMENTS, read_column
from megatron_cpt.corpus.scores import check_name, whole_record, write_score
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.preparation.batches import batches
from megatron_cpt.preparation.documents import Document, Keys, Rejected, read_piece
from megatron_cpt.preparation.holdout import content_hash
from megatron_cpt.preparation.inputs import Input, input_files
from megatron_cpt.preparation.lines import decompressed
from megatron_cpt.preparation.pieces import piece_size, spans, unpacked
from megatron_cpt.quality.score import Scored, already


def score_by_field(
    datasets: Sequence[SelectedDataset],
    name: str,
    field: str,
    text_key: str | None,
    paths: Sequence[str],
    overwrite: bool = False,
) -> list[Scored]:
    """Writes the score of each dataset from the field of its documents.

    `paths` are the files it was prepared from, by default those that its manifest names; `text_key` is by
    default the key it was prepared with. Raises BadInput where files are unknown, gone or changed, or a document
    has no number, or a dataset has another score of this name and it may not be replaced (`overwrite`).
    """
    check_name(name)
    results = []
    for part in datasets:
        inputs = input_files(paths) if paths else _sources(part)
        state = [[str(source.path.resolve()), *_state(source.path)] for source in inputs]
        keys = Keys(text_key or (part.manifest.settings or {}).get("text_key", "text"), field)
        how = {"by": "field", "field": field, "text_key": keys.text, "sources": state}
        reused = already([part], name, how, overwrite)[part.prefix]
        if not reused:
            write_score(part.prefix, name, part.manifest, [_scores(part, inputs, keys)], how)
        results.append(Scored(part.prefix, whole_record(part.prefix, name), reused))
    return results


def _sources(part: SelectedDataset) -> list[Input]:
    """The files that a manifest names, as they were then."""
    sources = part.manifest.sources
    if not sources:
        rule = "does not say which files it was prepared from."
        raise BadInput(Fault(str(part.prefix), rule, "Name them with --input."))
    for source in sources:
        path = Path(source.path)
        if not path.is_file() or _state(path) != (source.size, source.modified_ns):
            rule = f"was prepared from {path}, which is gone or changed."
            raise BadInput(Fault(str(part.prefix), rule, "Name the files, as they are now, with --input."))
    return input_files([source.path for source in sources])


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _scores(part: SelectedDataset, inputs: Sequence[Input], keys: Keys) -> npt.NDArray[np.float32]:
    """The number under keys.id of each document; of copies the first that has one counts."""
    prefix, manifest = part.prefix, part.manifest
    hashes = read_column(prefix, DOCUMENTS, manifest.documents)["content_hash"]
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    scores = np.full(manifest.documents, np.nan, np.float32)
    for batch in batches(read_documents(inputs, keys), []):
        numbers = np.array([_number(document.id) for document in batch], np.float32)
        found = np.frombuffer(b"".join(content_hash(document.text.encode()) for document in batch), "<u8")
        first, end = np.searchsorted(ordered, found), np.searchsorted(ordered, found, side="right")
        for number, begin, behind in zip(numbers, first, end, strict=True):
            same = order[begin:behind]
            scores[same[np.isnan(scores[same])]] = number
    missing = int(np.isnan(scores).sum())
    if missing:
        rule = f"gives no number for {missing:,} of the {manifest.documents:,} documents of {prefix}."
        raise BadInput(Fault(f"--field {keys.id}", rule, "Name another field, or --input with the files as prepared."))
    return scores


def read_documents(inputs: Sequence[Input], keys: Keys) -> Iterator[Document | Rejected]:
    """Every document or rejected line of whole inputs, in the order read."""
    size = piece_size(inputs)
    for span in spans(inputs, size, keys.text):
        source = inputs[span.piece.file]
        if not span.streamed:
            yield from read_piece(span.piece, source.kind, keys)
            continue
        with (
            TemporaryDirectory() as folder,
            source.path.open("rb") as raw,
            decompressed(raw, str(source.path), source.compression) as stream,
        ):
            for piece in unpacked(stream, span.piece.file, source.kind == "text", False, Path(folder), size):
                yield from read_piece(piece, source.kind, keys)
                piece.path.unlink()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
