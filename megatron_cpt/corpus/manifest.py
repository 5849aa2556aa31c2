"""PREFIX.manifest.json: what a dataset is and how it came to be.

The manifest is written last, so a dataset that has one is whole. A pair made elsewhere gets one on
first use, with what can be known from its files; what cannot is null. The index is hashed at every
load, which settles what its structure alone cannot; the tokens are hashed by `inspect --verify`.
"""

import hashlib
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.corpus.indexed import IndexedDataset, bin_path, idx_path, manifest_path
from megatron_cpt.runs.durable import write_json


@dataclass(frozen=True)
class SourceFile:
    """One input file, as it was when it was read."""

    path: str
    """Absolute path."""
    size: int
    """Bytes."""
    modified_ns: int
    """Modification time, nanoseconds since 1970."""


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
    """The largest id in the data; None also where there is no token."""
    tokenizer: str | None = None
    """Tokenizer identity: hash of what determines ids (tokenize.py)."""
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
    """The files it was made from."""
    rejected: int | None = None
    """Documents of those files that were left out, listed with reasons in PREFIX.rejected.jsonl."""
    duplicates: int | None = None
    """Documents left out as exact copies of an earlier one, listed in PREFIX.duplicates.jsonl."""
    near_duplicates: int | None = None
    """Documents left out as nearly another one, listed in PREFIX.near_duplicates.jsonl; None: not looked for."""
    contaminated: int | None = None
    """Documents left out because they overlap evaluation items (PREFIX.contaminated.jsonl); None: not compared."""
    data_sha256: str
    """SHA-256 of PREFIX.bin."""
    index_sha256: str
    """SHA-256 of PREFIX.idx."""
    tool_version: str | None = None
    """Version of this package that wrote the dataset."""


def tool_version() -> str:
    """The installed version of this package."""
    return version("megatron-cpt")


def write_manifest(prefix: str | Path, manifest: Manifest) -> None:
    """Declares a dataset whole."""
    write_json(manifest_path(prefix), asdict(manifest))


def load_manifest(prefix: str | Path) -> Manifest:
    """The manifest of a dataset, made and kept now if there is none (this reads the whole .bin once).

    Raises BadInput where a file of the pair is missing, IntegrityFault where manifest, index and data
    do not belong together.
    """
    return open_dataset(prefix)[1]


def open_dataset(prefix: str | Path) -> tuple[IndexedDataset, Manifest]:
    """A dataset and its manifest. Raises as load_manifest does.

    A manifest is written of an index that was proved consistent; one with the same hash is not proved again.
    """
    if not manifest_path(prefix).is_file():
        dataset = IndexedDataset(prefix)
        return dataset, _describe_foreign(dataset)
    manifest = read_manifest(prefix)
    dataset = IndexedDataset(prefix, checked=manifest.index_sha256)
    counted = (dataset.documents, dataset.token_count, dataset.dtype.name)
    if counted != (manifest.documents, manifest.tokens, manifest.dtype):
        raise _stale(prefix)
    if dataset.index_sha256 != manifest.index_sha256:
        raise _stale(prefix)
    return dataset, manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe_foreign(dataset: IndexedDataset) -> Manifest:
    manifest = Manifest(
        documents=dataset.documents,
        tokens=dataset.token_count,
        dtype=dataset.dtype.name,
        data_sha256=file_sha256(bin_path(dataset.prefix)),
        index_sha256=dataset.index_sha256,
        largest_id=dataset.largest_id(),
    )
    try:
        write_manifest(dataset.prefix, manifest)
    except OSError:
        # Datasets often lie on read-only shares. They are usable, only described anew each time.
        return manifest
    return manifest


def read_manifest(prefix: str | Path) -> Manifest:
    """What a manifest says, not compared with the files. IntegrityFault: it is none."""
    path = manifest_path(prefix)
    try:
        content = orjson.loads(path.read_bytes())
        known = {field.name for field in fields(Manifest)}
        values = {name: value for name, value in content.items() if name in known}
        if values.get("sources") is not None:
            values["sources"] = [SourceFile(**source) for source in values["sources"]]
        return Manifest(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise IntegrityFault(f"{path}: is not a manifest ({error}). Prepare the dataset again.") from error


def _stale(prefix: str | Path) -> IntegrityFault:
    return IntegrityFault(
        f"{idx_path(prefix)}: is not the index that {manifest_path(prefix).name} describes; the dataset was "
        "replaced or altered after it was described. Prepare or copy it again; if the new files are right, "
        "remove the manifest."
    )
