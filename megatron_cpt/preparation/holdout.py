"""Which documents are held out for validation: decided by the content alone.

Each document has a key, mixed from its content hash; held out are those whose key is below a bound. So a
document is held out whatever the order, the seed and the shards of the input, every exact duplicate shares
its fate, in other corpora too, and a larger share holds out what a smaller one did.
"""

from collections.abc import Callable, Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.mixed import mixed

ALL = 1 << 64
"""Keys there are: a bound that holds out everything."""
_SALT = np.uint64(int.from_bytes(b"held out", "little"))
_BINS_BITS = 16


def content_hash(text: bytes) -> bytes:
    """64-bit hash of a document's UTF-8 text, 8 bytes little-endian: equal for exact duplicates."""
    return blake2b(text, digest_size=8).digest()


def holdout_keys(content_hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The keys of documents: uint64[n], even over all 64 bits."""
    return mixed(mixed(content_hashes ^ _SALT) + _SALT)


def below(keys: npt.NDArray[np.uint64], bound: int) -> npt.NDArray[np.bool_]:
    """Which keys are held out: bool[n]."""
    if bound == 0:
        return np.zeros(len(keys), np.bool_)
    return keys <= np.uint64(bound - 1)


def bound_of_share(share: float) -> int:
    """The bound that holds out a share, 0 to 1, of documents."""
    return int(share * ALL)


def bound_of_tokens(
    documents: Callable[[], Iterable[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]], tokens: int
) -> int:
    """The bound that holds out the fewest documents with at least so many tokens together; ALL if there are fewer.

    `documents` gives keys and tokens of all documents, in parts, each time it is called: first they are summed
    in 65,536 bins, then the bin that the bound lies in is sorted.
    """
    sums = np.zeros(1 << _BINS_BITS, np.int64)
    shift = np.uint64(64 - _BINS_BITS)
    for keys, counts in documents():
        np.add.at(sums, (keys >> shift).astype(np.int64), counts)
    totals = np.cumsum(sums)
    if totals[-1] < tokens:
        return ALL
    bin_ = int(np.searchsorted(totals, tokens))
    left = tokens - int(totals[bin_] - sums[bin_])
    inside = [(keys[keys >> shift == bin_], counts[keys >> shift == bin_]) for keys, counts in documents()]
    keys = np.concatenate([part for part, _ in inside])
    counts = np.concatenate([part for _, part in inside])
    order = np.argsort(keys, kind="stable")
    reached = int(np.searchsorted(np.cumsum(counts[order]), left))
    return int(keys[order][reached]) + 1
