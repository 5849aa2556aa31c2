"""N-grams of token ids hashed into buckets: the features of the importance weights and of the classifier."""

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.chunks import DocumentChunk
from megatron_cpt.corpus.mixed import mixed

_STEP = np.uint64(0x9E3779B97F4A7C15)


def hashed_ngrams(
    chunk: DocumentChunk, longest: int, buckets: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every n-gram of 1 to `longest` tokens inside a document: its bucket, and the document it is of.

    Returns int64[n-grams] twice; documents are numbered within the chunk.
    """
    documents = np.repeat(np.arange(len(chunk.lengths)), chunk.lengths)
    tokens = mixed((chunk.tokens.astype(np.uint64) + np.uint64(1)) * _STEP)
    found, owners = [tokens], [documents]
    for _ in range(1, longest):
        # Places whose shorter n-gram and the token after it are of one document.
        shorter, owner = found[-1][:-1], owners[-1][:-1]
        after = documents[len(documents) - len(shorter) :]
        grown = mixed(shorter * _STEP + tokens[len(tokens) - len(shorter) :])
        found.append(grown)
        owners.append(np.where(owner == after, owner, -1))
    every, owner = np.concatenate(found), np.concatenate(owners)
    return (every[owner >= 0] % np.uint64(buckets)).astype(np.int64), owner[owner >= 0]
