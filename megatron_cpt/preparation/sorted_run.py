"""The tokenized documents of a finished piece, on disk in the order in which the dataset will have them.

1. Each document gets a 64-bit key: mixed from the seed and its place in the input, or, as read, the place itself.
2. A piece's documents are written sorted by key, so that those of any range of keys lie together.
3. The dataset is put together a range of keys at a time, reading one stretch of every run (join.py).

The order depends on seed and input alone, not on how the input was cut, nor on workers or shards. A second
table, sorted by content hash, serves the search for copies in the same way (dedup.py).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.mixed import mixed
from megatron_cpt.preparation.spool import TokenSpool
from megatron_cpt.runs.durable import renamed_file

RECORD = np.dtype(
    [
        ("key", "<u8"),
        ("content_hash", "<u8"),
        ("holdout_key", "<u8"),
        ("place", "<i8"),
        ("line", "<i8"),
        ("bytes", "<i8"),
        ("tokens", "<i8"),
        ("sentences", "<i8"),
        ("id_bytes", "<i8"),
        ("first_token", "<i8"),
        ("first_sentence", "<i8"),
        ("first_id_byte", "<i8"),
    ]
)
"""Of each document: its keys; the byte (or row) of the input at which it begins, and its line from 1 within the
piece; its UTF-8 bytes, tokens, sentences and bytes of its id, and where these three begin in the run."""
BY_HASH = np.dtype([("content_hash", "<u8"), ("place", "<i8"), ("position", "<i8")])
"""Of each document, sorted by hash and place: its position among the records."""


@dataclass(frozen=True)
class TokenizedDocuments:
    """Documents laid end to end."""

    records: npt.NDArray[np.void]
    """RECORD[documents]; its last three fields are set by `write_run`."""
    tokens: npt.NDArray[Any]
    """Ids of all, BOS and EOD included: [sum of records.tokens]."""
    sentences: npt.NDArray[np.int32]
    """Tokens of each sentence: [sum of records.sentences]; empty unless sentences are split."""
    ids: npt.NDArray[np.uint8]
    """UTF-8 of the documents' ids: [sum of records.id_bytes]."""

    def chosen(self, which: npt.NDArray[np.bool_]) -> "TokenizedDocuments":
        """The documents where bool[documents] is true."""
        records = self.records
        return TokenizedDocuments(
            records[which],
            self.tokens[np.repeat(which, records["tokens"])],
            self.sentences[np.repeat(which, records["sentences"])],
            self.ids[np.repeat(which, records["id_bytes"])],
        )

    def in_order(self, order: npt.NDArray[np.int64]) -> "TokenizedDocuments":
        """The documents in another order: int64[documents], the old number of each."""
        records = self.records
        return TokenizedDocuments(
            records[order],
            _rearranged(self.tokens, records["tokens"], order),
            _rearranged(self.sentences, records["sentences"], order),
            _rearranged(self.ids, records["id_bytes"], order),
        )

    @staticmethod
    def joined(parts: Sequence["TokenizedDocuments"]) -> "TokenizedDocuments":
        """The documents of all parts, one part behind the other."""
        return TokenizedDocuments(
            np.concatenate([part.records for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.sentences for part in parts]),
            np.concatenate([part.ids for part in parts]),
        )


def _rearranged(values: npt.NDArray[Any], lengths: npt.NDArray[Any], order: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Spans of values, one a document, laid end to end in another order."""
    if len(values) == 0:
        return values
    starts = np.cumsum(lengths) - lengths
    return np.concatenate([values[starts[i] : starts[i] + lengths[i]] for i in order])


def shuffle_keys(seed: int, file: int, places: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The keys by which documents at places of an input file are sorted: uint64[n]; distinct within a file."""
    start = np.array([seed % (1 << 64)], np.uint64)
    stream = mixed(mixed(start) + np.uint64(file + 1))
    return mixed(mixed(places.astype(np.uint64) + stream))


def write_run(path: Path, documents: TokenizedDocuments, tokens: TokenSpool) -> int:
    """Writes the documents of a piece, given in the order read with their ids apart, and returns the checksum by which
    `SortedRun.is_whole` knows them again."""
    order = np.argsort(documents.records["key"], kind="stable")
    whole = documents.in_order(order)
    records = whole.records.copy()
    for first, count in (("first_token", "tokens"), ("first_sentence", "sentences"), ("first_id_byte", "id_bytes")):
        records[first] = np.cumsum(records[count]) - records[count]
    by_hash = np.zeros(len(records), BY_HASH)
    by_hash["content_hash"], by_hash["place"] = records["content_hash"], records["place"]
    by_hash["position"] = np.arange(len(records))
    by_hash = by_hash[np.lexsort((by_hash["place"], by_hash["content_hash"]))]
    checksum = 0
    with renamed_file(path) as file:
        stretches = tokens.in_order(documents.records["tokens"], order)
        tables = (array.tobytes() for array in (records, by_hash))
        rest = (array.tobytes() for array in (whole.sentences, whole.ids))
        for content in chain(tables, stretches, rest):
            file.write(content)
            checksum = zlib.crc32(content, checksum)
    return checksum


def holds(path: Path, size: int, checksum: int) -> bool:
    """Whether a file is there with so many bytes and this CRC-32: it is read once, whole."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    found = 0
    with path.open("rb") as file:
        while content := file.read(1 << 20):
            found = zlib.crc32(content, found)
    return found == checksum


@dataclass(frozen=True)
class SortedRun:
    """A run on disk."""

    path: Path
    dtype: np.dtype[Any]
    """Of the token ids."""
    documents: int
    tokens: int
    sentences: int
    id_bytes: int

    def is_whole(self, checksum: int) -> bool:
        """Whether the file is what was written: it is read once, whole."""
        return holds(self.path, self._offsets[-1], checksum)

    @cached_property
    def _offsets(self) -> list[int]:
        """Bytes at which the five arrays begin, and the end."""
        sizes = (
            self.documents * RECORD.itemsize,
            self.documents * BY_HASH.itemsize,
            self.tokens * self.dtype.itemsize,
            self.sentences * 4,
            self.id_bytes,
        )
        return [0, *np.cumsum(sizes).tolist()]

    def records(self) -> npt.NDArray[np.void]:
        """RECORD[documents], sorted by key, mapped from disk."""
        return self._mapped(RECORD, 0, self.documents)

    def by_hash(self) -> npt.NDArray[np.void]:
        """BY_HASH[documents], mapped from disk."""
        return self._mapped(BY_HASH, 1, self.documents)

    def id_of(self, position: int) -> str:
        """The id of a document."""
        return self.read(position, position + 1).ids.tobytes().decode()

    def read(self, first: int, end: int) -> TokenizedDocuments:
        """The documents from one position to another."""
        records = np.array(self.records()[first:end])
        last = records[-1:]
        spans = [
            self._span(dtype, array, records[begin][:1], last[begin] + last[count])
            for dtype, array, begin, count in (
                (self.dtype, 2, "first_token", "tokens"),
                (np.dtype("<i4"), 3, "first_sentence", "sentences"),
                (np.dtype("u1"), 4, "first_id_byte", "id_bytes"),
            )
        ]
        return TokenizedDocuments(records, *spans)

    def _span(
        self, dtype: np.dtype[Any], array: int, first: npt.NDArray[Any], end: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Part of an array, read into memory; `first` and `end` hold one number, or none for no documents."""
        count = int((end - first).sum())
        if count == 0:
            return np.empty(0, dtype)
        return np.fromfile(self.path, dtype, count, offset=self._offsets[array] + int(first[0]) * dtype.itemsize)

    def _mapped(self, dtype: np.dtype[Any], array: int, count: int) -> npt.NDArray[Any]:
        if count == 0:
            return np.empty(0, dtype)
        return np.memmap(self.path, dtype, mode="r", offset=self._offsets[array], shape=(count,))
