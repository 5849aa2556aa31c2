"""Documents of datasets and selections as chunks of token ids, for whoever counts or scores them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.selection import SelectedDataset

CHUNK_TOKENS = 1 << 19
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
        last = max(first + 1, int(np.searchsorted(ends, before + CHUNK_TOKENS, side="right")))
        pieces = [part.dataset.tokens[starts[n] : starts[n] + lengths[n]] for n in range(first, last)]
        yield DocumentChunk(np.concatenate(pieces).astype(np.int64), lengths[first:last])
        first = last
