"""Documents that are tokens already: a pair PREFIX.bin and PREFIX.idx, made here or by Megatron-LM.

Tokens are taken as they are, control tokens among them, but for BOS and EOD: those that are there are taken off, and
every document gets those of the call. A document is known by the hash of its text, so that it is a copy, or held out,
where its text would be: the hash that prepare kept beside the pair, or that of its decoded tokens.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.columns import DOCUMENTS, column_path, read_column
from megatron_cpt.corpus.indexed import IndexedDataset, manifest_path
from megatron_cpt.corpus.manifest import Manifest, documents_column, open_dataset, read_manifest
from megatron_cpt.preparation.documents import Document
from megatron_cpt.preparation.input_kinds import Input
from megatron_cpt.preparation.pieces import Piece
from megatron_cpt.tokenizer.formats import Encoded
from megatron_cpt.tokenizer.tokenizer import Tokenizer

_LOOKED_AT = 1000
"""Documents, evenly spaced, whose ends are looked at."""
_COMPARED = 16
"""Documents, evenly spaced, whose text is tokenized again."""


@dataclass(frozen=True)
class TokenReader:
    """What the documents of a pair are read with."""

    tokenizer: Tokenizer
    bos: int | None
    """Opens each document of the call."""
    eod: int | None
    """Closes each document of the call."""
    with_text: bool
    """Whether texts are needed, beside their hashes."""

    def documents(self, piece: Piece) -> Iterator[Document]:
        """The documents of a piece. Raises BadInput for an id beyond the vocabulary, IntegrityFault: broken."""
        prefix = piece.path.with_suffix("")
        manifest = read_manifest(prefix) if manifest_path(prefix).is_file() else None
        # The call has proved the index when it began: no piece reads all of it again.
        dataset = IndexedDataset(prefix, checked="", compared=False)
        ends = piece.base + np.cumsum(dataset.sequence_lengths[piece.start : piece.end], dtype=np.int64)
        described = _hashes(prefix, manifest)
        hashes = None if described is None else described[piece.start : piece.end].tolist()
        parts = [0] * (piece.end - piece.start)
        if manifest is not None and manifest.cut and described is not None:
            parts = part_numbers(described["content_hash"], piece.start, piece.end)
        for number, (start, end) in enumerate(pairwise([piece.base, *ends.tolist()])):
            ids = np.array(dataset.tokens[start:end], np.int32)
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.tokenizer.vocabulary_size:
                raise BadInput(_beyond(prefix, self.tokenizer))
            ids = self.without_ends(ids, manifest)
            text = self.tokenizer.decode_all(ids) if hashes is None or self.with_text else ""
            hashed = None if hashes is None else hashes[number]
            # Parts are of the place of their first: they stay together.
            place = piece.start + number - max(parts[number] - 1, 0)
            yield Document(text, number + 1, place, tokens=ids, hashed=hashed, part=parts[number])

    def without_ends(self, ids: npt.NDArray[np.int32], manifest: Manifest | None) -> npt.NDArray[np.int32]:
        """The ids of a document without the BOS and EOD that its manifest names, or else those of the call."""
        known = manifest is not None and manifest.tokenizer is not None
        bos, eod = (manifest.bos, manifest.eod) if known and manifest is not None else (self.bos, self.eod)
        if eod is not None and len(ids) and ids[-1] == eod:
            ids = ids[:-1]
        return ids[1:] if bos is not None and len(ids) and ids[0] == bos else ids


def part_numbers(hashes: npt.NDArray[np.uint64], first: int, end: int) -> list[int]:
    """The number of each document from `first` to `end` - 1 among its neighbours of the same hash, from 1; 0: it has
    none. `hashes` are those of all documents.

    >>> part_numbers(np.array([5, 7, 7, 7, 9, 9], np.uint64), 2, 5)
    [2, 3, 1]
    """
    begin = first
    while 0 < begin < len(hashes) and hashes[begin - 1] == hashes[begin]:
        begin -= 1
    near = np.array(hashes[begin : end + 1])
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(near)), np.bool_), near[1:] != near[:-1]]))
    lengths = np.diff(starts, append=len(near))
    numbers = np.arange(len(near)) - np.repeat(starts, lengths) + 1
    numbers[np.repeat(lengths, lengths) == 1] = 0
    return numbers[first - begin : end - begin].tolist()


def faults_of_pairs(inputs: Sequence[Input], reader: TokenReader, holds_out: bool) -> list[Fault]:
    """Why pairs among the inputs cannot be read with a tokenizer, or not be held out from (`holds_out`).

    Warns where the texts of a pair would be known by other hashes than those that they were made from.
    IntegrityFault: a pair is broken.
    """
    prefixes = [source.local.with_suffix("") for source in inputs if source.kind == "indexed"]
    return [fault for prefix in prefixes for fault in _faults(prefix, reader, holds_out)]


def _faults(prefix: Path, reader: TokenReader, holds_out: bool) -> Iterator[Fault]:
    dataset, manifest = _opened(prefix)
    tokenizer = reader.tokenizer
    before = {} if manifest is None else manifest.settings or {}
    if holds_out and (before.get("holdout") or before.get("holdout_tokens")):
        rule = (
            "was prepared with --holdout itself: a share is taken by the same hash of the text, so it is gone from it."
        )
        yield Fault(
            str(prefix), rule, "Take --holdout out and use the part that was held out, or prepare the text again."
        )
    if dataset.sequences != dataset.documents:
        yield Fault(str(prefix), "has documents of several sequences, which are not read.", "Prepare its text.")
    if manifest is not None and manifest.loss_spans_sha256 is not None:
        rule = "has spans of tokens that count in the loss, which would be lost."
        yield Fault(str(prefix), rule, "Prepare its conversations again, or join it with tools/merge_datasets.py.")
    if manifest is not None and manifest.tokenizer is not None:
        if manifest.tokenizer != tokenizer.identity:
            rule = f"was made with another tokenizer than {tokenizer.folder}."
            yield Fault(str(prefix), rule, f"It was {manifest.tokenizer_folder}.")
        if manifest.documents_sha256 is not None:
            documents_column(prefix, manifest)
        return
    if max((int(sample.max()) for sample in dataset.samples()), default=0) >= tokenizer.vocabulary_size:
        yield _beyond(prefix, tokenizer)
        return
    yield from _other_ends(prefix, dataset, reader)
    differing = _not_from_text(dataset, reader)
    if differing:
        warnings.warn(
            f"{prefix}: {differing} of {min(_COMPARED, dataset.documents)} documents that were looked at have other "
            "tokens than their text has here: they are of another tokenizer, or this one changes texts. Copies and "
            "held-out documents are found by the text of the tokens, which may not be the one that they were made from",
            stacklevel=2,
        )


def _other_ends(prefix: Path, dataset: IndexedDataset, reader: TokenReader) -> Iterator[Fault]:
    """Where most documents begin or end with a control token that the call does not take for BOS or EOD."""
    starts = dataset.document_starts
    chosen = np.unique(np.linspace(0, max(dataset.documents - 1, 0), _LOOKED_AT).astype(np.int64))[: dataset.documents]
    chosen = chosen[starts[chosen + 1] > starts[chosen]]
    for name, places, own, remedy in (
        ("end", starts[chosen + 1] - 1, reader.eod, "Name it with --eod, or give the tokenizer it was made with."),
        ("begin", starts[chosen], reader.bos, "Give --bos always, or the tokenizer it was made with."),
    ):
        ids = np.array(dataset.tokens[places], np.int32)
        control = reader.tokenizer.control_tokens(Encoded(ids, np.ones(len(ids), np.int64)))
        numbers = Counter(int(ids[place]) for place in control)
        # A document of EOD alone begins with it.
        found, count = next(iter(numbers.most_common(1)), (None, 0))
        if found not in (None, own, reader.eod) and 2 * count > len(ids):
            token = reader.tokenizer.decode([found])
            mine = "none" if own is None else reader.tokenizer.decode([own])
            role = "EOD" if name == "end" else "BOS"
            yield Fault(
                str(prefix), f"has documents that {name} with {token}, where the {role} here is {mine}.", remedy
            )


def _not_from_text(dataset: IndexedDataset, reader: TokenReader) -> int:
    """Of documents evenly spaced, those whose text has other tokens."""
    chosen = np.unique(np.linspace(0, max(dataset.documents - 1, 0), _COMPARED).astype(np.int64))[: dataset.documents]
    ids = [reader.without_ends(np.array(dataset.document(number), np.int32), None) for number in chosen.tolist()]
    again = reader.tokenizer.encode_batch([reader.tokenizer.decode_all(one) for one in ids])
    return sum(not np.array_equal(*pair) for pair in zip(ids, again, strict=True))


def _opened(prefix: Path) -> tuple[IndexedDataset, Manifest | None]:
    """A pair, and its manifest where there is one; none is written beside an input."""
    return open_dataset(prefix) if manifest_path(prefix).is_file() else (IndexedDataset(prefix), None)


def _hashes(prefix: Path, manifest: Manifest | None) -> npt.NDArray[Any] | None:
    """Hash and bytes of the text of each document, which prepare kept; None where it did not."""
    there = manifest is not None and manifest.documents_sha256 is not None and column_path(prefix, DOCUMENTS).is_file()
    return read_column(prefix, DOCUMENTS, manifest.documents) if there and manifest is not None else None


def _beyond(prefix: Path, tokenizer: Tokenizer) -> Fault:
    rule = f"holds ids that {tokenizer.folder} does not have: its last is {tokenizer.vocabulary_size - 1:,}."
    return Fault(str(prefix), rule, "Give the tokenizer that it was made with.")
