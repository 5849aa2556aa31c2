"""Choosing documents of datasets and selections by budget and score, with one threshold over all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.corpus.hashing import mixed
from megatron_cpt.corpus.parts import held_out_faults
from megatron_cpt.corpus.scores import read_score
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
from megatron_cpt.preparation.fields import condition_mask
from megatron_cpt.quality.diverse import Embeddings, take_diverse

Keep = Literal["lowest", "highest", "middle", "random", "gumbel"]
KEEPS: tuple[str, ...] = get_args(Keep)


def ranked(
    keep: Keep,
    scores: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.int64],
    ties: npt.NDArray[np.uint64],
    temperature: float = 1.0,
) -> npt.NDArray[np.int64]:
    """The numbers of the documents, int64[documents], those to be taken first in front.

    `lowest`, `highest`: by score. `middle`: outwards from the score below and above which half of the
    tokens lie, so that equal shares are left out at both ends (arXiv:2405.20541 keeps the middle by
    perplexity). `random`: by `ties`. `gumbel`: by score over temperature plus Gumbel noise, highest
    first, which draws without replacement in proportion to exp(score / temperature) (arXiv:2302.03169,
    section 2). `ties` also decides between equal scores.
    """
    if keep == "random":
        return np.argsort(ties, kind="stable")
    if keep == "gumbel":
        return np.lexsort((ties, -(scores / temperature + gumbel_noise(ties))))
    order = np.lexsort((ties, -scores if keep == "highest" else scores))
    if keep == "middle":
        of_order = lengths[order]
        twice_midpoint = 2 * np.cumsum(of_order) - of_order
        order = order[np.argsort(np.abs(twice_midpoint - of_order.sum()), kind="stable")]
    return order


def within_tokens(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], tokens: int) -> int:
    """How many of the first documents have at most so many tokens together."""
    return int(np.searchsorted(np.cumsum(lengths[order]), tokens, side="right"))


def meets_threshold(scores: npt.NDArray[Any], keep: Keep, limit: float) -> npt.NDArray[np.bool_]:
    """Which scores are at most (`lowest`) or at least (`highest`) the limit, which is rounded as they are.

    So a limit of 0.7 takes the documents whose score was 0.7 before it was kept in four bytes.
    """
    exact = scores.dtype.type(limit) if scores.dtype.kind == "f" else limit
    met: npt.NDArray[np.bool_] = scores <= exact if keep == "lowest" else scores >= exact
    return met


def gumbel_noise(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise from pseudo-random 64-bit numbers."""
    uniform = ((numbers >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log(uniform))


def pseudo_random(seed: int, content: str, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """64 pseudo-random bits a document: of the seed, the hexadecimal hash of its dataset, and its number.

    The mixing is splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195), whose numbers no
    library can change.
    """
    start = (int(content[:16], 16) ^ _splitmix(np.array([seed], np.uint64)).item()) % 2**64
    return _splitmix(np.uint64(start) + numbers.astype(np.uint64))


def _splitmix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return mixed((values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


_EXAMPLES = 5
"""Documents that stand for a selection: evenly spaced in its ranking, first and last among them."""
_SCORED = ("lowest", "highest", "middle", "gumbel")


@dataclass(frozen=True, kw_only=True)
class HowMany:
    """How much to take: one of these."""

    tokens: int | None = None
    """Tokens at most."""
    share: float | None = None
    """Share of all tokens, 0 to 1, at most."""
    documents: int | None = None
    """Documents, as many as that."""
    threshold: float | None = None
    """Limit of the score: at most this with `lowest`, at least this with `highest`."""

    def given(self) -> dict[str, float]:
        """The one that is given, by name."""
        values = {"tokens": self.tokens, "share": self.share, "documents": self.documents, "threshold": self.threshold}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Example:
    """A document that was taken."""

    dataset: SelectedDataset
    """Where it lies."""
    document: int
    """Its number there."""
    score: float | None
    """Its score, where the choice was made by one."""


@dataclass(frozen=True)
class Chosen:
    """A selection and what to tell about it."""

    selection: Selection
    """As written."""
    available_documents: int
    """Documents there were to choose from."""
    available_tokens: int
    """Their tokens."""
    examples: tuple[Example, ...]
    """EXAMPLES documents at most, in the order of the ranking."""


def select(
    paths: Sequence[str],
    output: str | Path,
    how_many: HowMany,
    *,
    keep: Keep,
    by: str | None = None,
    seed: int = 1234,
    temperature: float | None = None,
    overwrite: bool = False,
    where: str | None = None,
    diverse: float | None = None,
    embeddings: str | None = None,
) -> Chosen:
    """Writes OUTPUT.selection.json and .npy.

    `where` is a condition on scores and on `tokens`, the length of a document: what does not meet it is not there to
    choose from. `how_many` may be empty then, for all that is left. `by` names the score PREFIX.BY.npy, or several that
    are multiplied, as A*B; every `keep` but `random` needs one. `temperature` (1) divides the
    score under `gumbel` alone. `diverse` is the largest cosine similarity to a document taken before, by
    PREFIX.EMBEDDINGS.npy (`embeddings`).
    Raises BadInput where paths share documents or one is held out from another, nothing or more than there is would be
    taken, scores are missing, stale or not numbers, embeddings are missing, or another selection has the name and may
    not be replaced (`overwrite`).
    """
    refuse([*_faults(how_many, keep, by, temperature, where), *_diverse_faults(diverse, embeddings)])
    temperature = 1.0 if temperature is None else temperature
    named = expand_paths(paths)
    refuse(held_out_faults(named))
    parts = [part for path in named for part in _parts(path) if len(part.documents)]
    refuse_overlap(parts)
    filtered = None
    if where is not None:
        before = sum(len(part.documents) for part in parts)
        parts = _meeting(where, parts)
        filtered = before - sum(len(part.documents) for part in parts)
    lengths = np.concatenate([part.lengths for part in parts]) if parts else np.empty(0, np.int64)
    _refuse_too_much(how_many, lengths)
    ties = np.concatenate([pseudo_random(seed, part.manifest.data_sha256, part.documents) for part in parts])
    by_part = [_scores(part, by) for part in parts] if by else []
    scores = np.concatenate([one.astype(np.float64) for one in by_part]) if by else np.zeros(len(lengths))
    order = ranked(keep, scores, lengths, ties, temperature)
    if how_many.threshold is not None:
        met = np.concatenate([meets_threshold(one, keep, how_many.threshold) for one in by_part])
        order = order[met[order]]
    ranking = order
    if diverse is not None and embeddings is not None:
        order = take_diverse(order, Embeddings(parts, embeddings), diverse, partial(_is_spent, how_many, lengths))
    order = order[: _count(how_many, order, lengths)]
    if not len(order):
        raise BadInput(_nothing(how_many, scores))
    spaced = order[np.unique(np.linspace(0, len(order) - 1, _EXAMPLES).round().astype(np.int64))]
    examples = tuple(_example(parts, int(number), float(scores[number]) if by else None) for number in spaced)
    how: dict[str, Any] = {
        **how_many.given(),
        "keep": keep if how_many.given() else None,
        "by": by,
        "seed": seed,
        "from": [*paths],
    }
    if where is not None:
        how |= {"where": where, "filtered": filtered}
    if keep == "gumbel":
        how["temperature"] = temperature
    if diverse is not None:
        passed = int(np.flatnonzero(ranking == order[-1])[0]) + 1
        how |= {"diverse": diverse, "embeddings": embeddings, "too_similar": passed - len(order)}
    if by:
        how |= {"lowest_score": float(scores[order].min()), "highest_score": float(scores[order].max())}
    how["examples"] = [{"prefix": str(e.dataset.prefix), "document": e.document, "score": e.score} for e in examples]
    taken = np.zeros(len(lengths), np.bool_)
    taken[order] = True
    written = write_selection(output, _narrowed(parts, taken), how, overwrite)
    return Chosen(written, len(lengths), int(lengths.sum()), examples)


def _faults(how_many: HowMany, keep: Keep, by: str | None, temperature: float | None, where: str | None) -> list[Fault]:
    faults = []
    if len(how_many.given()) != 1 and (how_many.given() or where is None):
        names = ", ".join(f"--{name}" for name in how_many.given()) or "no budget"
        remedy = "Give one of --tokens, --share, --documents, --threshold, or --where."
        faults.append(Fault(names, "does not say how much to take.", remedy))
    if (keep in _SCORED) != (by is not None):
        rule = "goes with no score." if keep == "random" else "needs a score."
        faults.append(Fault(f"--keep {keep}", rule, "Give --by NAME with any --keep but random, and only then."))
    if how_many.threshold is not None and keep not in ("lowest", "highest"):
        remedy = "Use --keep lowest or highest, or another budget."
        faults.append(Fault(f"--keep {keep}", "has no threshold.", remedy))
    if how_many.threshold is not None and not math.isfinite(how_many.threshold):
        faults.append(Fault(f"--threshold {how_many.threshold}", "is not a finite number.", "Give a score."))
    if temperature is not None and keep != "gumbel":
        remedy = "Use --keep gumbel, or leave it out."
        faults.append(Fault(f"--temperature {temperature}", f"{keep} draws by no temperature.", remedy))
    if temperature is not None and not 0 < temperature < math.inf:
        rule = "must be above 0 and finite."
        faults.append(Fault(f"--temperature {temperature}", rule, "1 draws in proportion to exp(score)."))
    return faults


def _diverse_faults(diverse: float | None, embeddings: str | None) -> list[Fault]:
    if (diverse is None) != (embeddings is None):
        given = f"--diverse {diverse}" if embeddings is None else f"--embeddings {embeddings}"
        rule = "goes with the other: how similar documents may be, and by which embeddings."
        return [Fault(given, rule, "Give both, as in --diverse 0.9 --embeddings NAME.")]
    if diverse is not None and not 0 < diverse < 1:
        return [Fault(f"--diverse {diverse}", "must be above 0 and below 1, a cosine.", "Deita takes 0.9.")]
    return []


def _parts(path: Path) -> tuple[SelectedDataset, ...]:
    return load_selection(path).datasets if str(path).endswith(SUFFIX) else (whole_dataset(path),)


_LENGTH = "tokens"
"""The field of a condition that is the length of a document."""


def _meeting(where: str, parts: Sequence[SelectedDataset]) -> list[SelectedDataset]:
    """The parts with only the documents that meet a condition. BadInput: there are none, or it is no condition."""

    def mask(part: SelectedDataset) -> npt.NDArray[np.bool_]:
        met = condition_mask(where, lambda name: part.lengths if name == _LENGTH else _scores(part, name))
        if met.shape != part.lengths.shape:
            raise BadInput(Fault(f"--where {where}", "names no score.", "Name scores, or tokens for the length."))
        return met

    met = [mask(part) for part in parts]
    if not any(one.any() for one in met):
        documents = sum(map(len, met))
        rule = f"is met by none of {documents:,} documents."
        raise BadInput(Fault(f"--where {where}", rule, "`megatron-cpt inspect` shows a histogram of each score."))
    return _narrowed(parts, np.concatenate(met))


def _refuse_too_much(how_many: HowMany, lengths: npt.NDArray[np.int64]) -> None:
    tokens, documents = int(lengths.sum()), len(lengths)
    for name, value, most, what in (
        ("tokens", how_many.tokens, tokens, f"the {tokens:,} tokens there are"),
        ("documents", how_many.documents, documents, f"the {documents:,} documents there are"),
        ("share", how_many.share, 1, "all of it: 100%"),
    ):
        if value is not None and not 0 < value <= most:
            rule = f"must be above 0 and at most {what}."
            raise BadInput(Fault(f"--{name} {value:,}", rule, "Lower it, or add datasets."))
    if not documents:
        raise BadInput(Fault("the datasets", "hold no documents.", "Name others."))


def _scores(part: SelectedDataset, by: str) -> npt.NDArray[Any]:
    """A score of the documents of a part, or the product of several: A*B."""
    names = [name.strip() for name in by.split("*")]
    factors = [read_score(part.prefix, name, part.manifest)[part.documents] for name in names]
    if len(factors) == 1:
        scores: npt.NDArray[Any] = factors[0]
    else:
        for name, factor in zip(names, factors, strict=True):
            if negative := int((factor < 0).sum()):
                rule = f"is below 0 for {negative:,} documents of {part.prefix}: a product of two such is high."
                raise BadInput(Fault(f"score {name} in {by}", rule, "Multiply scores that are not below 0."))
        with np.errstate(over="ignore"):  # told below
            scores = np.prod(factors, axis=0, dtype=np.float64)
    infinite = int(np.isinf(scores).sum())
    if infinite:
        rule = f"is infinite for {infinite:,} documents of {part.prefix}."
        raise BadInput(Fault(f"score {by}", rule, "Give them a finite score, or choose by another."))
    return scores


def _is_spent(how_many: HowMany, lengths: npt.NDArray[np.int64], taken: npt.NDArray[np.int64]) -> bool:
    """Whether the documents taken so far are the whole budget, or more."""
    if how_many.documents is not None:
        return len(taken) >= how_many.documents
    return _count(how_many, taken, lengths) < len(taken)


def _count(how_many: HowMany, order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> int:
    if how_many.documents is not None:
        return how_many.documents
    if not how_many.given() or how_many.threshold is not None:
        return len(order)
    if how_many.share is not None:
        return within_tokens(order, lengths, int(how_many.share * int(lengths.sum())))
    assert how_many.tokens is not None, "one of the three is given"
    return within_tokens(order, lengths, how_many.tokens)


def _nothing(how_many: HowMany, scores: npt.NDArray[np.float64]) -> Fault:
    ((name, value),) = how_many.given().items()
    if name == "threshold":
        rule = f"takes no document: the scores go from {scores.min():.9g} to {scores.max():.9g}."
        return Fault(f"--threshold {value:.9g}", rule, "Move it.")
    return Fault(f"--{name} {value:,}", "is less than the first document has.", "Raise it.")


def _example(parts: Sequence[SelectedDataset], place: int, score: float | None) -> Example:
    """The document at a place among all documents of the parts laid end to end."""
    for part in parts:
        if place < len(part.documents):
            return Example(part, int(part.documents[place]), score)
        place -= len(part.documents)
    raise AssertionError("a place beyond the last part")


def _narrowed(parts: Sequence[SelectedDataset], taken: npt.NDArray[np.bool_]) -> list[SelectedDataset]:
    """The parts with only the documents that were taken; parts left with none are dropped."""
    ends = np.cumsum([len(part.documents) for part in parts])
    masks = np.split(taken, ends[:-1])
    return [
        replace(part, documents=part.documents[mask], starts=part.starts[mask], lengths=part.lengths[mask])
        for part, mask in zip(parts, masks, strict=True)
        if mask.any()
    ]
