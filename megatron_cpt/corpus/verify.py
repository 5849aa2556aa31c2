"""Proof that a dataset is what its manifest says, reading every token once."""

from pathlib import Path

import numpy as np

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.corpus.indexed import CHUNK_TOKENS, IndexedDataset, bin_path
from megatron_cpt.corpus.manifest import Manifest, file_sha256, load_manifest


def verify_dataset(prefix: str | Path) -> Manifest:
    """Checks index and data hashes, ids inside the vocabulary, EOD and BOS around each document.

    What the manifest does not know is not checked. Raises IntegrityFault naming the file and what is
    wrong; returns the manifest.
    """
    manifest = load_manifest(prefix)
    dataset = IndexedDataset(prefix)
    if file_sha256(bin_path(prefix)) != manifest.data_sha256:
        raise IntegrityFault(
            f"{bin_path(prefix)}: is not the content that its manifest describes. Prepare or copy it again."
        )
    _check_ids(dataset, manifest)
    _check_ends(dataset, manifest)
    return manifest


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
