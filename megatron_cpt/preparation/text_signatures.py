"""What the texts of a piece showed beside their tokens: MinHash signatures, overlap with evaluation items.

Both are kept beside the sorted run of the piece, by the positions of its documents there, since the last pass (join.py)
has no texts any more.

A document is the set of its 5-word shingles. The similarity of two documents is the share of shingles that both have
(Jaccard). Each of the 128 slots of a signature (rensa's R-MinHash) agrees between two documents with that probability.
20 bands of 6 slots name candidates (Broder 1997; bands as in arXiv:2406.17557): 99.8 % of pairs with similarity 0.8
agree in a band, 92 % with 0.7, 1.4 % with 0.3. All slots then decide. Texts of fewer than 5 words are not compared.
"""

import importlib.util
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.hashing import mixed
from megatron_cpt.preparation.contamination import OVERLAP, EvaluationNgrams
from megatron_cpt.preparation.hashed_words import HashedWords, hashed_words
from megatron_cpt.preparation.sorted_runs import holds
from megatron_cpt.runs.folder import renamed_file

_LOT_CHARACTERS = 1 << 18
"""Of texts that are looked through at a time."""


@dataclass(frozen=True)
class TextChecks:
    """What is looked for in every text."""

    near_duplicates: bool
    """Whether signatures are made."""
    evaluation: EvaluationNgrams | None
    """What texts are compared with."""


@dataclass(frozen=True)
class TextSignatures:
    """What was found in some texts; positions are their numbers from 0."""

    signatures: npt.NDArray[np.uint32]
    """uint32[texts, SLOTS], or of no texts where none are made."""
    signed: npt.NDArray[np.bool_]
    """Which texts have words enough for a signature: bool[texts], or of none."""
    overlaps: npt.NDArray[np.void]
    """OVERLAP[any]"""


def text_signatures(looked_for: TextChecks, texts: Sequence[str]) -> TextSignatures:
    """Looks texts through, some at a time: a character takes 50 bytes on the way."""
    lots = list(_lots(texts))
    return join_signatures([_find(looked_for, lot) for lot in lots], [len(lot) for lot in lots])


def _lots(texts: Sequence[str]) -> Iterator[list[str]]:
    lot: list[str] = []
    characters = 0
    for text in texts:
        lot.append(text)
        characters += len(text)
        if characters >= _LOT_CHARACTERS:
            yield lot
            lot, characters = [], 0
    if lot:
        yield lot


def _find(looked_for: TextChecks, texts: Sequence[str]) -> TextSignatures:
    words = hashed_words(texts)
    signatures, signed = joined([]), np.empty(0, np.bool_)
    if looked_for.near_duplicates:
        signatures, signed = _minhash_signatures(words)
    overlaps = np.empty(0, OVERLAP) if looked_for.evaluation is None else looked_for.evaluation.overlaps(words)
    return TextSignatures(signatures, signed, overlaps)


def join_signatures(parts: Sequence[TextSignatures], texts: Sequence[int]) -> TextSignatures:
    """Of several lots of texts, one behind the other; `texts` are their numbers of texts."""
    overlaps = [np.empty(0, OVERLAP)]
    for part, before in zip(parts, np.cumsum([0, *texts]), strict=False):
        moved = part.overlaps.copy()
        moved["position"] += np.uint32(before)
        overlaps.append(moved)
    return TextSignatures(
        joined([part.signatures for part in parts]),
        np.concatenate([np.empty(0, np.bool_), *(part.signed for part in parts)]),
        np.concatenate(overlaps),
    )


def write_signatures(path: Path, found: TextSignatures, order: npt.NDArray[np.int64]) -> int:
    """Writes what was found, `order` being the old number of each text in the run, int64[texts]; returns a checksum."""
    position = np.empty(len(order), np.uint32)
    position[order] = np.arange(len(order))
    overlaps = found.overlaps.copy()
    overlaps["position"] = position[found.overlaps["position"]]
    overlaps = overlaps[np.lexsort((overlaps["item"], overlaps["position"]))]
    signatures = found.signatures[order] if len(found.signatures) else found.signatures
    signed = np.flatnonzero(found.signed[order]) if len(found.signed) else np.empty(0, np.int64)
    keys = band_keys(signatures[signed]).ravel()
    owners = np.repeat(signed, BANDS).astype(np.uint32)
    by_key = np.lexsort((owners, keys))
    checksum = 0
    with renamed_file(path) as file:
        for array in (signatures, keys[by_key], owners[by_key], overlaps):
            content = array.tobytes()
            file.write(content)
            checksum = zlib.crc32(content, checksum)
    return checksum


@dataclass(frozen=True)
class FoundRun:
    """What was found in a piece, on disk."""

    path: Path
    signatures: int
    """Signatures: one a document, or none."""
    bands: int
    overlaps: int

    def is_whole(self, checksum: int) -> bool:
        """Whether the file is what was written: it is read once, whole."""
        return holds(self.path, self._offsets[-1], checksum)

    @cached_property
    def _offsets(self) -> list[int]:
        sizes = (self.signatures * SLOTS * 4, self.bands * 8, self.bands * 4, self.overlaps * OVERLAP.itemsize)
        return [0, *np.cumsum(sizes).tolist()]

    def signature_rows(self) -> npt.NDArray[np.uint32]:
        """uint32[documents, SLOTS], mapped from disk."""
        return self._mapped(np.dtype("<u4"), 0, self.signatures * SLOTS).reshape(-1, SLOTS)

    def band_keys(self) -> npt.NDArray[np.uint64]:
        """The keys of the bands of all documents, sorted: uint64[bands], mapped from disk."""
        return self._mapped(np.dtype("<u8"), 1, self.bands)

    def band_positions(self) -> npt.NDArray[np.uint32]:
        """Whose each band is: uint32[bands], mapped from disk."""
        return self._mapped(np.dtype("<u4"), 2, self.bands)

    def overlap_table(self) -> npt.NDArray[np.void]:
        """OVERLAP[any], sorted by position and item, mapped from disk."""
        return self._mapped(OVERLAP, 3, self.overlaps)

    def _mapped(self, dtype: np.dtype[Any], array: int, count: int) -> npt.NDArray[Any]:
        if count == 0:
            return np.empty(0, dtype)
        return np.memmap(self.path, dtype, mode="r", offset=self._offsets[array], shape=(count,))


_SHINGLE_WORDS = 5
SLOTS = 128
BANDS, _BAND_SLOTS = 20, 6
_SEED = 1
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def refuse_without_rensa() -> None:
    """Raises BadInput where the optional library is not installed."""
    if importlib.util.find_spec("rensa") is None:
        raise BadInput(Fault("--dedup minhash", "needs the library rensa.", "pip install 'megatron-cpt[quality]'"))


def _minhash_signatures(words: HashedWords) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Of each text: its signature, uint32[texts, SLOTS], and whether it has enough words for one, bool[texts]."""
    # An optional library.
    import rensa  # noqa: PLC0415

    shingles = words.ngrams(_SHINGLE_WORDS)
    if len(shingles.hashes) == 0:
        return np.zeros((len(shingles.counts), SLOTS), np.uint32), np.zeros(len(shingles.counts), np.bool_)
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(shingles.counts).astype(np.uint64)])
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles.hashes, offsets, SLOTS, _SEED).to_rows()
    return np.array(rows, np.uint32).reshape(len(shingles.counts), SLOTS), shingles.counts > 0


def band_keys(of_texts: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """A 64-bit key for each band of each signature, other bands having other keys: uint64[texts, BANDS]."""
    bands = of_texts[:, : BANDS * _BAND_SLOTS].reshape(len(of_texts), BANDS, _BAND_SLOTS).astype(np.uint64)
    keys = np.broadcast_to(mixed(np.arange(1, BANDS + 1, dtype=np.uint64)), bands.shape[:2])
    for slot in range(_BAND_SLOTS):
        keys = mixed(keys * _FACTOR + bands[:, :, slot])
    return keys


def similarity(first: npt.NDArray[np.uint32], second: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """How alike pairs of texts are, 0 to 1, from their signatures [pairs, SLOTS]; standard error 0.04 at most."""
    agree: npt.NDArray[np.float64] = (first == second).mean(axis=1)
    return agree


def joined(parts: Sequence[npt.NDArray[np.uint32]]) -> npt.NDArray[np.uint32]:
    """Signatures of several lots of texts, one behind the other."""
    return np.concatenate([np.empty((0, SLOTS), np.uint32), *parts])
