"""(source, sequence) to tokens, straight from the memory-mapped datasets."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.stream import TokenStream

Integers = npt.NDArray[np.int64]


def window(stream: TokenStream, sequence: int, sequence_length: int) -> Integers:
    """Sequence number s of an endless stream: tokens [s L, s L + L], L of input and the label of the last.

    As in Megatron's GPT dataset, documents follow each other and a sequence may begin and end inside one.
    """
    return stream.read(sequence * sequence_length, sequence_length + 1)


def windows(
    streams: Sequence[TokenStream], sources: npt.NDArray[np.int32], sequences: Integers, sequence_length: int
) -> Integers:
    """The windows of several sequences: int64 [n, sequence_length + 1]."""
    out = np.empty((len(sources), sequence_length + 1), np.int64)
    for row, source, sequence in zip(out, sources.tolist(), sequences.tolist(), strict=True):
        streams[source].copy(sequence * sequence_length, row)
    return out
