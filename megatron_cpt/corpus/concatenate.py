"""Whole datasets one behind the other as one, with the memory of a chunk of tokens.

Nothing is decided anew: copies and held-out documents are what they were (`merge` is for shards of one call).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.corpus.columns import DOCUMENT_RECORD, DOCUMENTS, ColumnWriter, column_path, read_column
from megatron_cpt.corpus.indexed import IndexedDataset, IndexedWriter, bin_path, idx_path
from megatron_cpt.corpus.manifest import Manifest, open_dataset, tool_version, write_manifest
from megatron_cpt.runs.durable import refuse_to_replace

CHUNK_DOCUMENTS = 1 << 14
SHARED = ("vocabulary_size", "tokenizer", "tokenizer_folder", "eod", "bos")
"""What the joined manifest keeps where all parts say the same."""


def concatenate(prefixes: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> Manifest:
    """Writes the documents of datasets, in the order given, as the dataset `output`.

    Raises BadInput where there is none, they differ in dtype or tokenizer, the output is one of them or is
    there already and may not be replaced (`overwrite`);
    IntegrityFault where one is broken.
    """
    refuse_to_replace([idx_path(output)], overwrite)
    opened = [open_dataset(prefix) for prefix in prefixes]
    datasets, manifests = [dataset for dataset, _ in opened], [manifest for _, manifest in opened]
    _refuse_unlike(datasets, Path(output))
    _refuse_other_tokenizers(datasets, manifests)
    described = all(column_path(dataset.prefix, DOCUMENTS).is_file() for dataset in datasets)
    with ExitStack() as files:
        column = files.enter_context(ColumnWriter(output, DOCUMENTS, DOCUMENT_RECORD)) if described else None
        writer = files.enter_context(IndexedWriter(output, datasets[0].dtype))
        for dataset in datasets:
            _copy(dataset, writer)
            if column is not None:
                column.add(read_column(dataset.prefix, DOCUMENTS, dataset.documents))
    if column is None:
        column_path(output, DOCUMENTS).unlink(missing_ok=True)  # of a dataset that stood there before
    manifest = _joined(manifests, writer)
    write_manifest(output, manifest)
    return manifest


def _copy(dataset: IndexedDataset, writer: IndexedWriter) -> None:
    lengths, bounds, starts = dataset.sequence_lengths, dataset.document_bounds, dataset.document_starts
    for first in range(0, dataset.documents, CHUNK_DOCUMENTS):
        end = min(first + CHUNK_DOCUMENTS, dataset.documents)
        writer.add_split(
            dataset.tokens[starts[first] : starts[end]],
            np.array(lengths[bounds[first] : bounds[end]]),
            np.diff(bounds[first : end + 1]),
        )


def _refuse_unlike(datasets: Sequence[IndexedDataset], output: Path) -> None:
    if not datasets:
        raise BadInput(Fault("no dataset", "was given.", "Give pairs PREFIX.bin and PREFIX.idx."))
    faults: list[Fault] = []
    for dataset in datasets:
        if dataset.dtype != datasets[0].dtype:
            rule = f"holds {dataset.dtype} where {datasets[0].prefix} holds {datasets[0].dtype}."
            faults.append(Fault(str(dataset.prefix), rule, "Prepare both with one tokenizer."))
        if bin_path(dataset.prefix).resolve() == bin_path(output).resolve():
            faults.append(Fault(str(output), "is one of the inputs.", "Write to another prefix."))
    refuse(faults)


def _refuse_other_tokenizers(datasets: Sequence[IndexedDataset], manifests: Sequence[Manifest]) -> None:
    known = [
        (dataset.prefix, manifest.tokenizer)
        for dataset, manifest in zip(datasets, manifests, strict=True)
        if manifest.tokenizer is not None
    ]
    rule = "was made with another tokenizer than"
    refuse(
        [
            Fault(str(prefix), f"{rule} {known[0][0]}.", "Prepare both with one tokenizer.")
            for prefix, tokenizer in known
            if tokenizer != known[0][1]
        ]
    )


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
        tool_version=tool_version(),
    )
    return replace(joined, **{name: same(name) for name in SHARED})


def datasets_in(folder: Path) -> list[Path]:
    """The prefixes of all pairs of a folder, in the order of their files' names. BadInput: half a pair."""
    prefixes = [file.with_suffix("") for file in sorted(folder.iterdir()) if file.suffix == ".idx"]
    halves = [file for file in folder.iterdir() if file.suffix == ".bin" and file.with_suffix("") not in prefixes]
    refuse([Fault(str(file), "has no .idx beside it.", "Prepare it again, or take it away.") for file in halves])
    return prefixes
