"""The manifest of a dataset, PREFIX.manifest.json: what it is and how it was made.

It is written last, so a dataset with a manifest is whole. A .bin/.idx pair made elsewhere gets one on first use; what
cannot be known is null. The index is hashed at every load. `inspect --verify` hashes the tokens and reads each once.

A pair made elsewhere is identified by its index, its size and samples of its tokens: a thousand ranks that meet one on
a read-only share would else read all of it, each of them, at every start. Its first `inspect --verify` leaves the hash
of the whole and the largest id. The samples are taken of every dataset that is written here, too: by them it is known
again where it lies without its manifest (`Content`).
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt import __version__
from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.columns import (
    DOCUMENT_RECORD,
    DOCUMENTS,
    LOSS_SPANS,
    check_spans,
    column_path,
    load_column,
    read_column,
)
from megatron_cpt.corpus.indexed import CHUNK_TOKENS, IndexedDataset, bin_path, idx_path, manifest_path
from megatron_cpt.runs.folder import file_sha256, read_json_object, write_checked_json, write_new_json


@dataclass(frozen=True)
class SourceFile:
    """One input file, as it was when it was read."""

    path: str
    """Absolute path."""
    size: int
    """Bytes."""
    modified_ns: int
    """Modification time, nanoseconds since 1970."""


@dataclass(frozen=True)
class Part:
    """Which range of the order of one dataset these documents are, where it is in parts (parts.py)."""

    number: int
    """From 1."""
    of: int
    """Parts in all."""
    job: str
    """Hash of what decided the documents and their order: equal for all parts of one dataset."""


@dataclass(frozen=True)
class Content:
    """What the tokens of a dataset are known by."""

    whole_sha256: str | None
    """SHA-256 of PREFIX.bin; None: it was never read whole."""
    samples_sha256: str | None
    """`_sample_identity`; None: an earlier version took no samples."""

    def is_same(self, other: "Content") -> bool | None:
        """Whether both are of the same tokens: by all of them where that is known, else by samples. None: not known."""
        if None not in (self.whole_sha256, other.whole_sha256):
            return self.whole_sha256 == other.whole_sha256
        if None not in (self.samples_sha256, other.samples_sha256):
            return self.samples_sha256 == other.samples_sha256
        return None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of PREFIX.manifest.json. None: not known."""

    documents: int
    """Documents."""
    tokens: int
    """Tokens, BOS and EOD counted."""
    bytes: int | None = None
    """UTF-8 bytes of the text of all documents."""
    dtype: str
    """numpy name of the ids on disk: uint16, int32."""
    vocabulary_size: int | None = None
    """One more than the largest id of the tokenizer."""
    largest_id: int | None = None
    """The largest id in the data, or in samples of it (`only_sampled`); None also where there is no token."""
    unknown_share: float | None = None
    """Share of the tokens, 0 to 1, that stand for text that the tokenizer has no token for; of all documents read."""
    lost_share: float | None = None
    """Share of the bytes of text, blanks apart, that the tokens do not give back; of all documents read."""
    tokens_per_word: float | None = None
    """Tokens a word, of a sixteenth of the documents, by a hash of their content; words as blanks part them."""
    tokenizer: str | None = None
    """Tokenizer identity: hash of what determines ids (tokenizer/formats.py)."""
    tokenizer_folder: str | None = None
    """Where the tokenizer was, for people; the identity decides."""
    eod: int | None = None
    """The id that closes each document."""
    bos: int | None = None
    """The id that opens each document; None also where there is none."""
    order: str | None = None
    """`shuffled` or `as_read`."""
    seed: int | None = None
    """Seed of the shuffled order."""
    settings: dict[str, Any] | None = None
    """Every setting of the `prepare` that wrote the dataset; None for datasets made elsewhere."""
    sources: list[SourceFile] | None = None
    """The files it was made from. Of a dataset in parts the first part alone names them (parts.source_files)."""
    sources_sha256: str | None = None
    """`sources_digest` of these files, which every part has."""
    not_read: list[str] | None = None
    """Files of the folders that were given which are none of a corpus, and were not read."""
    rejected: int | None = None
    """Documents of those files that were left out, listed with reasons in PREFIX.rejected.jsonl."""
    filtered: int | None = None
    """Documents of those files left out by `--where`, `--filter` or `--min-length`; None: none of these was given."""
    filtered_by: dict[str, int] | None = None
    """The same by the reason."""
    cut: int | None = None
    """Documents that are in parts, to fit `--max-length`; of all that were read. None: none was to be cut."""
    held_out: bool | None = None
    """Whether these are the documents that were held out of the dataset named without `.validation`."""
    part: Part | None = None
    """Which part of a dataset this is; counts of what was left out are of all parts. None: it is whole."""
    joined: list[str] | None = None
    """SHA-256 of the .bin of each dataset that this one was joined of; None where it was not joined."""
    duplicates: int | None = None
    """Documents left out as exact copies, of an earlier one or of a dataset of `--dedup-against`, listed in
    PREFIX.duplicates.jsonl."""
    near_duplicates: int | None = None
    """Documents left out as nearly another one, listed in PREFIX.near_duplicates.jsonl; None: not looked for."""
    contaminated: int | None = None
    """Documents left out because they overlap evaluation items (PREFIX.contaminated.jsonl); None: not compared."""
    data_sha256: str
    """SHA-256 of PREFIX.bin, by which its content is known; of samples of it where `sampled` (`_sample_identity`)."""
    sampled: bool = False
    """Whether the pair was made elsewhere and is known by samples."""
    whole_sha256: str | None = None
    """SHA-256 of PREFIX.bin, where `data_sha256` is of samples and all was read since (`inspect --verify`)."""
    samples_sha256: str | None = None
    """`_sample_identity` of a pair that is known by all of it; None also where an earlier version took no samples."""
    index_sha256: str
    """SHA-256 of PREFIX.idx."""
    documents_sha256: str | None = None
    """SHA-256 of PREFIX.documents.npy; None where there is none, or a version before did not look."""
    loss_spans_sha256: str | None = None
    """SHA-256 of PREFIX.loss_spans.npy: its spans alone count in the loss. None: all tokens do."""
    loss_tokens: int | None = None
    """Tokens of these spans; None where there are none."""
    truncated: int | None = None
    """Conversations that were cut behind an answer, to fit --max-length; of all that were read."""
    tool_version: str | None = None
    """Version of this package that wrote the dataset."""

    @property
    def content(self) -> Content:
        """What the tokens are known by, as far as the manifest says."""
        if self.sampled:
            return Content(self.whole_sha256, self.data_sha256)
        return Content(self.data_sha256, self.samples_sha256)

    @property
    def hashes(self) -> frozenset[str]:
        """All hashes by which a record of the tokens, such as a score, may know them."""
        known = (self.data_sha256, self.whole_sha256, self.samples_sha256)
        return frozenset(one for one in known if one is not None)

    @property
    def only_sampled(self) -> bool:
        """Whether no more than samples of the tokens were read."""
        return self.sampled and self.whole_sha256 is None

    @property
    def last_id(self) -> int | None:
        """The largest id that the data may hold: the one that was counted, or the tokenizer's; None: not known."""
        if self.largest_id is not None and not self.only_sampled:
            return self.largest_id
        return None if self.vocabulary_size is None else self.vocabulary_size - 1


def sources_digest(sources: Sequence[SourceFile]) -> str:
    """SHA-256 of a list of files."""
    return hashlib.sha256(orjson.dumps(sources)).hexdigest()


def tool_version() -> str:
    """The version of this package."""
    return __version__


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Declares a dataset whole."""
    write_checked_json(manifest_path(prefix), asdict(manifest))


def load_manifest(prefix: str | Path) -> Manifest:
    """The manifest of a dataset, made and kept now if there is none.

    Raises BadInput where a file of the pair is missing, IntegrityFault where manifest, index and data
    do not belong together.
    """
    return open_dataset(prefix)[1]


Described = Mapping[Path, Manifest]
"""Manifests that another rank made of datasets that have none on disk, by their prefix."""


def open_dataset(prefix: str | Path, described: Described | None = None) -> tuple[IndexedDataset, Manifest]:
    """A dataset and its manifest: the one on disk, else what another rank made, else one that is made and kept now.

    A manifest is written of an index that was proved consistent; one with the same hash is not proved again. Raises as
    load_manifest does.
    """
    if manifest_path(prefix).is_file():
        manifest = read_manifest(prefix)
    elif described is not None and Path(prefix) in described:
        manifest = described[Path(prefix)]
    else:
        return _open_foreign(prefix)
    # Eight ranks of a machine read the same bytes: one of them hashes, and ends the run where they are others.
    compared = os.environ.get("LOCAL_RANK", "0") == "0"
    dataset = IndexedDataset(prefix, checked=manifest.index_sha256, compared=compared)
    _refuse_other(dataset, manifest)
    return dataset, manifest


def _open_foreign(prefix: str | Path) -> tuple[IndexedDataset, Manifest]:
    """A dataset without a manifest, and one that is made of it. Rank 0 keeps it, where it may write beside the dataset.

    Datasets often lie on read-only shares. They are usable, only described anew at each start.
    """
    dataset = IndexedDataset(prefix)
    manifest = _describe_foreign(dataset)
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):
            write_new_json(manifest_path(prefix), asdict(manifest))
    if manifest_path(prefix).is_file():  # perhaps another machine's, which was not to be seen from here
        manifest = read_manifest(prefix)
        _refuse_other(dataset, manifest)
    return dataset, manifest


def _refuse_other(dataset: IndexedDataset, manifest: Manifest) -> None:
    """Raises IntegrityFault where a manifest is of another index, or, as rank 0 finds, of other tokens."""
    counted = (dataset.documents, dataset.token_count, dataset.dtype.name)
    if counted != (manifest.documents, manifest.tokens, manifest.dtype):
        raise _stale(dataset.prefix)
    if dataset.index_sha256 != manifest.index_sha256:
        raise _stale(dataset.prefix)
    if manifest.sampled and os.environ.get("RANK", "0") == "0":
        compare_samples(dataset, manifest)


def compare_samples(dataset: IndexedDataset, manifest: Manifest) -> None:
    """Raises IntegrityFault where samples of the tokens are not those that the manifest tells of; it may tell of none.

    It reads a megabyte at most.
    """
    known = manifest.content.samples_sha256
    if known is not None and _sampled(dataset) != known:
        raise IntegrityFault(
            f"{bin_path(dataset.prefix)}: samples of its tokens are not those that "
            f"{'its manifest' if manifest_path(dataset.prefix).is_file() else 'the run'} knows it by. It was replaced "
            "or altered since. Prepare or copy it again. If the new file is right, remove its manifest, if it has one, "
            "and give the run a new folder."
        )


def _sampled(dataset: IndexedDataset) -> str:
    return _sample_identity(dataset.index_sha256, dataset.token_count, dataset.samples())


def _describe_foreign(dataset: IndexedDataset) -> Manifest:
    samples = dataset.samples()
    # A dataset of conversations whose manifest was left behind is not trained on its questions.
    spans = column_path(dataset.prefix, LOSS_SPANS)
    there = load_column(spans) if spans.is_file() else None
    if there is not None:
        check_spans(spans, there, dataset.token_count)
    return Manifest(
        documents=dataset.documents,
        tokens=dataset.token_count,
        dtype=dataset.dtype.name,
        data_sha256=_sample_identity(dataset.index_sha256, dataset.token_count, samples),
        sampled=True,
        index_sha256=dataset.index_sha256,
        largest_id=max((int(sample.max()) for sample in samples), default=None),
        loss_spans_sha256=None if there is None else file_sha256(spans),
        loss_tokens=None if there is None else int((there["end"] - there["begin"]).sum()),
    )


def _sample_identity(index_sha256: str, tokens: int, samples: Sequence[npt.NDArray[Any]]) -> str:
    """SHA-256 of what a dataset is known by without reading all of it: its index, the count of its tokens, samples.

    Args:
        samples: as `IndexedDataset.samples` takes them.
    """
    digest = hashlib.sha256(f"samples {index_sha256} {tokens}".encode())
    for sample in samples:
        digest.update(np.ascontiguousarray(sample).data)
    return digest.hexdigest()


def samples_of(prefix: str | Path, index_sha256: str) -> str:
    """`_sample_identity` of a dataset that was just written with that index."""
    return _sampled(IndexedDataset(prefix, checked=index_sha256, compared=False))


def samples_sha256(dataset: IndexedDataset, manifest: Manifest) -> str:
    """`_sample_identity` of a dataset; its samples are read where the manifest of an earlier version has none."""
    return manifest.content.samples_sha256 or _sampled(dataset)


def data_names(datasets: Sequence[tuple[IndexedDataset, Manifest]]) -> list[str]:
    """A name of the tokens of each dataset, one and the same for all that hold the same tokens.

    Datasets are the same by the hash of all tokens where that is known of all that have this index, else by samples.
    """
    of_index: dict[str, list[Content]] = defaultdict(list)
    for _, manifest in datasets:
        of_index[manifest.index_sha256].append(manifest.content)
    return [
        samples_sha256(dataset, manifest)
        if None in {content.whole_sha256 for content in of_index[manifest.index_sha256]}
        else str(manifest.content.whole_sha256)
        for dataset, manifest in datasets
    ]


MANIFEST_GONE = (
    "Copy its manifest beside it again, or run `megatron-cpt inspect {prefix} --verify`, which reads all of it"
)
"""What to do where a dataset that was known by all of its tokens is known by samples now."""


def refuse_other_content(
    made: Path, prefix: str | Path, manifest: Manifest, data_sha256: str, index_sha256: str, remedy: str
) -> None:
    """Raises BadInput where what was made of a dataset, and tells its hashes, was made of other content.

    Args:
        made: the file that was made.
        data_sha256: by which its tokens were known.
        index_sha256: of its index.
        remedy: how it is made again.
    """
    if manifest.index_sha256 == index_sha256 and data_sha256 in manifest.hashes:
        return
    if manifest.index_sha256 == index_sha256 and manifest.only_sampled:
        rule = (
            f"was made from other content than {prefix} has now, or from the same with its manifest: it lies without "
            "one of `prepare`, and is known by samples alone."
        )
        raise BadInput(Fault(str(made), rule, f"{MANIFEST_GONE.format(prefix=prefix)}. Or: {remedy}"))
    raise BadInput(Fault(str(made), f"was made from other content than {prefix} has now.", remedy))


def read_manifest(prefix: str | Path) -> Manifest:
    """What a manifest says, not compared with the files. IntegrityFault: it is none, or not what was written."""
    path = manifest_path(prefix)
    content = read_json_object(path)
    try:
        assert content is not None, f"{path} is not there"
        return _manifest_of(content)
    except (ValueError, TypeError, AttributeError) as error:
        raise IntegrityFault(f"{path}: is not a manifest ({error}). Prepare the dataset again.") from error


def _manifest_of(content: dict[str, Any]) -> Manifest:
    known = {field.name for field in fields(Manifest)}
    values = {name: value for name, value in content.items() if name in known}
    if values.get("sources") is not None:
        values["sources"] = [SourceFile(**source) for source in values["sources"]]
    if values.get("part") is not None:
        values["part"] = Part(**values["part"])
    return Manifest(**values)


def dump_described(datasets: Sequence[tuple[IndexedDataset, Manifest]]) -> bytes:
    """The manifests of those datasets that were made elsewhere, for `load_described` of other ranks."""
    found = {
        str(dataset.prefix): {name: value for name, value in asdict(manifest).items() if value is not None}
        for dataset, manifest in datasets
        if manifest.sampled
    }
    return orjson.dumps(found)


def load_described(content: bytes) -> Described:
    """What `dump_described` gave."""
    return {Path(prefix): _manifest_of(manifest) for prefix, manifest in orjson.loads(content).items()}


def _stale(prefix: str | Path) -> IntegrityFault:
    if not manifest_path(prefix).is_file():
        return IntegrityFault(
            f"{idx_path(prefix)}: is not the index that rank 0 has under this name. The copies of two machines differ; "
            "copy the dataset again."
        )
    return IntegrityFault(
        f"{idx_path(prefix)}: is not the index that {manifest_path(prefix).name} describes; the dataset was "
        "replaced or altered after it was described. Prepare or copy it again; if the new files are right, "
        "remove the manifest."
    )


def documents_column(prefix: str | Path, manifest: Manifest) -> npt.NDArray[Any]:
    """The column that prepare writes, DOCUMENT_RECORD[documents], mapped from disk and proved by its hash.

    Raises as read_column does.
    """
    column = read_column(prefix, DOCUMENTS, manifest.documents)
    path = column_path(prefix, DOCUMENTS)
    if column.dtype != DOCUMENT_RECORD or manifest.documents_sha256 not in (None, file_sha256(path)):
        raise IntegrityFault(f"{path}: is not the content that its manifest describes. Prepare or copy it again.")
    return column


def loss_spans(prefix: str | Path, manifest: Manifest) -> npt.NDArray[Any]:
    """The spans of tokens that count, of a dataset that has them: LOSS_SPAN[spans], mapped from disk and proved by its
    hash. IntegrityFault: they are missing, no spans of its tokens, or others."""
    path = column_path(prefix, LOSS_SPANS)
    if not path.is_file():
        raise IntegrityFault(f"{path}: is not there, and only its tokens of {prefix} count in the loss. Copy it, too.")
    spans = load_column(path)
    check_spans(path, spans, manifest.tokens)
    if file_sha256(path) != manifest.loss_spans_sha256:
        right = "; if the new file is right, remove the manifest" if manifest.sampled else ""
        rule = f"is not the content that its manifest describes. Prepare or copy it again{right}."
        raise IntegrityFault(f"{path}: {rule}")
    return spans


def verify_dataset(prefix: str | Path) -> Manifest:
    """Checks the hashes of all files, ids inside the vocabulary, EOD and BOS around each document, and the bytes.

    What the manifest does not know is not checked. Raises IntegrityFault naming the file and what is
    wrong; returns the manifest.
    """
    manifest = load_manifest(prefix)
    dataset = IndexedDataset(prefix)
    known = manifest.content.whole_sha256
    found = Content(file_sha256(bin_path(prefix)), _sampled(dataset))
    if known not in (None, found.whole_sha256) or manifest.content.samples_sha256 not in (None, found.samples_sha256):
        raise IntegrityFault(
            f"{bin_path(prefix)}: is not the content that its manifest describes. Prepare or copy it again."
        )
    _check_ids(dataset, manifest)
    _check_ends(dataset, manifest)
    if column_path(prefix, DOCUMENTS).is_file() or manifest.documents_sha256 is not None:
        _check_bytes(prefix, manifest)
    if manifest.loss_spans_sha256 is not None:
        loss_spans(prefix, manifest)
    unknown = None in (manifest.content.whole_sha256, manifest.content.samples_sha256)
    if unknown or (manifest.largest_id is None and manifest.vocabulary_size is None):
        whole = found.whole_sha256 if manifest.sampled else None
        samples = None if manifest.sampled else found.samples_sha256
        manifest = replace(manifest, whole_sha256=whole, samples_sha256=samples, largest_id=dataset.largest_id())
        with suppress(OSError):
            write_manifest(prefix, manifest)
    return manifest


def _check_bytes(prefix: str | Path, manifest: Manifest) -> None:
    counted = int(documents_column(prefix, manifest)["bytes"].sum())
    if manifest.bytes is not None and counted != manifest.bytes:
        raise IntegrityFault(
            f"{column_path(prefix, DOCUMENTS)}: counts {counted:,} bytes of text where the manifest says "
            f"{manifest.bytes:,}. Prepare or copy the dataset again."
        )


def _check_ids(dataset: IndexedDataset, manifest: Manifest) -> None:
    limit = manifest.vocabulary_size
    for first in range(0, dataset.token_count, CHUNK_TOKENS):
        chunk = dataset.tokens[first : first + CHUNK_TOKENS]
        wrong = (chunk < 0) if limit is None else (chunk < 0) | (chunk >= limit)
        if wrong.any():
            place = int(np.argmax(wrong))
            raise IntegrityFault(
                f"{bin_path(dataset.prefix)}: token {first + place:,} is {chunk[place]}, outside the vocabulary "
                f"of {'unknown size' if limit is None else f'{limit:,}'}. Prepare it again."
            )


def _check_ends(dataset: IndexedDataset, manifest: Manifest) -> None:
    starts = dataset.document_starts
    filled = np.flatnonzero(np.diff(starts))
    for name, token, places in (
        ("end with EOD", manifest.eod, starts[filled + 1] - 1),
        ("begin with BOS", manifest.bos, starts[filled]),
    ):
        if token is None:
            continue
        wrong = dataset.tokens[places] != token
        if wrong.any():
            raise IntegrityFault(
                f"{dataset.prefix}: {int(wrong.sum()):,} documents do not {name} ({token}), the first is "
                f"document {int(filled[np.argmax(wrong)]):,}. Prepare it again."
            )
