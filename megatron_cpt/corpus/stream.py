"""Datasets and selections read as one endless stream of tokens.

1. `expand_paths` turns what a config names into prefixes and selections, in a fixed order.
2. Each becomes parts: a whole dataset is one, a selection one for each of its datasets.
3. Position p of the stream is position p modulo `tokens` of the parts laid end to end.

Nothing but indices is read before the first token. Each dataset's .bin is opened when first touched. Validation
windows, chunks of documents and previews as text are read from here too.
"""

import glob
import hashlib
import textwrap
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, printable, refuse
from megatron_cpt.corpus.indexed import IndexedDataset, bin_path, idx_path
from megatron_cpt.corpus.loss_mask import LossMask, open_loss_mask
from megatron_cpt.corpus.manifest import Described, Manifest, compare_samples, data_names, open_dataset
from megatron_cpt.corpus.parts import HELD_OUT, named_by, part_faults
from megatron_cpt.corpus.selection import (
    SUFFIX,
    SelectedDataset,
    Selection,
    all_documents,
    load_selection,
    refuse_overlap,
)
from megatron_cpt.tokenizer.tokenizer import Tokenizer


def tokenizer_of(manifest: Manifest, folder: str | None = None) -> Tokenizer | None:
    """The tokenizer in the folder asked for, or the manifest's where it still is; None where it is not.

    Raises BadInput where the folder holds another tokenizer than the dataset was made with.
    """
    if folder is not None:
        tokenizer = Tokenizer.load(folder)
        if manifest.tokenizer not in (None, tokenizer.identity):
            rule = "is not the tokenizer that the dataset was made with."
            raise BadInput(Fault(f"--tokenizer {folder}", rule, f"It was {manifest.tokenizer_folder}."))
        return tokenizer
    if manifest.tokenizer_folder is None or not Path(manifest.tokenizer_folder).exists():
        return None
    try:
        tokenizer = Tokenizer.load(manifest.tokenizer_folder)
    except BadInput:  # something else is there now
        return None
    return tokenizer if tokenizer.identity == manifest.tokenizer else None


def preview(ids: npt.NDArray[Any], tokenizer: Tokenizer | None, most: int) -> str:
    """The beginning of a document, `most` tokens of it: as text, or as ids where no tokenizer is there."""
    more = "" if len(ids) <= most else f" ... ({len(ids):,} tokens)"
    head = ids[:most].tolist()
    text = tokenizer.decode(head) if tokenizer else textwrap.fill(" ".join(map(str, head)))
    # Documents are foreign text: nothing in them may steer the terminal.
    return printable(text) + more


def scored_tokens(stream_tokens: int, sequence_length: int, budget: int | None) -> npt.NDArray[np.int64]:
    """Tokens that count in each sequence of a set: int64 [sequences].

    Sequence s of a stream is scored on tokens s L + 1 to s L + L: the last token of the stream has no label
    after it, and the last sequence may be short. A budget is filled with whole sequences, at least one.

    >>> scored_tokens(100, 32, None).tolist()
    [32, 32, 32, 3]
    >>> scored_tokens(100, 32, 70).tolist()
    [32, 32]
    """
    targets = stream_tokens - 1
    if budget is not None:
        targets = min(targets, max(1, budget // sequence_length) * sequence_length)
    sequences = -(-targets // sequence_length)
    scored = np.full(sequences, sequence_length, dtype=np.int64)
    if sequences:
        scored[-1] = targets - (sequences - 1) * sequence_length
    return scored


_CHUNK_TOKENS = 1 << 19
"""A chunk ends with the document that reaches this: bounds memory, and is enough work for a thread."""


@dataclass(frozen=True)
class DocumentChunk:
    """Some documents laid end to end: their text and EOD, without BOS."""

    tokens: npt.NDArray[np.int64]
    """Ids of all: int64[sum of lengths]."""
    lengths: npt.NDArray[np.int64]
    """Ids of each document: int64[documents]; 0 for an empty one."""


def dataset_chunks(part: SelectedDataset) -> Iterator[DocumentChunk]:
    """The documents of a dataset or of a selection from it, in order."""
    starts, lengths = part.starts, part.lengths
    if part.manifest.bos is not None:
        has_bos = (lengths > 0).astype(np.int64)
        starts, lengths = starts + has_bos, lengths - has_bos
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _CHUNK_TOKENS, side="right")))
        pieces = [part.dataset.tokens[starts[n] : starts[n] + lengths[n]] for n in range(first, last)]
        yield DocumentChunk(np.concatenate(pieces).astype(np.int64), lengths[first:last])
        first = last


def expand_paths(paths: Sequence[str]) -> list[Path]:
    """Prefixes and selections named by paths and globs, those of one glob sorted by name.

    A prefix stands for all parts of a dataset that `prepare --parts` divided. PREFIX.bin and PREFIX.idx, which shells
    make of their globs, name the dataset, both of them once.

    A glob that ends in `.selection.json` names selections, any other names datasets by their prefix
    (held-out `*.validation` ones only if it ends so). Raises BadInput for a glob that matches nothing, for a
    prefix or a glob that stands for some parts of a dataset without the others, and for another file of a dataset;
    whether a plain path is there is seen when it is opened.
    """
    refuse([fault for text in paths if (fault := _side_file_fault(text))][:1])
    named = set(paths)
    once = [text for text in paths if not (text.endswith(".idx") and f"{text.removesuffix('.idx')}.bin" in named)]
    return [path for text in once for path in _expand(text)]


def _side_file_fault(text: str) -> Fault | None:
    """What is wrong with a file that lies beside a dataset: shells make globs of prefixes into all files."""
    if text.endswith((".bin", ".idx", SUFFIX)) or not Path(text).is_file() or idx_path(text).is_file():
        return None
    prefix = Path(text)
    while prefix.suffix:
        prefix = prefix.with_suffix("")
        if idx_path(prefix).is_file():
            remedy = f"Name {prefix}; for several datasets PREFIX*.bin, or a glob in quotes: 'PREFIX*'."
            return Fault(text, f"is a file beside the dataset {prefix}, not one itself.", remedy)
    return None


def prefix_of(path: str) -> str:
    """PREFIX of PREFIX.bin and PREFIX.idx; other paths as they are."""
    return path.removesuffix(".idx").removesuffix(".bin")


def _expand(path: str) -> list[Path]:
    text = prefix_of(path)
    if not glob.has_magic(text):
        return [Path(name) for name in named_by(text)]
    if text.endswith(SUFFIX):
        found = sorted(glob.glob(text, recursive=True))
    else:
        names = sorted(name.removesuffix(".idx") for name in glob.glob(f"{text}.idx", recursive=True))
        found = [name for name in names if text.endswith(HELD_OUT) or not name.endswith(HELD_OUT)]
    if not found:
        remedy = "Check the path; a dataset is a pair PREFIX.bin and PREFIX.idx."
        if not text.endswith(SUFFIX) and (selections := sorted(glob.glob(f"{text}{SUFFIX}", recursive=True))):
            remedy = f"It would match {', '.join(selections)}: a glob of selections ends in `{SUFFIX}`."
        raise BadInput(Fault(text, "matches no dataset.", remedy))
    if not text.endswith(SUFFIX):
        refuse(part_faults([Path(name) for name in found]))
    return [Path(name) for name in found]


@dataclass(frozen=True)
class DocumentSet:
    """Documents of one dataset that a stream reads."""

    dataset: IndexedDataset
    """The dataset."""
    manifest: Manifest
    """Its manifest."""
    count: int
    """Documents read."""
    numbers: npt.NDArray[np.int64] | None
    """Their numbers, ascending; None: all of them."""

    @property
    def prefix(self) -> Path:
        """Prefix of the dataset."""
        return self.dataset.prefix

    def shared_with(self, other: "DocumentSet") -> int:
        """Documents that both read, of the same data (`data_names`)."""
        if self.numbers is None or other.numbers is None:
            return other.count if self.numbers is None else self.count
        return len(np.intersect1d(self.numbers, other.numbers, assume_unique=True))


class TokenStream:
    """Datasets and selections as one stream that repeats for ever.

    Raises BadInput where one is missing, changed, or shares documents with another, IntegrityFault
    where one is corrupt.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        only: Sequence[SelectedDataset] | None = None,
        described: Described | None = None,
    ) -> None:
        """Opens what the paths name as `open_dataset` does, or of that `only` some documents that are open already."""
        self.paths = expand_paths([str(path) for path in paths])
        opened = [_open(path, described) for path in self.paths] if only is None else [_chosen(part) for part in only]
        self._parts: list[_Part] = [part for parts, _ in opened for part in parts if part.tokens]
        _refuse_shared(self._parts)
        self._ends = list(accumulate(part.tokens for part in self._parts))
        self._loss_masks: dict[str | None, dict[_Part, LossMask | None]] = {}  # by the name of a column
        self.tokens = self._ends[-1] if self._ends else 0
        """Tokens of one pass over everything."""
        self.datasets = tuple((part.dataset, part.manifest) for parts, _ in opened for part in parts)
        """Each dataset read with its manifest, also those behind selections."""
        self._described = "\n".join(name for _, name in opened)
        self.identity = self.identity_by([manifest.data_sha256 for manifest in self.manifests])
        """Hash of what is read and in which order; not of where it lies."""
        self.rows: int | None = None
        """Embedding rows of the model that reads it: what bounds the ids of a dataset that does not tell them."""

    @classmethod
    def assumed(cls, tokens: int) -> "TokenStream":
        """A stream of so many tokens that is not on this machine: for plans alone. It has no documents."""
        stream = cls([])
        stream.tokens, stream.identity = tokens, ""
        return stream

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """The manifests of `datasets`."""
        return tuple(manifest for _, manifest in self.datasets)

    def identity_by(self, hashes: Sequence[str]) -> str:
        """The identity that the stream has where its `datasets` are known by these hashes."""
        return hashlib.sha256(self._described.format(*hashes).encode()).hexdigest()

    def documents(self) -> list[SelectedDataset]:
        """The documents of the stream in its order, by dataset; datasets without tokens are left out."""
        return [part.documents() for part in self._parts]

    @property
    def document_sets(self) -> tuple[DocumentSet, ...]:
        """The documents of the stream, by dataset; datasets without tokens are left out."""
        return tuple(part.document_set() for part in self._parts)

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens [start, start + length) of the endless stream, as int64[length]."""
        out = np.empty(length, np.int64)
        self.copy(start, out)
        return out

    def copy(self, start: int, out: npt.NDArray[np.int64]) -> None:
        """Fills `out` with the tokens of the endless stream from `start` on.

        Raises IntegrityFault for an id that is none of the dataset's.
        """
        if self.tokens == 0:
            raise ValueError("a stream without tokens cannot be read")
        for filled, part, offset, count in self._pieces(start, len(out)):
            ids = out[filled : filled + count]
            part.copy(offset, ids)
            last = part.manifest.last_id
            if last is None:
                last = _LARGEST if self.rows is None else self.rows - 1
            if ids.min() < 0 or ids.max() > last:
                wrong = int(np.flatnonzero((ids < 0) | (ids > last))[0])
                raise _foreign_id(part, offset + wrong, int(ids[wrong]), last)

    def spot_check(self) -> None:
        """Compares samples of each dataset with its manifest, and reads a few places as `copy` does.

        A file of other content has other samples, or ids that are none of the dataset's. Raises IntegrityFault.
        """
        for end, part in zip(self._ends, self._parts, strict=True):
            compare_samples(part.dataset, part.manifest)
            length = min(part.tokens, _SPOT_TOKENS)
            for place in np.linspace(end - part.tokens, end - length, _SPOTS).astype(int).tolist():
                self.read(place, length)

    def document_starts(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Where documents begin in [start, start + length) of the endless stream, counted from start, ascending."""
        found = [np.empty(0, np.int64)]
        for filled, part, offset, count in self._pieces(start, length):
            begins = part.document_starts
            inside = begins[begins.searchsorted(offset) : begins.searchsorted(offset + count)]
            found.append(inside - offset + filled)
        # Documents without tokens begin where the next one does.
        return np.unique(np.concatenate(found))

    @property
    def has_own_mask(self) -> bool:
        """Whether the stream itself, or a dataset of it, says which of its tokens count in the loss."""
        return any(manifest.loss_spans_sha256 is not None for manifest in self.manifests)

    @property
    def loss_share(self) -> float:
        """Share of the tokens of the datasets, 0 to 1, that count by what they say of themselves."""
        counted = sum(one.tokens if one.loss_tokens is None else one.loss_tokens for one in self.manifests)
        tokens = sum(one.tokens for one in self.manifests)
        return counted / tokens if tokens else 1.0

    def counts_in_loss(self, start: int, length: int, column: str | None) -> npt.NDArray[np.bool_]:
        """Which of the tokens [start, start + length) count in the loss: bool[length].

        Args:
            column: the name of a column of every dataset (loss_mask.py); None: what the datasets say of themselves.

        Raises as `open_loss_mask` does.
        """
        found = np.ones(length, np.bool_)
        masks = self._masks(column)
        for filled, part, offset, count in self._pieces(start, length):
            mask = masks[part]
            if mask is not None:
                found[filled : filled + count] = mask.counts(part.positions(offset, count))
        return found

    def open_loss_masks(self, column: str | None) -> None:
        """Opens what `counts_in_loss` reads, so that its faults show. Raises as `open_loss_mask` does."""
        self._masks(column)

    def loss_mask_identity(self, column: str | None) -> str:
        """Hash of what a column says of the documents of the stream. Raises as `open_loss_mask` does."""
        digest = hashlib.sha256()
        for part, mask in self._masks(column).items():
            digest.update(b"" if mask is None else mask.describe(part.document_set().numbers))
        return digest.hexdigest()

    def _masks(self, column: str | None) -> "dict[_Part, LossMask | None]":
        if column not in self._loss_masks:
            self._loss_masks[column] = {part: part.loss_mask(column) for part in self._parts}
        return self._loss_masks[column]

    def _pieces(self, start: int, length: int) -> Iterator[tuple[int, "_Part", int, int]]:
        """What parts hold of [start, start + length): tokens before it, the part, from where in it, how many."""
        total = self._ends[-1]
        filled, position = 0, start % total
        while filled < length:
            number = bisect_right(self._ends, position)
            part = self._parts[number]
            offset = position - (self._ends[number] - part.tokens)
            count = min(length - filled, part.tokens - offset)
            yield filled, part, offset, count
            filled += count
            position = (position + count) % total


_SPOTS, _SPOT_TOKENS = 8, 1024
"""Places of a dataset that are read at the start of a run, and tokens of each."""
_LARGEST = 2**63 - 1
"""Of the ids where nothing bounds them."""


class _WholeDataset:
    """All tokens of a dataset."""

    def __init__(self, prefix: Path, described: Described | None) -> None:
        self.dataset, self.manifest = open_dataset(prefix, described)
        self.tokens = self.manifest.tokens

    @cached_property
    def _ids(self) -> npt.NDArray[Any]:
        return np.asarray(self.dataset.tokens)

    @cached_property
    def document_starts(self) -> npt.NDArray[np.int64]:
        return self.dataset.document_starts[:-1]

    def loss_mask(self, column: str | None) -> LossMask | None:
        """Which tokens count in the loss; None: all."""
        return open_loss_mask(self.dataset, self.manifest, column)

    def positions(self, offset: int, count: int) -> npt.NDArray[np.int64]:
        """Where tokens stand in the .bin: int64[count]."""
        return np.arange(offset, offset + count)

    def copy(self, position: int, out: npt.NDArray[np.int64]) -> None:
        """Fills `out` with the tokens from a position on; the caller asks for no more than there are."""
        out[:] = self._ids[position : position + len(out)]

    def place(self, position: int) -> str:
        """Where a token is, for people."""
        document = int(self.document_starts.searchsorted(position, side="right")) - 1
        return _place(self.dataset, document, position)

    def documents(self) -> SelectedDataset:
        return all_documents(self.dataset, self.manifest)

    def document_set(self) -> DocumentSet:
        return DocumentSet(self.dataset, self.manifest, self.manifest.documents, None)


class _SelectedDocuments:
    """The chosen documents of a dataset, laid end to end."""

    def __init__(self, part: SelectedDataset) -> None:
        self.dataset, self.manifest = part.dataset, part.manifest
        self._part = part
        self._ends = np.cumsum(part.lengths)
        self.tokens = part.tokens

    @cached_property
    def _ids(self) -> npt.NDArray[Any]:
        return np.asarray(self._part.dataset.tokens)

    @cached_property
    def document_starts(self) -> npt.NDArray[np.int64]:
        return self._ends - self._part.lengths

    def loss_mask(self, column: str | None) -> LossMask | None:
        """Which tokens of the dataset count in the loss; None: all."""
        return open_loss_mask(self._part.dataset, self.manifest, column)

    def positions(self, offset: int, count: int) -> npt.NDArray[np.int64]:
        """Where tokens stand in the .bin: int64[count]."""
        places = np.arange(offset, offset + count)
        documents = self._ends.searchsorted(places, side="right")
        inside: npt.NDArray[np.int64] = places - self.document_starts[documents]
        return self._part.starts[documents] + inside

    def copy(self, position: int, out: npt.NDArray[np.int64]) -> None:
        """Fills `out` with the tokens from a position on; the caller asks for no more than there are."""
        document = int(self._ends.searchsorted(position, side="right"))
        filled = 0
        while filled < len(out):
            left = int(self._ends[document]) - position
            begin = int(self._part.starts[document] + self._part.lengths[document]) - left
            count = min(left, len(out) - filled)
            out[filled : filled + count] = self._ids[begin : begin + count]
            filled += count
            position += count
            document += 1

    def place(self, position: int) -> str:
        """Where a token is, for people."""
        number = int(self._ends.searchsorted(position, side="right"))
        begin = int(self._part.starts[number] + self._part.lengths[number]) - (int(self._ends[number]) - position)
        return _place(self._part.dataset, int(self._part.documents[number]), begin)

    def documents(self) -> SelectedDataset:
        return self._part

    def document_set(self) -> DocumentSet:
        numbers = self._part.documents
        return DocumentSet(self.dataset, self.manifest, len(numbers), numbers)


_Part = _WholeDataset | _SelectedDocuments


def _foreign_id(part: _Part, position: int, found: int, last: int) -> IntegrityFault:
    """What is said of an id that is none of its dataset's, or that the model has no row for."""
    place = f"{part.place(position)}: id {found}, where"
    if part.manifest.last_id is None and found >= 0:
        return IntegrityFault(
            f"{place} the model has {last + 1} embedding rows: the text was made by another tokenizer than its own, "
            "or holds tokens that it has no row for. Prepare the text again with the model's own."
        )
    ids = "0 or more" if last == _LARGEST else f"0 to {last}"
    return IntegrityFault(
        f"{place} the dataset's ids are {ids}: the file was changed since it was written. `megatron-cpt inspect "
        "--verify` compares all of it; restore it, or prepare it again."
    )


def _place(dataset: IndexedDataset, document: int, token: int) -> str:
    """A token by its file, document and offset."""
    inside = token - int(dataset.document_starts[document])
    byte = token * dataset.tokens.dtype.itemsize
    return f"{bin_path(dataset.prefix)}: document {document:,}, token {inside:,} of it (byte {byte:,})"


def _open(path: Path, described: Described | None) -> tuple[list[_Part], str]:
    """The parts of one path, and the name of its content with a place for the hash of each dataset."""
    if str(path).endswith(SUFFIX):
        selection: Selection = load_selection(path, described)
        parts: list[_Part] = [_SelectedDocuments(part) for part in selection.datasets]
        names = " ".join(_name_place(part.manifest) for part in selection.datasets)
        return parts, f"selection {selection.sha256} of {names}"
    dataset = _WholeDataset(path, described)
    return [dataset], f"dataset {_name_place(dataset.manifest)} {dataset.manifest.dtype}"


def _name_place(manifest: Manifest) -> str:
    """A place for the hash of a dataset and, where it says so, which of its tokens count."""
    spans = manifest.loss_spans_sha256
    return "{}" if spans is None else f"{{}} spans {spans}"


def _chosen(part: SelectedDataset) -> tuple[list[_Part], str]:
    numbers = hashlib.sha256(np.ascontiguousarray(part.documents, "<i8").data).hexdigest()
    return [_SelectedDocuments(part)], f"documents {numbers} of {_name_place(part.manifest)}"


def _refuse_shared(parts: Sequence[_Part]) -> None:
    """Documents are compared only where the same data are named more than once."""
    names = data_names([(part.dataset, part.manifest) for part in parts])
    times = Counter(names)
    refuse_overlap([part.documents() for part, name in zip(parts, names, strict=True) if times[name] > 1])
