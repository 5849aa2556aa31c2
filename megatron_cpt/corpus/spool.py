"""Tokenized documents between reading and writing: on disk, in the order they came or shuffled.

The shuffled order, with memory for one bucket:

1. Each document gets a 64-bit key, a hash of the seed and of its place in the input.
2. Its tokens go to the bucket on disk that the key's top bits name.
3. Bucket by bucket, sorted by key within, they come back: the order of all keys.

It depends on the seed and the input alone, not on the number of buckets or of threads.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.columns import DOCUMENT_RECORD

RECORD = np.dtype([("key", "<u8"), ("tokens", "<i8"), ("number", "<i8"), *DOCUMENT_RECORD.descr])
"""What is kept of a document beside its tokens; `number` counts documents in the order read."""
CHUNK = 4096
"""Documents that a queue gives back at a time."""


@dataclass(frozen=True)
class TokenizedDocuments:
    """Documents laid end to end."""

    tokens: npt.NDArray[Any]
    """Ids of all, BOS and EOD included: [sum of records.tokens]."""
    records: npt.NDArray[np.void]
    """RECORD[documents]."""

    def chosen(self, which: npt.NDArray[np.bool_]) -> "TokenizedDocuments":
        """The documents where bool[documents] is true."""
        return TokenizedDocuments(self.tokens[np.repeat(which, self.records["tokens"])], self.records[which])


def shuffle_key(seed: int, file: int, line: int) -> int:
    """The 64-bit key by which the document at a line of an input file is sorted."""
    place = blake2b(struct.pack("<QQQ", seed, file, line), digest_size=8)
    return int.from_bytes(place.digest(), "little")


class Queue:
    """Documents come back as they went in: a file of records and a file of tokens."""

    def __init__(self, folder: Path, dtype: npt.DTypeLike) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.dtype = np.dtype(dtype)
        self.documents = 0
        self._records = (folder / "records").open("w+b")
        self._tokens = (folder / "tokens").open("w+b")

    def add(self, documents: TokenizedDocuments) -> None:
        """Appends documents. Ids must fit the dtype (the caller's check)."""
        self._records.write(documents.records.tobytes())
        self._tokens.write(np.ascontiguousarray(documents.tokens, self.dtype).tobytes())
        self.documents += len(documents.records)

    def drain(self) -> Iterator[TokenizedDocuments]:
        """Every document, some thousands at a time."""
        for file in (self._records, self._tokens):
            file.seek(0)
        for first in range(0, self.documents, CHUNK):
            count = min(CHUNK, self.documents - first)
            records = np.frombuffer(self._records.read(count * RECORD.itemsize), RECORD)
            size = int(records["tokens"].sum()) * self.dtype.itemsize
            yield TokenizedDocuments(np.frombuffer(self._tokens.read(size), self.dtype), records)

    def drain_sorted(self) -> Iterator[TokenizedDocuments]:
        """Every document at once, in the order of its key; nothing, if there is none."""
        chunks = list(self.drain())
        if not chunks:
            return
        records = np.concatenate([chunk.records for chunk in chunks])
        tokens = np.concatenate([chunk.tokens for chunk in chunks])
        lengths = records["tokens"]
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(records["key"], kind="stable")
        pieces = [tokens[starts[i] : starts[i] + lengths[i]] for i in order]
        yield TokenizedDocuments(np.concatenate(pieces), records[order])

    def close(self) -> None:
        """Closes the files."""
        self._records.close()
        self._tokens.close()


class Buckets:
    """Documents come back in the order of their keys: one queue for each value of the keys' top bits."""

    def __init__(self, folder: Path, dtype: npt.DTypeLike, bits: int) -> None:
        self._bits = bits
        self._queues = [Queue(folder / f"{number:04d}", dtype) for number in range(1 << bits)]

    @property
    def documents(self) -> int:
        """Documents added."""
        return sum(queue.documents for queue in self._queues)

    def add(self, documents: TokenizedDocuments) -> None:
        """Sends each document to its bucket. Ids must fit the dtype (the caller's check)."""
        lengths = documents.records["tokens"]
        # Shifting 64 bits by 64 is undefined: with no bits there is one bucket.
        buckets = documents.records["key"] >> np.uint64(64 - self._bits) if self._bits else np.zeros_like(lengths)
        bucket_of_token = np.repeat(buckets, lengths)
        for bucket in np.unique(buckets):
            records = documents.records[buckets == bucket]
            self._queues[int(bucket)].add(TokenizedDocuments(documents.tokens[bucket_of_token == bucket], records))

    def drain(self) -> Iterator[TokenizedDocuments]:
        """Every document in the order of its key, a bucket at a time."""
        for queue in self._queues:
            yield from queue.drain_sorted()

    def close(self) -> None:
        """Closes the files."""
        for queue in self._queues:
            queue.close()


Spool = Queue | Buckets
