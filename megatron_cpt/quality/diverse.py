"""Documents in the order of their score, each taken if it is far enough from those taken before it.

So Deita selects (arXiv:2312.15685): by falling score, and none that is too similar to its nearest neighbour among those
taken. Similarity is the cosine of two embeddings. Every document is compared with every one taken before it, so the
choice is exact. The embeddings of those that are taken stand in memory, 4 bytes a number, beside some 100 MB for
products.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.columns import column_path, load_column
from megatron_cpt.corpus.scores import check_name
from megatron_cpt.corpus.selection import SelectedDataset

_CANDIDATES = 1024
"""Documents that are compared at a time with those that are taken ..."""
_TAKEN = 16384
"""... of which so many at a time, about."""

Vectors = npt.NDArray[np.float32]


def take_diverse(
    order: npt.NDArray[np.int64],
    read: Callable[[npt.NDArray[np.int64]], Vectors],
    largest: float,
    is_enough: Callable[[npt.NDArray[np.int64]], bool],
) -> npt.NDArray[np.int64]:
    """Those of `order`, in its order, that are at most so similar to each one taken before.

    Args:
        order: numbers of documents.
        read: gives the embeddings of some, float32[documents, dimensions], each of length 1.
        largest: cosine of two documents that are both taken, at most.
        is_enough: whether it may stop at the documents taken so far; it may be given more than enough.
    """
    taken = np.empty(0, np.int64)
    kept: list[Vectors] = []
    for first in range(0, len(order), _CANDIDATES):
        documents = order[first : first + _CANDIDATES]
        vectors = read(documents)
        nearest = np.full(len(documents), -np.inf, np.float32)
        for part in kept:
            np.maximum(nearest, (vectors @ part.T).max(axis=1), out=nearest)
        free = np.flatnonzero(nearest <= largest)
        if not len(free):
            continue
        documents, vectors = documents[free], vectors[free]
        chosen = _apart(vectors @ vectors.T, largest)
        taken = np.concatenate([taken, documents[chosen]])
        if is_enough(taken):
            break
        if kept and len(kept[-1]) < _TAKEN:
            kept[-1] = np.concatenate([kept[-1], vectors[chosen]])
        else:
            kept.append(vectors[chosen])
    return taken


def _apart(similarity: Vectors, largest: float) -> list[int]:
    """Which of some documents, from the first on, are at most so similar to each one before that is one of them.

    `similarity`: [documents, documents].
    """
    chosen, free = [], np.ones(len(similarity), np.bool_)
    for number, similar in enumerate(similarity):
        if free[number]:
            chosen.append(number)
            free &= similar <= largest
    return chosen


class Embeddings:
    """The arrays PREFIX.NAME.npy of some datasets, [documents, dimensions], read by the places of documents."""

    def __init__(self, parts: Sequence[SelectedDataset], name: str) -> None:
        """Opens them. Raises BadInput where one is missing or of other dimensions, IntegrityFault where it is torn."""
        check_name(name)
        self._name = name
        self._parts = [(part, _open(part, name)) for part in parts]
        sizes = {array.shape[1]: part.prefix for part, array in self._parts}
        if len(sizes) > 1:
            shown = ", ".join(f"{size:,} of {prefix}" for size, prefix in sizes.items())
            rule = f"have different numbers of dimensions: {shown}."
            raise BadInput(Fault(f"embeddings {name}", rule, "Embed all datasets with one encoder."))
        self._ends = np.cumsum([len(part.documents) for part in parts])

    def __call__(self, places: npt.NDArray[np.int64]) -> Vectors:
        """float32[places, dimensions], each of length 1. Places count the documents of all parts, laid end to end.

        Raises BadInput for an embedding that is 0 or not finite: it has no direction.
        """
        found = np.empty((len(places), self._parts[0][1].shape[1]), np.float32)
        owners = np.searchsorted(self._ends, places, side="right")
        for number, (part, array) in enumerate(self._parts):
            mine = np.flatnonzero(owners == number)
            if len(mine):
                documents = part.documents[places[mine] - (self._ends[number] - len(part.documents))]
                found[mine] = array[documents]
                self._refuse_directionless(part, documents, found[mine])
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    def _refuse_directionless(self, part: SelectedDataset, documents: npt.NDArray[np.int64], vectors: Vectors) -> None:
        bad = ~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
        if bad.any():
            rule = f"is 0 or not finite for document {documents[np.argmax(bad)]:,} of {part.prefix}."
            raise BadInput(Fault(f"embedding {self._name}", rule, "Embed it again, or leave it out with --where."))


def _open(part: SelectedDataset, name: str) -> npt.NDArray[Any]:
    path = column_path(part.prefix, name)
    if not path.is_file():
        rule = "is not there."
        raise BadInput(Fault(str(path), rule, "Embed the documents first: docs/quality.md, Diverse documents."))
    array = load_column(path)
    if array.ndim != 2 or len(array) != part.manifest.documents or array.dtype.kind != "f" or not array.shape[1]:
        raise IntegrityFault(
            f"{path}: is {array.dtype}{list(array.shape)}, not an embedding in floating point for each of the "
            f"{part.manifest.documents:,} documents of {part.prefix}. Write it again."
        )
    return array
