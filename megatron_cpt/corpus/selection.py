"""NAME.selection.json + NAME.selection.npy: documents chosen from datasets, without a copy of their tokens.

The array is int64[3, documents], memory-mapped row by row:

    0  document number in its dataset, ascending
    1  token offset at which the document begins in its dataset
    2  cumulative tokens of the selection, this document included

Documents of one dataset are adjacent, in the order of the JSON file's list. A selection belongs to the bytes it was
made from: a dataset that changed since is refused. `concatenate` joins whole datasets into one, a chunk at a time.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, refuse
from megatron_cpt.corpus.columns import DOCUMENT_RECORD, DOCUMENTS, LOSS_SPAN, LOSS_SPANS, ColumnWriter, column_path
from megatron_cpt.corpus.indexed import IndexedDataset, IndexedWriter, bin_path, idx_path, manifest_path
from megatron_cpt.corpus.manifest import (
    Described,
    Manifest,
    data_names,
    documents_column,
    loss_spans,
    open_dataset,
    refuse_other_content,
    samples_of,
    tool_version,
    write_manifest,
)
from megatron_cpt.corpus.parts import HELD_OUT
from megatron_cpt.runs.folder import (
    durable_file,
    file_sha256,
    only_writer,
    read_json_object,
    refuse_to_replace,
    write_checked_json,
)

_CHUNK_DOCUMENTS = 1 << 14
SHARED = ("vocabulary_size", "tokenizer", "tokenizer_folder", "eod", "bos")
"""What the joined manifest keeps where all parts say the same."""


def concatenate(prefixes: Sequence[str | Path], output: str | Path) -> Manifest:
    """Writes the documents of datasets, in the order given, as the dataset `output`.

    Raises BadInput where there is none, they differ in dtype, tokenizer, EOD or BOS, one holds another, or the output
    is there already; IntegrityFault where one is broken.
    """
    refuse_to_replace([idx_path(output)])
    opened = [open_dataset(prefix) for prefix in prefixes]
    datasets, manifests = [dataset for dataset, _ in opened], [manifest for _, manifest in opened]
    _refuse_unlike(datasets)
    _refuse_unlike_ends(datasets, manifests)
    _refuse_twice(datasets, manifests)
    described = all(column_path(dataset.prefix, DOCUMENTS).is_file() for dataset in datasets)
    beside = (column_path(output, DOCUMENTS), column_path(output, LOSS_SPANS))
    written = [bin_path(output), idx_path(output), manifest_path(output), *beside]
    with only_writer(Path(output), written):
        return _concatenated(datasets, manifests, output, described)


def _concatenated(
    datasets: Sequence[IndexedDataset], manifests: Sequence[Manifest], output: str | Path, described: bool
) -> Manifest:
    with_spans = any(manifest.loss_spans_sha256 is not None for manifest in manifests)
    column_path(output, LOSS_SPANS).unlink(missing_ok=True)  # of a dataset that stood there before
    with ExitStack() as files:
        column = files.enter_context(ColumnWriter(output, DOCUMENTS, DOCUMENT_RECORD)) if described else None
        writer = files.enter_context(IndexedWriter(output, datasets[0].dtype))
        # Written before the pair is there, as it is not to be without them.
        spans = files.enter_context(ColumnWriter(output, LOSS_SPANS, LOSS_SPAN)) if with_spans else None
        for dataset, described_by in zip(datasets, manifests, strict=True):
            if spans is not None:
                spans.add(_moved_spans(dataset, described_by, writer.token_count))
            _copy(dataset, writer)
            if column is not None:
                column.add(documents_column(dataset.prefix, described_by))
    manifest = replace(_joined(manifests, writer), samples_sha256=samples_of(output, writer.index_sha256))
    if with_spans:
        counted = sum(one.tokens if one.loss_tokens is None else one.loss_tokens for one in manifests)
        manifest = replace(
            manifest, loss_spans_sha256=file_sha256(column_path(output, LOSS_SPANS)), loss_tokens=counted
        )
    if column is None:
        column_path(output, DOCUMENTS).unlink(missing_ok=True)  # of a dataset that stood there before
    else:
        manifest = replace(manifest, documents_sha256=file_sha256(column_path(output, DOCUMENTS)))
    write_manifest(output, manifest)
    return manifest


def _moved_spans(dataset: IndexedDataset, manifest: Manifest, tokens: int) -> npt.NDArray[np.void]:
    """The spans of a dataset behind so many tokens; all of it is one span where it has none."""
    if manifest.loss_spans_sha256 is None:
        return np.array([(tokens, tokens + manifest.tokens)], LOSS_SPAN)
    spans = np.array(loss_spans(dataset.prefix, manifest))
    spans["begin"] += tokens
    spans["end"] += tokens
    return spans


def _copy(dataset: IndexedDataset, writer: IndexedWriter) -> None:
    lengths, bounds, starts = dataset.sequence_lengths, dataset.document_bounds, dataset.document_starts
    for first in range(0, dataset.documents, _CHUNK_DOCUMENTS):
        end = min(first + _CHUNK_DOCUMENTS, dataset.documents)
        writer.add_split(
            dataset.tokens[starts[first] : starts[end]],
            np.array(lengths[bounds[first] : bounds[end]]),
            np.diff(bounds[first : end + 1]),
        )


def _refuse_unlike(datasets: Sequence[IndexedDataset]) -> None:
    if not datasets:
        raise BadInput(Fault("no dataset", "was given.", "Give pairs PREFIX.bin and PREFIX.idx."))
    faults: list[Fault] = []
    for dataset in datasets:
        if dataset.dtype != datasets[0].dtype:
            rule = f"holds {dataset.dtype} where {datasets[0].prefix} holds {datasets[0].dtype}."
            faults.append(Fault(str(dataset.prefix), rule, "Prepare both with one tokenizer."))
    refuse(faults)


def _refuse_unlike_ends(datasets: Sequence[IndexedDataset], manifests: Sequence[Manifest]) -> None:
    """Of those of which it is known: the tokenizer, and what closes and opens documents."""
    known = [
        (dataset.prefix, manifest)
        for dataset, manifest in zip(datasets, manifests, strict=True)
        if manifest.tokenizer is not None
    ]
    faults = []
    for prefix, manifest in known[1:]:
        first_prefix, first = known[0]
        if manifest.tokenizer != first.tokenizer:
            rule = f"was made with another tokenizer than {first_prefix}."
            faults.append(Fault(str(prefix), rule, "Prepare both with one tokenizer."))
            continue
        for name, own, others in (("EOD", manifest.eod, first.eod), ("BOS", manifest.bos, first.bos)):
            if own != others:
                rule = f"has {_said(name, own)} where {first_prefix} has {_said(name, others)}."
                faults.append(Fault(str(prefix), rule, "Prepare both alike."))
    refuse(faults)


def _said(name: str, token: int | None) -> str:
    return f"no {name}" if token is None else f"the {name} {token}"


def _refuse_twice(datasets: Sequence[IndexedDataset], manifests: Sequence[Manifest]) -> None:
    """Documents would be there twice where one dataset is another, or was joined of it."""
    faults = []
    remedy = "Join each once: take one of the two out of the folder."
    names = data_names(list(zip(datasets, manifests, strict=True)))
    for number, (dataset, manifest) in enumerate(zip(datasets, manifests, strict=True)):
        for other, name in zip(datasets[number + 1 :], names[number + 1 :], strict=True):
            if manifest.tokens and name == names[number]:
                faults.append(Fault(str(other.prefix), f"is the same data as {dataset.prefix}.", remedy))
        for other, another in zip(datasets, manifests, strict=True):
            if len(another.joined or []) > 1 and _was_joined(dataset, manifest, another.joined or []):
                rule = f"is in {other.prefix} already, which was joined of it."
                faults.append(Fault(str(dataset.prefix), rule, remedy))
    refuse(faults)


def _was_joined(dataset: IndexedDataset, manifest: Manifest, joined: Sequence[str]) -> bool:
    """Whether a dataset is one of those that another was joined of, which tells their hashes."""
    if not manifest.hashes.isdisjoint(joined):
        return True
    return manifest.only_sampled and file_sha256(bin_path(dataset.prefix)) in joined


def _joined(manifests: Sequence[Manifest], writer: IndexedWriter) -> Manifest:
    def same(name: str) -> Any:
        values = {getattr(manifest, name) for manifest in manifests}
        return values.pop() if len(values) == 1 else None

    def summed(name: str) -> int | None:
        values = [getattr(manifest, name) for manifest in manifests]
        return None if None in values else sum(values)

    joined = Manifest(
        documents=writer.documents,
        tokens=writer.token_count,
        bytes=summed("bytes"),
        dtype=writer.dtype.name,
        largest_id=writer.largest_id,
        data_sha256=writer.data_sha256,
        index_sha256=writer.index_sha256,
        cut=sum(manifest.cut or 0 for manifest in manifests) or None,
        tool_version=tool_version(),
        joined=[part for manifest in manifests for part in (manifest.joined or [manifest.data_sha256])],
    )
    return replace(joined, **{name: same(name) for name in SHARED})


def datasets_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The prefixes of the pairs of a folder, in the order of their files' names, and the held-out ones among others.

    Held-out pairs are apart where there are others too: what is joined of all would be trained on what validates it.
    BadInput: half a pair.
    """
    prefixes = [file.with_suffix("") for file in sorted(folder.iterdir()) if file.suffix == ".idx"]
    halves = [file for file in folder.iterdir() if file.suffix == ".bin" and file.with_suffix("") not in prefixes]
    refuse([Fault(str(file), "has no .idx beside it.", "Prepare it again, or take it away.") for file in halves])
    held_out = [prefix for prefix in prefixes if prefix.name.endswith(HELD_OUT)]
    if len(held_out) == len(prefixes):
        return prefixes, []
    return [prefix for prefix in prefixes if prefix not in held_out], held_out


SUFFIX = ".selection.json"
DOCUMENT, START, _END = 0, 1, 2


@dataclass(frozen=True)
class SelectedDataset:
    """The part of a selection that lies in one dataset."""

    dataset: IndexedDataset
    """The dataset."""
    manifest: Manifest
    """Its manifest, the one that the selection was made from."""
    documents: npt.NDArray[np.int64]
    """Document numbers, ascending."""
    starts: npt.NDArray[np.int64]
    """Token offset of each in the dataset."""
    lengths: npt.NDArray[np.int64]
    """Tokens of each."""

    @property
    def prefix(self) -> Path:
        """Prefix of the dataset."""
        return self.dataset.prefix

    @property
    def tokens(self) -> int:
        """Tokens chosen from this dataset."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class Selection:
    """A selection on disk, checked against its datasets."""

    path: Path
    """NAME.selection.json."""
    datasets: tuple[SelectedDataset, ...]
    """Its datasets, each with at least one document."""
    tokens: int
    """Tokens of all chosen documents."""
    how: dict[str, Any]
    """How the documents were chosen."""
    sha256: str
    """SHA-256 of the array file."""


def array_path(path: str | Path) -> Path:
    """NAME.selection.npy of NAME.selection.json."""
    return Path(path).with_suffix(".npy")


def _selection_path(name: str | Path) -> Path:
    """NAME.selection.json, also where the user wrote the suffix."""
    return Path(name) if str(name).endswith(SUFFIX) else Path(f"{name}{SUFFIX}")


def write_selection(
    name: str | Path, datasets: Sequence[SelectedDataset], how: dict[str, Any], overwrite: bool = False
) -> Selection:
    """Writes both files, the array first, and returns the selection as it reads back.

    Raises BadInput where another selection has this name and may not be replaced (`overwrite`), or another process
    writes it.
    """
    path = _selection_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.concatenate([part.lengths for part in datasets])
    table = np.stack(
        [
            np.concatenate([part.documents for part in datasets]),
            np.concatenate([part.starts for part in datasets]),
            np.cumsum(lengths),
        ]
    ).astype("<i8", copy=False)
    content = {
        "datasets": [
            {
                "prefix": _portable(part.prefix, path.parent),
                "data_sha256": part.manifest.data_sha256,
                "index_sha256": part.manifest.index_sha256,
                "documents": len(part.documents),
                "tokens": part.tokens,
            }
            for part in datasets
        ],
        "documents": table.shape[1],
        "tokens": int(lengths.sum()),
        "how": how,
    }
    with only_writer(path, (path, array_path(path))):
        if path.exists() and not overwrite:
            _refuse_other(path, content, table)
        with durable_file(array_path(path)) as file:
            # By way of memory: into a file numpy writes with a buffer of its own, and a full disk at its end is no
            # error.
            array = BytesIO()
            np.save(array, table, allow_pickle=False)
            file.write(array.getbuffer())
            file.flush()
            path.unlink(missing_ok=True)  # Not before the disk has taken the array.
        seal = {"array_sha256": file_sha256(array_path(path)), "tool_version": tool_version()}
        write_checked_json(path, content | seal)
    return load_selection(path)


def _refuse_other(path: Path, content: dict[str, Any], table: npt.NDArray[np.int64]) -> None:
    """Raises BadInput where a selection is not the one that would be written."""
    try:
        before, documents = _read(path)
        now = orjson.loads(orjson.dumps(content))
        if all(before.get(name) == value for name, value in now.items()) and np.array_equal(documents, table):
            return
    except (BadInput, IntegrityFault):
        pass
    remedy = "Give another --output, or --overwrite to replace it."
    raise BadInput(Fault(str(path), "is there already, and holds another selection.", remedy))


def load_selection(name: str | Path, described: Described | None = None) -> Selection:
    """Reads a selection and checks it against its datasets, which are opened as `open_dataset` does.

    Raises BadInput where it or a dataset is missing or a dataset changed, IntegrityFault where the
    selection's own files were altered.
    """
    path = _selection_path(name)
    content, table = _read(path)
    parts: list[SelectedDataset] = []
    first = 0
    for entry in content["datasets"]:
        rows = slice(first, first + entry["documents"])
        before = int(table[_END, first - 1]) if first else 0
        parts.append(_checked_part(path, entry, table[:, rows], before, described))
        first += entry["documents"]
    tokens = sum(part.tokens for part in parts)
    if first != table.shape[1] or tokens != content["tokens"]:
        raise _altered(path, "its counts do not add up")
    return Selection(path, tuple(parts), tokens, content["how"], content["array_sha256"])


def whole_dataset(prefix: str | Path) -> SelectedDataset:
    """Every document of a dataset, as a selection sees it."""
    return all_documents(*open_dataset(prefix))


def all_documents(dataset: IndexedDataset, manifest: Manifest) -> SelectedDataset:
    """whole_dataset of a dataset that is open already."""
    starts = dataset.document_starts
    documents = np.arange(dataset.documents, dtype=np.int64)
    return SelectedDataset(dataset, manifest, documents, starts[:-1], np.diff(starts))


def refuse_overlap(parts: Sequence[SelectedDataset]) -> None:
    """Raises BadInput if two parts share a document: same data, one number in both."""
    seen: dict[str, list[SelectedDataset]] = {}
    for part, name in zip(parts, data_names([(part.dataset, part.manifest) for part in parts]), strict=True):
        for other in seen.setdefault(name, []):
            shared = np.intersect1d(part.documents, other.documents, assume_unique=True)
            if len(shared):
                raise BadInput(
                    Fault(
                        f"{other.prefix} and {part.prefix}",
                        f"share {len(shared):,} documents, which would be read twice as often as the others.",
                        "Name each dataset once, or a selection in place of the dataset it was made from.",
                    )
                )
        seen[name].append(part)


def _read(path: Path) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    for file in (path, array_path(path)):
        if not file.is_file():
            remedy = "Give the NAME that `megatron-cpt select --output NAME` wrote."
            raise BadInput(Fault(str(file), "is not there.", remedy))
    content = read_json_object(path)
    assert content is not None
    missing = {"datasets", "tokens", "how", "array_sha256"} - set(content)
    if missing:
        raise _altered(path, f"lacks {', '.join(sorted(missing))}")
    if file_sha256(array_path(path)) != content["array_sha256"]:
        raise _altered(path, f"{array_path(path).name} is not the array it was written with")
    table = np.load(array_path(path), mmap_mode="r", allow_pickle=False)
    return content, np.asarray(table)


def _checked_part(
    path: Path, entry: dict[str, Any], table: npt.NDArray[np.int64], before: int, described: Described | None
) -> SelectedDataset:
    prefix = path.parent / entry["prefix"]
    dataset, manifest = open_dataset(prefix, described)
    remade = "Run `megatron-cpt select` again, with --overwrite."
    refuse_other_content(path, prefix, manifest, entry["data_sha256"], entry["index_sha256"], remade)
    lengths = np.diff(table[_END], prepend=before)
    ends = table[START] + lengths
    outside = (table[START] < 0) | (lengths < 0) | (ends > manifest.tokens)
    if outside.any() or int(lengths.sum()) != entry["tokens"]:
        raise _altered(path, f"its documents do not lie in {prefix}")
    return SelectedDataset(dataset, manifest, table[DOCUMENT], table[START], lengths)


def _portable(prefix: Path, folder: Path) -> str:
    """Relative where the dataset lies beside or below the selection, so that both can be moved together."""
    absolute = Path(os.path.abspath(prefix))
    base = Path(os.path.abspath(folder))
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)


def _altered(path: Path, what: str) -> IntegrityFault:
    return IntegrityFault(f"{path}: {what}. Run `megatron-cpt select` again, with --overwrite.")
