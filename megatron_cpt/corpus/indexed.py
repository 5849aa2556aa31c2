"""Megatron's indexed dataset: PREFIX.bin holds token ids, PREFIX.idx says where documents begin and end.

The format is Megatron-LM's (MMIDIDX, version 1), byte for byte in both directions. Index, little-endian:

    9 bytes   b"MMIDIDX\\0\\0"
    uint64    version, 1
    uint8     dtype code of the ids in the .bin
    uint64    S, sequences
    uint64    D, document bounds (documents + 1)
    int32[S]  tokens of each sequence
    int64[S]  byte offset of each sequence in the .bin
    int64[D]  the sequence at which each document begins; the last is S

A document is a span of sequences: one in files that prepare writes, several where sentences were split.
Their reader never compares the .bin with its index and keeps several descriptors open; ours checks
everything that an index can prove when it is opened, and keeps one descriptor, from the first token read.
"""

import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.runs.folder import named_errors, renamed_file, sync_folder

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""Megatron's dtype codes; its two floating-point ones are not for token ids."""
_FLOATING = (6, 7)
LONGEST_SEQUENCE = 2**31 - 1
_SMALL_VOCABULARY = 65_500
"""Megatron's rule: ids of a smaller vocabulary are uint16, of any other int32."""
CHUNK_TOKENS = 1 << 24
"""Tokens that are looked at together where all are read."""
_CHUNK = 1 << 20
"""Entries of an index that are looked at together: bounds the memory of checks."""
_SAMPLES, _SAMPLE_BYTES = 16, 64 << 10
"""Samples of a dataset that was made elsewhere, and bytes of each: a file of altered or other content has others."""
_LARGE_PORTION = 256 << 10
"""Bytes of which the hash takes so long, a fifth of a millisecond, that a thread is worth it."""


def bin_path(prefix: str | Path) -> Path:
    """The file of token ids."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The file of sequence lengths and document bounds."""
    return Path(f"{prefix}.idx")


def manifest_path(prefix: str | Path) -> Path:
    """The file that describes the pair (manifest.py)."""
    return Path(f"{prefix}.manifest.json")


def dtype_for(vocabulary_size: int) -> np.dtype[Any]:
    """The dtype that Megatron gives ids of a vocabulary."""
    return np.dtype("<u2" if vocabulary_size < _SMALL_VOCABULARY else "<i4")


def invalidate(prefix: str | Path) -> None:
    """Removes what makes an old dataset openable, so that it is never mixed with new tokens."""
    # A pair without its manifest would be taken for one that was made elsewhere.
    paths = [path for path in (idx_path(prefix), manifest_path(prefix)) if path.exists()]
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        sync_folder(paths[0].parent)


class IndexedDataset:
    """A dataset on disk, read without copying it.

    Raises BadInput where a file of the pair is missing, IntegrityFault naming the file where the two
    do not fit each other or the format.
    """

    def __init__(self, prefix: str | Path, checked: str | None = None, compared: bool = True) -> None:
        """Args:
        checked: SHA-256 of an index that was found consistent before; the same bytes are not proved again.
        compared: False where another process of this machine compares the index with `checked`.
        """
        self.prefix = Path(prefix)
        for path in (idx_path(prefix), bin_path(prefix)):
            if not path.is_file():
                raise BadInput(
                    Fault(
                        str(path),
                        "is not there; a dataset is a pair PREFIX.bin and PREFIX.idx.",
                        "Give the PREFIX that `megatron-cpt prepare --output PREFIX` wrote.",
                    )
                )
        layout = _IndexLayout(idx_path(prefix))
        self.dtype = layout.dtype
        """dtype of the ids on disk."""
        self.sequences = layout.sequences
        """Sequences; as many as documents unless sentences were split."""
        self.documents = layout.documents
        """Documents."""
        self.index_sha256 = layout.sha256() if compared or checked is None else checked
        """SHA-256 of the .idx, of the same bytes that were checked."""
        self.token_count = layout.end() if self.index_sha256 == checked else layout.check()
        """Tokens of all documents."""
        size, expected = bin_path(prefix).stat().st_size, self.token_count * self.dtype.itemsize
        if size != expected:
            raise IntegrityFault(
                f"{bin_path(prefix)}: has {size:,} bytes where its index counts {self.token_count:,} tokens "
                f"of {self.dtype.itemsize} bytes ({expected:,}). The two do not belong together or one is "
                "cut short; prepare or copy the pair again."
            )

    @cached_property
    def document_starts(self) -> npt.NDArray[np.int64]:
        """Token offset at which each document begins, and the end: int64[documents + 1]."""
        return _IndexLayout(idx_path(self.prefix)).document_starts()

    @cached_property
    def sequence_lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each sequence: int32[sequences], on disk."""
        return _IndexLayout(idx_path(self.prefix)).lengths()

    @cached_property
    def document_bounds(self) -> npt.NDArray[np.int64]:
        """The sequence at which each document begins, and the end: int64[documents + 1], on disk."""
        return _IndexLayout(idx_path(self.prefix)).bounds()

    @cached_property
    def tokens(self) -> npt.NDArray[Any]:
        """All ids as one array on disk: dtype[token_count], read-only."""
        if self.token_count == 0:
            return np.empty(0, self.dtype)
        return _mapped(bin_path(self.prefix)).view(self.dtype)[: self.token_count]

    def largest_id(self) -> int | None:
        """The largest id of all, by reading every token; None where there is none. IntegrityFault: a negative one."""
        if self.token_count == 0:
            return None
        tokens = _mapped(bin_path(self.prefix)).view(self.dtype)  # the map goes with this call
        largest = 0
        for start in range(0, self.token_count, CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS]
            self._refuse_negative(start, chunk)
            largest = max(largest, int(chunk.max()))
        return largest

    def _refuse_negative(self, start: int, ids: npt.NDArray[Any]) -> None:
        """IntegrityFault for ids, the tokens from `start` on, that hold one below 0."""
        if ids.min() < 0:
            place = int(np.argmin(ids))
            raise IntegrityFault(f"{bin_path(self.prefix)}: token {start + place:,} is {ids[place]}, which is no id.")

    def samples(self) -> list[npt.NDArray[Any]]:
        """Ids at even distances, the first and the last among them: all where there are few. IntegrityFault: a negative
        one."""
        if self.token_count == 0:
            return []
        length = _SAMPLE_BYTES // self.dtype.itemsize
        starts = np.linspace(0, max(self.token_count - length, 0), _SAMPLES).astype(np.int64)
        if self.token_count <= _SAMPLES * length:
            starts, length = np.zeros(1, np.int64), self.token_count
        tokens = _mapped(bin_path(self.prefix)).view(self.dtype)  # the map goes with this call
        found = [tokens[start : start + length].copy() for start in starts.tolist()]
        for start, sample in zip(starts.tolist(), found, strict=True):
            self._refuse_negative(start, sample)
        return found

    def document(self, number: int) -> npt.NDArray[Any]:
        """The ids of one document, counted from 0."""
        if not 0 <= number < self.documents:
            raise IndexError(f"document {number} of {self.documents}")
        start, end = self.document_starts[number : number + 2]
        return self.tokens[start:end]


class _IndexLayout:
    """The three arrays of an index file, mapped once; the map goes with the object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < HEADER.size:
            raise self.fault("is not a Megatron index (its first bytes are not MMIDIDX)")
        self._bytes = _mapped(path)
        head = self._bytes[: HEADER.size].tobytes()
        if not head.startswith(MAGIC):
            raise self.fault("is not a Megatron index (its first bytes are not MMIDIDX)")
        _, version, code, self.sequences, bounds = HEADER.unpack(head)
        if version != VERSION:
            raise self.fault(f"is version {version} of the index format; only version 1 is known")
        if code not in _DTYPES:
            what = "floating-point numbers" if code in _FLOATING else "nothing that Megatron-LM writes, such as uint32"
            raise IntegrityFault(
                f"{path}: has dtype code {code}, which stands for {what}. Token ids are integers of up to 16 bits "
                "without a sign or 64 bits with one: write them as int32."
            )
        if bounds < 1:
            raise self.fault("has no document bounds")
        self.dtype = np.dtype(_DTYPES[code])
        self.documents = bounds - 1
        expected = HEADER.size + self.sequences * 12 + bounds * 8
        if size == expected + self.sequences and self.sequences:
            raise IntegrityFault(f"{path}: is an index of Megatron-LM's multimodal datasets; only text is read.")
        if size != expected:
            raise self.fault(f"has {size:,} bytes where its own counts ask for {expected:,}")

    def fault(self, what: str) -> IntegrityFault:
        return IntegrityFault(f"{self.path}: {what}. Prepare or copy the dataset again.")

    def _array(self, dtype: str, start: int, count: int) -> npt.NDArray[Any]:
        return np.frombuffer(self._bytes, dtype, count, start) if count else np.empty(0, dtype)

    def sha256(self) -> str:
        """Of the whole file, as hexadecimal digits."""
        return hashlib.sha256(self._bytes.data).hexdigest()

    def lengths(self) -> npt.NDArray[np.int32]:
        return self._array("<i4", HEADER.size, self.sequences)

    def pointers(self) -> npt.NDArray[np.int64]:
        return self._array("<i8", HEADER.size + 4 * self.sequences, self.sequences)

    def bounds(self) -> npt.NDArray[np.int64]:
        return self._array("<i8", HEADER.size + 12 * self.sequences, self.documents + 1)

    def end(self) -> int:
        """The count of tokens that the last sequence tells."""
        if not self.sequences:
            return 0
        return int(self.pointers()[-1]) // self.dtype.itemsize + int(self.lengths()[-1])

    def check(self) -> int:
        """Proves the arrays consistent and returns the count of tokens."""
        tokens = self._check_pointers()
        self._check_bounds()
        return tokens

    def _check_pointers(self) -> int:
        lengths, pointers = self.lengths(), self.pointers()
        tokens = 0
        for first in range(0, self.sequences, _CHUNK):
            chunk = lengths[first : first + _CHUNK].astype(np.int64)
            if chunk.min() < 0:
                raise self.fault(f"has a negative length at sequence {first + int(np.argmin(chunk)):,}")
            ends = tokens + np.cumsum(chunk)
            wrong = pointers[first : first + _CHUNK] != (ends - chunk) * self.dtype.itemsize
            if wrong.any():
                raise self.fault(f"places sequence {first + int(np.argmax(wrong)):,} elsewhere than its lengths do")
            tokens = int(ends[-1])
        return tokens

    def _check_bounds(self) -> None:
        bounds = self.bounds()
        if bounds[0] != 0 or bounds[-1] != self.sequences:
            raise self.fault(
                f"has document bounds from {bounds[0]:,} to {bounds[-1]:,} over {self.sequences:,} sequences"
            )
        for first in range(0, self.documents, _CHUNK):
            backwards = np.diff(bounds[first : first + _CHUNK + 1]) < 0
            if backwards.any():
                raise self.fault(f"ends document {first + int(np.argmax(backwards)):,} before it begins")

    def document_starts(self) -> npt.NDArray[np.int64]:
        bounds = self.bounds()
        pointers = np.append(self.pointers(), 0)
        if self.sequences:
            pointers[-1] = pointers[-2] + int(self.lengths()[-1]) * self.dtype.itemsize
        return pointers[bounds] // self.dtype.itemsize


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    """The bytes of a file that is not empty, on disk. np.memmap resolves the path, which takes longer than the rest."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


class IndexedWriter:
    """Writes a dataset under temporary names; it appears, data before index, when the block ends well.

    Whatever stood under the prefix stays whole until then; its manifest and index go before the new
    data come. An error inside the block leaves no file. BadInput for a negative id, one outside the
    vocabulary, or one that does not fit the dtype: an id never wraps. Memory does not grow with the dataset.
    """

    def __init__(self, prefix: str | Path, dtype: npt.DTypeLike, vocabulary_size: int | None = None) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.limit = int(np.iinfo(self.dtype).max) + 1
        if vocabulary_size is not None:
            self.limit = min(self.limit, vocabulary_size)
        self.token_count = 0
        self.largest_id: int | None = None
        """The largest id written so far."""
        self.documents = 0
        """Documents written so far."""
        self.data_sha256 = ""
        self.index_sha256 = ""
        self._sequences = 0
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        folder = bin_path(self.prefix).parent
        folder.mkdir(parents=True, exist_ok=True)
        self._data = self._open_files.enter_context(renamed_file(bin_path(self.prefix)))
        self._data_hash = _HashBeside(self._open_files.enter_context(ThreadPoolExecutor(1)))
        # What the index will hold waits in files without a name.
        self._lengths = self._open_files.enter_context(TemporaryFile(dir=folder))
        self._bounds = self._open_files.enter_context(TemporaryFile(dir=folder))
        self._bounds.write(np.zeros(1, "<i8").tobytes())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._open_files.__exit__(kind, error, trace)
            return
        with self._open_files:  # An error here, too, leaves no file.
            self.data_sha256 = self._data_hash.hexdigest()
            # The index is written aside first, and all of both is on disk before anything older goes.
            with renamed_file(idx_path(self.prefix)) as file:
                self._write_index(file)
                for written, path in ((self._data, bin_path(self.prefix)), (file, idx_path(self.prefix))):
                    with named_errors(path):
                        written.flush()
                        os.fsync(written.fileno())
                invalidate(self.prefix)
                # The index gets its name behind the data.
                self._open_files.close()
                sync_folder(self.prefix.parent)
            sync_folder(self.prefix.parent)

    def add(self, tokens: npt.NDArray[Any], sequence_lengths: npt.NDArray[Any] | None = None) -> None:
        """Writes one document: int[n] ids, in one sequence or, for split sentences, in several."""
        lengths = np.array([len(tokens)]) if sequence_lengths is None else np.asarray(sequence_lengths)
        self.add_split(tokens, lengths, np.array([len(lengths)]))

    def add_many(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> None:
        """Writes documents that lie one behind the other: int[n] ids, and the length of each document."""
        self.add_split(tokens, lengths, np.ones(len(lengths), np.int64))

    def add_split(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[Any], sequences: npt.NDArray[Any]) -> None:
        """Writes documents that lie one behind the other in sequences: int[n] ids, the length of each sequence,
        and how many sequences each document has."""
        if int(lengths.sum()) != len(tokens) or (len(lengths) and lengths.min() < 0):
            raise ValueError(f"sequence lengths do not make up {len(tokens)} tokens")
        if int(sequences.sum()) != len(lengths):
            raise ValueError(f"{len(lengths)} sequences do not make up the documents")
        self._check(tokens)
        if len(lengths) and lengths.max() > LONGEST_SEQUENCE:
            raise BadInput(
                Fault(
                    f"a document of {int(lengths.max()):,} tokens",
                    f"is longer than the format can say ({LONGEST_SEQUENCE:,}).",
                    "Cut it into parts.",
                )
            )
        content = np.ascontiguousarray(tokens, self.dtype).tobytes()
        self._data.write(content)
        self._data_hash.update(content)
        self._lengths.write(lengths.astype("<i4").tobytes())
        self._bounds.write((self._sequences + np.cumsum(sequences)).astype("<i8").tobytes())
        self._sequences += len(lengths)
        self.documents += len(sequences)
        self.token_count += len(tokens)

    def _check(self, tokens: npt.NDArray[Any]) -> None:
        if len(tokens) == 0:
            return
        if not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"token ids are integers, not {tokens.dtype}")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.limit:
            raise BadInput(
                Fault(
                    f"token id {low if low < 0 else high} for {self.prefix}",
                    f"is outside 0 to {self.limit - 1}, what the vocabulary and {self.dtype} allow.",
                    "Use the tokenizer that the dataset was declared with.",
                )
            )
        self.largest_id = high if self.largest_id is None else max(high, self.largest_id)

    def _write_index(self, file: BinaryIO) -> None:
        digest = hashlib.sha256()

        def put(content: bytes) -> None:
            file.write(content)
            digest.update(content)

        code = {name: code for code, name in _DTYPES.items()}[_dtype_name(self.dtype)]
        put(HEADER.pack(MAGIC, VERSION, code, self._sequences, self.documents + 1))
        for lengths in _read_back(self._lengths, "<i4"):
            put(lengths.tobytes())
        position = 0
        for lengths in _read_back(self._lengths, "<i4"):
            ends = position + np.cumsum(lengths.astype("<i8") * self.dtype.itemsize)
            put((ends - lengths.astype("<i8") * self.dtype.itemsize).tobytes())
            position = int(ends[-1])
        for bounds in _read_back(self._bounds, "<i8"):
            put(bounds.tobytes())
        self.index_sha256 = digest.hexdigest()


class _HashBeside:
    """SHA-256 of what comes in portions, large ones by a thread: it takes a third of the time of writing a dataset."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._hash = hashlib.sha256()
        self._last: Future[None] | None = None

    def update(self, content: bytes) -> None:
        """Takes the next portion, once the one before is done: one is held at most."""
        self._wait()
        if len(content) < _LARGE_PORTION:
            self._hash.update(content)
        else:
            self._last = self._thread.submit(self._hash.update, content)

    def hexdigest(self) -> str:
        self._wait()
        return self._hash.hexdigest()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()


def _read_back(file: BinaryIO, dtype: str) -> Iterator[npt.NDArray[Any]]:
    """What was written to a file, an array of CHUNK entries at a time."""
    file.seek(0)
    while content := file.read(_CHUNK * np.dtype(dtype).itemsize):
        yield np.frombuffer(content, dtype)


def _dtype_name(dtype: np.dtype[Any]) -> str:
    """`<u2`, `i1`: as DTYPES spells it."""
    return dtype.str.lstrip("|")
