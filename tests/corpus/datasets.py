"""Small datasets for the tests of what reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_cpt.corpus.indexed import IndexedWriter


def write_dataset(prefix: Path, lengths: Sequence[int], first: int = 0, vocabulary: int = 2**31) -> Path:
    """A dataset whose tokens count up from `first`, modulo `vocabulary`, in documents of the given lengths."""
    with IndexedWriter(prefix, "int32") as writer:
        writer.add_many(np.arange(first, first + sum(lengths)) % vocabulary, np.array(lengths, np.int64))
    return prefix
