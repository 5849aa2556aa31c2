"""The tokenized documents of a finished piece, on disk in the order in which the dataset will have them.

1. Each document gets a 64-bit key: a hash of the seed and its place in the input, or the place itself (`as_read`).
2. A piece's documents are written sorted by key, so that those of any range of keys are adjacent.
3. The dataset is assembled one range of keys at a time, reading one stretch of every run (join.py).

The order depends on seed and input alone, not on the pieces, workers or shards. A second table, sorted by content hash,
serves the search for copies (dedup.py). While a piece is tokenized its ids wait in memory, and in a scratch file once
they are many.

Hold-out is decided by content alone: a document is held out if a hash of its content is below a bound. Every exact
copy shares its fate, in other corpora too, and a larger share holds out what a smaller one did.
"""

import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.corpus.hashing import mixed
from megatron_cpt.runs.folder import named_errors, renamed_file

MEMORY_BYTES = 4 << 20
"""Of token ids that are held in memory, and of those that are put in order at a time."""


class TokenBuffer:
    """Ids of documents in the order read, to be had in another.

    The scratch file is in `folder`, without a name, so that it goes with the block or the process.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self._folder = folder
        self._dtype = dtype
        self._held: list[npt.NDArray[Any]] = []
        self._held_bytes = 0
        self._file_bytes = 0
        self._file: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)

    @property
    def count(self) -> int:
        """Ids in all."""
        return (self._file_bytes + self._held_bytes) // self._dtype.itemsize

    def add(self, tokens: npt.NDArray[Any]) -> None:
        """Appends ids that fit the dtype (the caller's check)."""
        self._held.append(tokens.astype(self._dtype))
        self._held_bytes += self._held[-1].nbytes
        if self._held_bytes > MEMORY_BYTES:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file, path = mkstemp(dir=self._folder)
            os.unlink(path)
        content = self._held_content()
        with named_errors(self._folder):
            while content:
                content = content[os.write(self._file, content) :]
        self._file_bytes += self._held_bytes
        self._held, self._held_bytes = [], 0

    def _held_content(self) -> memoryview:
        return np.concatenate([np.empty(0, self._dtype), *self._held]).view(np.uint8).data

    def in_order(self, lengths: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The ids of all documents, some at a time, in another order: the old number of each.

        `lengths`, int64[documents], are the ids of each in the order read.
        """
        if self._file is not None:
            self._spill()
        held = self._held_content()
        ends = np.cumsum(lengths) * self._dtype.itemsize
        starts = ends - lengths * self._dtype.itemsize
        stretch: list[bytes | memoryview] = []
        size = 0
        for start, end in zip(starts[order].tolist(), ends[order].tolist(), strict=True):
            stretch.append(held[start:end] if self._file is None else _read(self._file, start, end))
            size += end - start
            if size > MEMORY_BYTES:
                yield b"".join(stretch)
                stretch, size = [], 0
        yield b"".join(stretch)


def _read(file: int, start: int, end: int) -> bytes:
    """Bytes of a file; one call may give fewer than asked."""
    content = os.pread(file, end - start, start)
    while len(content) < end - start:
        more = os.pread(file, end - start - len(content), start + len(content))
        assert more, "the scratch file is as long as what was written"
        content += more
    return content


RECORD = np.dtype(
    [
        ("key", "<u8"),
        ("content_hash", "<u8"),
        ("holdout_key", "<u8"),
        ("place", "<i8"),
        ("line", "<i8"),
        ("part", "<i8"),
        ("bytes", "<i8"),
        ("tokens", "<i8"),
        ("sentences", "<i8"),
        ("id_bytes", "<i8"),
        ("spans", "<i8"),
        ("first_token", "<i8"),
        ("first_sentence", "<i8"),
        ("first_id_byte", "<i8"),
        ("first_span", "<i8"),
    ]
)
"""Of each document: its keys; the byte (or row) of the input at which it begins, its line from 1 within the piece, and
its number from 1 where it is part of a document that was cut, else 0; its UTF-8 bytes, tokens, sentences, bytes of its
id and spans, and where these four begin in the run."""
_LAID_OUT = (
    ("first_token", "tokens"),
    ("first_sentence", "sentences"),
    ("first_id_byte", "id_bytes"),
    ("first_span", "spans"),
)
"""Where that of which a document has many begins, and how many these are."""
_BY_HASH = np.dtype([("content_hash", "<u8"), ("place", "<i8"), ("part", "<i8"), ("position", "<i8")])
"""Of each document, sorted by hash, place and part: its position among the records."""


@dataclass(frozen=True)
class TokenizedDocuments:
    """Documents laid end to end."""

    records: npt.NDArray[np.void]
    """RECORD[documents]; its last four fields are set by `write_run`."""
    tokens: npt.NDArray[Any]
    """Ids of all, BOS and EOD included: [sum of records.tokens]."""
    sentences: npt.NDArray[np.int32]
    """Tokens of each sentence: [sum of records.sentences]; empty unless sentences are split."""
    ids: npt.NDArray[np.uint8]
    """UTF-8 of the documents' ids: [sum of records.id_bytes]."""
    spans: npt.NDArray[np.void]
    """Tokens that count in the loss, from the first of each document on: LOSS_SPAN[sum of records.spans]. Empty where
    all do."""

    def chosen(self, which: npt.NDArray[np.bool_]) -> "TokenizedDocuments":
        """The documents where bool[documents] is true."""
        records = self.records
        return TokenizedDocuments(
            records[which],
            self.tokens[np.repeat(which, records["tokens"])],
            self.sentences[np.repeat(which, records["sentences"])],
            self.ids[np.repeat(which, records["id_bytes"])],
            self.spans[np.repeat(which, records["spans"])],
        )

    def in_order(self, order: npt.NDArray[np.int64]) -> "TokenizedDocuments":
        """The documents in another order: int64[documents], the old number of each."""
        records = self.records
        return TokenizedDocuments(
            records[order],
            _rearranged(self.tokens, records["tokens"], order),
            _rearranged(self.sentences, records["sentences"], order),
            _rearranged(self.ids, records["id_bytes"], order),
            _rearranged(self.spans, records["spans"], order),
        )

    @staticmethod
    def joined(parts: Sequence["TokenizedDocuments"]) -> "TokenizedDocuments":
        """The documents of all parts, one part behind the other."""
        return TokenizedDocuments(
            np.concatenate([part.records for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.sentences for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.spans for part in parts]),
        )


def _rearranged(values: npt.NDArray[Any], lengths: npt.NDArray[Any], order: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Spans of values, one a document, laid end to end in another order."""
    if len(values) == 0:
        return values
    starts = np.cumsum(lengths) - lengths
    return np.concatenate([values[starts[i] : starts[i] + lengths[i]] for i in order])


def shuffle_keys(seed: int, file: int, places: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The keys by which documents at places of an input file are sorted: uint64[n]; distinct within a file.

    Parts of a document are of one place: they stay together, in their order.
    """
    start = np.array([seed % (1 << 64)], np.uint64)
    stream = mixed(mixed(start) + np.uint64(file + 1))
    return mixed(mixed(places.astype(np.uint64) + stream))


def write_run(path: Path, documents: TokenizedDocuments, tokens: TokenBuffer) -> int:
    """Writes the documents of a piece, given in the order read with their ids apart, and returns the checksum by which
    `SortedRun.is_whole` knows them again."""
    order = np.argsort(documents.records["key"], kind="stable")
    whole = documents.in_order(order)
    records = whole.records.copy()
    for first, count in _LAID_OUT:
        records[first] = np.cumsum(records[count]) - records[count]
    by_hash = np.zeros(len(records), _BY_HASH)
    for name in ("content_hash", "place", "part"):
        by_hash[name] = records[name]
    by_hash["position"] = np.arange(len(records))
    by_hash = by_hash[np.lexsort((by_hash["part"], by_hash["place"], by_hash["content_hash"]))]
    checksum = 0
    with renamed_file(path) as file:
        stretches = tokens.in_order(documents.records["tokens"], order)
        tables = (array.tobytes() for array in (records, by_hash))
        rest = (array.tobytes() for array in (whole.sentences, whole.ids, whole.spans))
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
    spans: int

    def is_whole(self, checksum: int) -> bool:
        """Whether the file is what was written: it is read once, whole."""
        return holds(self.path, self._offsets[-1], checksum)

    @cached_property
    def _offsets(self) -> list[int]:
        """Bytes at which the six arrays begin, and the end."""
        sizes = (
            self.documents * RECORD.itemsize,
            self.documents * _BY_HASH.itemsize,
            self.tokens * self.dtype.itemsize,
            self.sentences * 4,
            self.id_bytes,
            self.spans * LOSS_SPAN.itemsize,
        )
        return [0, *np.cumsum(sizes).tolist()]

    @property
    def bytes(self) -> int:
        """Of all documents in memory, as `read` gives them."""
        return self._offsets[-1] - self.documents * _BY_HASH.itemsize

    def records(self) -> npt.NDArray[np.void]:
        """RECORD[documents], sorted by key, mapped from disk."""
        return self._mapped(RECORD, 0, self.documents)

    def by_hash(self) -> npt.NDArray[np.void]:
        """BY_HASH[documents], mapped from disk."""
        return self._mapped(_BY_HASH, 1, self.documents)

    def id_of(self, position: int) -> str:
        """The id of a document."""
        return self.read(position, position + 1).ids.tobytes().decode()

    def read(self, first: int, end: int) -> TokenizedDocuments:
        """The documents from one position to another."""
        records = np.array(self.records()[first:end])
        last = records[-1:]
        dtypes: tuple[np.dtype[Any], ...] = (self.dtype, np.dtype("<i4"), np.dtype("u1"), LOSS_SPAN)
        spans = [
            self._span(dtype, array, records[begin][:1], last[begin] + last[count])
            for array, (dtype, (begin, count)) in enumerate(zip(dtypes, _LAID_OUT, strict=True), start=2)
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
        # np.memmap resolves the path, which takes longer than the rest: each part asks each run.
        with self.path.open("rb") as file:
            content = mmap.mmap(file.fileno(), self._offsets[array + 1], access=mmap.ACCESS_READ)
        return np.frombuffer(content, dtype, count, self._offsets[array])


ALL = 1 << 64
"""Keys there are: a bound that holds out everything."""
_SALT = np.uint64(int.from_bytes(b"held out", "little"))
_BINS_BITS = 16


def content_hash(text: bytes) -> bytes:
    """64-bit hash of a document's UTF-8 text, 8 bytes little-endian: equal for exact duplicates."""
    return blake2b(text, digest_size=8).digest()


def holdout_keys(content_hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The keys of documents: uint64[n], even over all 64 bits."""
    return mixed(mixed(content_hashes ^ _SALT) + _SALT)


def below(keys: npt.NDArray[np.uint64], bound: int) -> npt.NDArray[np.bool_]:
    """Which keys are held out: bool[n]."""
    if bound == 0:
        return np.zeros(len(keys), np.bool_)
    return keys <= np.uint64(bound - 1)


def bound_of_share(share: float) -> int:
    """The bound that holds out a share, 0 to 1, of documents."""
    return int(share * ALL)


def bound_of_tokens(
    documents: Callable[[], Iterable[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]], tokens: int
) -> int:
    """The bound that holds out the fewest documents with at least so many tokens together; ALL if there are fewer.

    `documents` gives keys and tokens of all documents, in parts, each time it is called: first they are summed
    in 65,536 bins, then the bin that the bound lies in is sorted.
    """
    sums = np.zeros(1 << _BINS_BITS, np.int64)
    shift = np.uint64(64 - _BINS_BITS)
    for keys, counts in documents():
        np.add.at(sums, (keys >> shift).astype(np.int64), counts)
    totals = np.cumsum(sums)
    if totals[-1] < tokens:
        return ALL
    bin_ = int(np.searchsorted(totals, tokens))
    left = tokens - int(totals[bin_] - sums[bin_])
    inside = [(keys[keys >> shift == bin_], counts[keys >> shift == bin_]) for keys, counts in documents()]
    keys = np.concatenate([part for part, _ in inside])
    counts = np.concatenate([part for _, part in inside])
    order = np.argsort(keys, kind="stable")
    reached = int(np.searchsorted(np.cumsum(counts[order]), left))
    return int(keys[order][reached]) + 1
