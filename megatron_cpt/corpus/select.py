"""Choosing documents of datasets and selections by a token budget, with one threshold over all of them.

Every document gets a rank: its score, lowest or highest first, or a seeded hash of its place (which also
breaks ties). The longest run of ranks whose tokens fit the budget is taken, so a larger budget takes
what a smaller one did.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.columns import read_column
from megatron_cpt.corpus.selection import (
    SUFFIX,
    SelectedDataset,
    Selection,
    load_selection,
    refuse_overlap,
    whole_dataset,
    write_selection,
)
from megatron_cpt.corpus.stream import expand_paths

Keep = Literal["random", "lowest", "highest"]


@dataclass(frozen=True)
class Chosen:
    """A selection and what to tell about it."""

    selection: Selection
    """As written."""
    available_documents: int
    """Documents there were to choose from."""
    available_tokens: int
    """Their tokens."""


def select(
    paths: Sequence[str], output: str | Path, *, tokens: int, keep: Keep, by: str | None = None, seed: int = 1234
) -> Chosen:
    """Writes OUTPUT.selection.json and .npy with documents of at most `tokens` tokens.

    `by` names the column PREFIX.BY.npy of scores for `lowest` and `highest`. Raises BadInput where
    paths share documents, the budget takes no document or more than there are, or scores are missing
    or not numbers.
    """
    if (keep == "random") != (by is None):
        rule = "goes with no score." if keep == "random" else "needs a score."
        raise BadInput(Fault(f"--keep {keep}", rule, "Give --by NAME with --keep lowest or highest, and only then."))
    parts = [part for path in expand_paths(paths) for part in _parts(path) if len(part.documents)]
    refuse_overlap(parts)
    lengths = np.concatenate([part.lengths for part in parts]) if parts else np.empty(0, np.int64)
    _refuse_budget(tokens, int(lengths.sum()))
    ties = np.concatenate([_place_hashes(part, seed) for part in parts])
    scores = np.concatenate([_scores(part, by) for part in parts]) if by else np.zeros(len(lengths))
    taken = _best(-scores if keep == "highest" else scores, ties, lengths, tokens)
    if not taken.any():
        raise BadInput(Fault(f"--tokens {tokens:,}", "is less than the first document has.", "Raise it."))
    how: dict[str, Any] = {"tokens": tokens, "keep": keep, "by": by, "seed": seed, "from": [*paths]}
    if by:
        how |= {"lowest_score": float(scores[taken].min()), "highest_score": float(scores[taken].max())}
    selection = write_selection(output, _narrowed(parts, taken), how)
    return Chosen(selection, len(lengths), int(lengths.sum()))


def _parts(path: Path) -> tuple[SelectedDataset, ...]:
    return load_selection(path).datasets if str(path).endswith(SUFFIX) else (whole_dataset(path),)


def _refuse_budget(tokens: int, available: int) -> None:
    if not 0 < tokens <= available:
        raise BadInput(
            Fault(
                f"--tokens {tokens:,}",
                f"must be from 1 to the {available:,} tokens there are to choose from.",
                "Lower it, or add datasets.",
            )
        )


def _place_hashes(part: SelectedDataset, seed: int) -> npt.NDArray[np.uint64]:
    """A pseudo-random number for each document: of the seed, the dataset's content and the document's number.

    The mixing is splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195, with the constants of
    Vigna's splitmix64.c), whose numbers no library can change.
    """
    start = (int(part.manifest.data_sha256[:16], 16) ^ _mixed(np.array([seed], np.uint64)).item()) % 2**64
    return _mixed(np.uint64(start) + part.documents.astype(np.uint64))


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _scores(part: SelectedDataset, by: str) -> npt.NDArray[np.float64]:
    column = read_column(part.prefix, by, part.manifest.documents)
    if column.dtype.kind not in "fiu":
        raise BadInput(Fault(f"--by {by}", f"has no numbers ({part.prefix}: {column.dtype}).", "Name a score."))
    scores = column[part.documents].astype(np.float64)
    missing = int(np.isnan(scores).sum())
    if missing:
        raise BadInput(
            Fault(f"--by {by}", f"is not a number for {missing:,} documents of {part.prefix}.", "Score it again.")
        )
    return scores


def _best(
    scores: npt.NDArray[np.float64], ties: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64], tokens: int
) -> npt.NDArray[np.bool_]:
    """Which documents are taken: bool[documents]."""
    order = np.lexsort((ties, scores))
    count = int(np.searchsorted(np.cumsum(lengths[order]), tokens, side="right"))
    taken = np.zeros(len(lengths), np.bool_)
    taken[order[:count]] = True
    return taken


def _narrowed(parts: Sequence[SelectedDataset], taken: npt.NDArray[np.bool_]) -> list[SelectedDataset]:
    """The parts with only the documents that were taken; parts left with none are dropped."""
    ends = np.cumsum([len(part.documents) for part in parts])
    masks = np.split(taken, ends[:-1])
    return [
        replace(part, documents=part.documents[mask], starts=part.starts[mask], lengths=part.lengths[mask])
        for part, mask in zip(parts, masks, strict=True)
        if mask.any()
    ]
