"""MinHash signatures, by which near duplicates are found without comparing every document with every other.

A document is the set of its runs of 5 words; how alike two documents are is the share of their runs that both have
(Jaccard). Each of the 128 slots of a signature (rensa's R-MinHash) agrees between two documents with that
probability. 20 bands of 6 slots name candidates (Broder 1997; bands as in arXiv:2406.17557): of pairs that are 0.8
alike 99.8 % agree in a band, of 0.7 92 %, of 0.3 1.4 %; all slots then decide. Texts of fewer than 5 words have no runs
and are not compared.
"""

import importlib.util
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.mixed import mixed
from megatron_cpt.preparation.words import HashedWords

SHINGLE_WORDS = 5
SLOTS = 128
BANDS, BAND_SLOTS = 20, 6
_SEED = 1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def refuse_without_rensa() -> None:
    """Raises BadInput where the optional library is not installed."""
    if importlib.util.find_spec("rensa") is None:
        raise BadInput(Fault("--dedup minhash", "needs the library rensa.", "pip install 'megatron-cpt[quality]'"))


def signatures(words: HashedWords) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Of each text: its signature, uint32[texts, SLOTS], and whether it has enough words for one, bool[texts]."""
    # An optional library.
    import rensa  # noqa: PLC0415

    shingles = words.ngrams(SHINGLE_WORDS)
    if len(shingles.hashes) == 0:
        return np.zeros((len(shingles.counts), SLOTS), np.uint32), np.zeros(len(shingles.counts), np.bool_)
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(shingles.counts).astype(np.uint64)])
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles.hashes, offsets, SLOTS, _SEED).to_rows()
    return np.array(rows, np.uint32).reshape(len(shingles.counts), SLOTS), shingles.counts > 0


def band_keys(of_texts: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """A 64-bit key for each band of each signature, other bands having other keys: uint64[texts, BANDS]."""
    bands = of_texts[:, : BANDS * BAND_SLOTS].reshape(len(of_texts), BANDS, BAND_SLOTS).astype(np.uint64)
    keys = np.broadcast_to(mixed(np.arange(1, BANDS + 1, dtype=np.uint64)), bands.shape[:2])
    for slot in range(BAND_SLOTS):
        keys = mixed(keys * _FACTOR + bands[:, :, slot])
    return keys


def similarity(first: npt.NDArray[np.uint32], second: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """How alike pairs of texts are, 0 to 1, from their signatures [pairs, SLOTS]; standard error 0.04 at most."""
    agree: npt.NDArray[np.float64] = (first == second).mean(axis=1)
    return agree


def joined(parts: Sequence[npt.NDArray[np.uint32]]) -> npt.NDArray[np.uint32]:
    """Signatures of several lots of texts, one behind the other."""
    return np.concatenate([np.empty((0, SLOTS), np.uint32), *parts])
