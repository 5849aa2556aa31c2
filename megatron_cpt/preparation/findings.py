"""What the texts of a piece showed beside their tokens: MinHash signatures, overlap with evaluation items.

Kept beside the sorted run of the piece, by the positions that its documents have there, since the last pass
(join.py) has no texts any more.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.preparation import minhash
from megatron_cpt.preparation.contamination import OVERLAP, EvaluationNgrams
from megatron_cpt.preparation.sorted_run import holds
from megatron_cpt.preparation.words import hashed_words
from megatron_cpt.runs.durable import renamed_file

LOT_CHARACTERS = 1 << 18
"""Of texts that are looked through at a time."""


@dataclass(frozen=True)
class LookedFor:
    """What is looked for in every text."""

    near_duplicates: bool
    """Whether signatures are made."""
    evaluation: EvaluationNgrams | None
    """What texts are compared with."""


@dataclass(frozen=True)
class Findings:
    """What was found in some texts; positions are their numbers from 0."""

    signatures: npt.NDArray[np.uint32]
    """uint32[texts, SLOTS], or of no texts where none are made."""
    signed: npt.NDArray[np.bool_]
    """Which texts have words enough for a signature: bool[texts], or of none."""
    overlaps: npt.NDArray[np.void]
    """OVERLAP[any]"""


def find(looked_for: LookedFor, texts: Sequence[str]) -> Findings:
    """Looks texts through, some at a time: a character takes 50 bytes on the way."""
    lots = list(_lots(texts))
    return join_findings([_find(looked_for, lot) for lot in lots], [len(lot) for lot in lots])


def _lots(texts: Sequence[str]) -> Iterator[list[str]]:
    lot: list[str] = []
    characters = 0
    for text in texts:
        lot.append(text)
        characters += len(text)
        if characters >= LOT_CHARACTERS:
            yield lot
            lot, characters = [], 0
    if lot:
        yield lot


def _find(looked_for: LookedFor, texts: Sequence[str]) -> Findings:
    words = hashed_words(texts)
    signatures, signed = minhash.joined([]), np.empty(0, np.bool_)
    if looked_for.near_duplicates:
        signatures, signed = minhash.signatures(words)
    overlaps = np.empty(0, OVERLAP) if looked_for.evaluation is None else looked_for.evaluation.overlaps(words)
    return Findings(signatures, signed, overlaps)


def join_findings(parts: Sequence[Findings], texts: Sequence[int]) -> Findings:
    """Of several lots of texts, one behind the other; `texts` are their numbers of texts."""
    overlaps = [np.empty(0, OVERLAP)]
    for part, before in zip(parts, np.cumsum([0, *texts]), strict=False):
        moved = part.overlaps.copy()
        moved["position"] += np.uint32(before)
        overlaps.append(moved)
    return Findings(
        minhash.joined([part.signatures for part in parts]),
        np.concatenate([np.empty(0, np.bool_), *(part.signed for part in parts)]),
        np.concatenate(overlaps),
    )


def write_findings(path: Path, found: Findings, order: npt.NDArray[np.int64]) -> int:
    """Writes what was found, `order` being the old number of each text in the run, int64[texts]; returns a checksum."""
    position = np.empty(len(order), np.uint32)
    position[order] = np.arange(len(order))
    overlaps = found.overlaps.copy()
    overlaps["position"] = position[found.overlaps["position"]]
    overlaps = overlaps[np.lexsort((overlaps["item"], overlaps["position"]))]
    signatures = found.signatures[order] if len(found.signatures) else found.signatures
    signed = np.flatnonzero(found.signed[order]) if len(found.signed) else np.empty(0, np.int64)
    keys = minhash.band_keys(signatures[signed]).ravel()
    owners = np.repeat(signed, minhash.BANDS).astype(np.uint32)
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
        sizes = (self.signatures * minhash.SLOTS * 4, self.bands * 8, self.bands * 4, self.overlaps * OVERLAP.itemsize)
        return [0, *np.cumsum(sizes).tolist()]

    def signature_rows(self) -> npt.NDArray[np.uint32]:
        """uint32[documents, SLOTS], mapped from disk."""
        return self._mapped(np.dtype("<u4"), 0, self.signatures * minhash.SLOTS).reshape(-1, minhash.SLOTS)

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
