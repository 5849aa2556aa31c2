"""A column beside a dataset that says which of its tokens count in the loss.

| file | content | tokens that count |
|---|---|---|
| `PREFIX.loss_spans.npy`, written by `prepare --chat` | LOSS_SPAN[spans], ascending | those of the spans |
| `PREFIX.NAME.npy` | the same | the same |
| `PREFIX.NAME.npy` | integers [documents] | those behind so many first tokens of each document, such as a prompt |

A document has any number of spans. A dataset whose manifest names spans is trained on them alone. Another column is
used where a source or set names it.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.columns import LOSS_SPAN, check_spans, column_path, load_column
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.corpus.manifest import Manifest, loss_spans


@dataclass(frozen=True)
class LossMask:
    """Which tokens of a dataset count."""

    dataset: IndexedDataset
    column: npt.NDArray[Any]
    """LOSS_SPAN[spans], or integers [documents]: the lengths of prompts. Mapped from disk."""

    def counts(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the tokens at positions of the .bin count: bool[n]."""
        if self.column.dtype == LOSS_SPAN:
            # Inside a span an odd number of bounds lie at or before a token.
            bounds = self.column.view("<i8")
            return bounds.searchsorted(positions, side="right") % 2 == 1
        starts = self.dataset.document_starts[:-1]
        documents = starts.searchsorted(positions, side="right") - 1
        behind_prompt: npt.NDArray[np.bool_] = positions - starts[documents] >= self.column[documents]
        return behind_prompt

    def describe(self, documents: npt.NDArray[np.int64] | None) -> bytes:
        """What decides, for a hash.

        Args:
            documents: those that are read, by their numbers; None: all.
        """
        if self.column.dtype == LOSS_SPAN:
            return f"spans {sha256(self.column.tobytes()).hexdigest()}".encode()
        lengths = self.column if documents is None else self.column[documents]
        return lengths.astype("<i8").tobytes()


def open_loss_mask(dataset: IndexedDataset, manifest: Manifest, name: str | None) -> LossMask | None:
    """The mask of a dataset; None: all tokens count.

    Args:
        name: of the column that a source or set names; None: the dataset's own spans, if it has some.

    Raises BadInput where there is no such column or it holds neither spans nor counts, IntegrityFault where it is torn,
    of another dataset, or not what the manifest describes.
    """
    if name is None:
        if manifest.loss_spans_sha256 is None:
            return None
        return LossMask(dataset, loss_spans(dataset.prefix, manifest))
    path = column_path(dataset.prefix, name)
    remedy = (
        "Write one whole number a document, in the order of the dataset (numpy.save of int64), or spans of tokens of "
        "the .bin (numpy.save of a structured array of int64 `begin` and `end`)."
    )
    if not path.is_file():
        raise BadInput(Fault(str(path), "is not there.", remedy))
    column = load_column(path)
    if column.dtype == LOSS_SPAN:
        check_spans(path, column, manifest.tokens)
        return LossMask(dataset, column)
    if column.dtype.kind not in "iu" or (column.size and column.min() < 0):
        rule = f"is of {column.dtype}, or has numbers below 0: it does not count tokens."
        raise BadInput(Fault(str(path), rule, remedy))
    if column.shape != (manifest.documents,):
        raise IntegrityFault(
            f"{path}: has shape {column.shape} where {dataset.prefix} has {manifest.documents:,} documents. "
            "Write it again."
        )
    return LossMask(dataset, column)
