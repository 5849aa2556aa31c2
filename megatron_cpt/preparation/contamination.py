"""Overlap of training text with evaluation items: which documents share 13-grams of words with them.

As in GPT-3 (arXiv:2005.14165, appendix C) a document overlaps an item where a run of 13 words, case and punctuation
apart, is in both. An item of fewer words has no such run: it is counted as too short to be found.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault
from megatron_cpt.corpus.manifest import Manifest, open_dataset
from megatron_cpt.corpus.stream import tokenizer_of
from megatron_cpt.preparation.hashed_words import HashedWords, hashed_words
from megatron_cpt.runs.folder import read_json_object

NGRAM_WORDS = 13
OVERLAP = np.dtype([("position", "<u4"), ("item", "<u4"), ("ngrams", "<u4")])
"""A document (its position) that shares so many n-grams with an item (its number among those of all sets)."""
_ITEMS_AT_A_TIME = 1024


@dataclass(frozen=True)
class EvaluationItem:
    """What must not be in the training text."""

    id: str
    """Its id within its set."""
    texts: tuple[str, ...]
    """Its text as a model would see it, of a question once with each choice."""


@dataclass(frozen=True)
class EvaluationSet:
    """A task, or a validation set."""

    name: str
    """Of the task, or the prefix of the dataset."""
    source: str
    """Absolute path it was read from."""
    sha256: str
    """Of that file; of a dataset, of its .bin."""
    items: tuple[EvaluationItem, ...]


@dataclass(frozen=True, kw_only=True)
class SetOverlap:
    """What prepare found of one evaluation set; documents are those of the training part, copies apart."""

    name: str
    """As in EvaluationSet."""
    source: str
    """As in EvaluationSet."""
    sha256: str
    """As in EvaluationSet."""
    items: int
    """Items of the set."""
    too_short: int
    """Items of fewer than 13 words, which cannot be found."""
    items_left_out: int
    """Items that documents overlapped which were left out."""
    items_kept: int
    """Items that documents overlap which stayed."""
    documents_left_out: int
    """Documents left out because they overlap the set."""
    documents_kept: int
    """Documents that overlap it and stayed."""


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """The content of PREFIX.contamination.json."""

    ngram_words: int
    """Words of an n-gram."""
    data_sha256: str
    """Of the dataset it is about."""
    sets: list[SetOverlap]


def contamination_path(prefix: str | Path) -> Path:
    """Where it stands what of evaluation sets a dataset holds."""
    return Path(f"{prefix}.contamination.json")


def read_contamination(prefix: str | Path, manifest: Manifest) -> Contamination | None:
    """What of evaluation sets a dataset holds; None where it was never compared, or the file is of other content.

    Raises IntegrityFault where the file is not such a record.
    """
    path = contamination_path(prefix)
    content = read_json_object(path)
    if content is None:
        return None
    try:
        known = {field.name for field in fields(SetOverlap)}
        sets = [SetOverlap(**{name: one[name] for name in known}) for one in content["sets"]]
        found = Contamination(ngram_words=content["ngram_words"], data_sha256=content["data_sha256"], sets=sets)
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityFault(f"{path}: is no record of overlap ({error}). Prepare the dataset again.") from error
    return found if found.data_sha256 in manifest.hashes else None


def identity_of(sets: Sequence[EvaluationSet]) -> str:
    """Hash of what is looked for."""
    return sha256(orjson.dumps([asdict(one) for one in sets])).hexdigest()


def dataset_items(prefix: str) -> EvaluationSet:
    """The documents of a dataset as items. Raises BadInput where its tokenizer is no longer where it was."""
    dataset, manifest = open_dataset(prefix)
    tokenizer = tokenizer_of(manifest)
    if tokenizer is None:
        rule = f"cannot be read as text: its tokenizer ({manifest.tokenizer_folder or 'unknown'}) is not there."
        raise BadInput(Fault(f"--decontaminate {prefix}", rule, "Put the tokenizer's folder back."))
    ends = {manifest.eod, manifest.bos}
    items = tuple(
        EvaluationItem(
            str(number), (tokenizer.decode([i for i in dataset.document(number).tolist() if i not in ends]),)
        )
        for number in range(dataset.documents)
    )
    return EvaluationSet(Path(prefix).name, str(Path(prefix).resolve()), manifest.data_sha256, items)


@dataclass(frozen=True)
class EvaluationNgrams:
    """The n-grams of all items: what workers look documents up in. 12 bytes an n-gram."""

    hashes: npt.NDArray[np.uint64]
    """Sorted; one that several items have is there once for each: uint64[n-grams]."""
    items: npt.NDArray[np.uint32]
    """Whose each is: uint32[n-grams]."""
    too_short: tuple[int, ...]
    """Of each set, the items of fewer words than an n-gram has."""

    def overlaps(self, words: HashedWords) -> npt.NDArray[np.void]:
        """What texts share with items: OVERLAP[any], `position` being the text's number, by text and item."""
        if len(self.hashes) == 0:
            return np.empty(0, OVERLAP)
        ngrams = words.ngrams(NGRAM_WORDS)
        places = np.searchsorted(self.hashes, ngrams.hashes)
        hit = np.flatnonzero(self.hashes[np.minimum(places, len(self.hashes) - 1)] == ngrams.hashes)
        if len(hit) == 0:
            return np.empty(0, OVERLAP)
        texts = np.searchsorted(np.cumsum(ngrams.counts), hit, side="right")
        # An n-gram that stands twice in a text is one.
        hashes, texts, _ = _distinct(ngrams.hashes[hit], texts)
        first = np.searchsorted(self.hashes, hashes)
        counts = np.searchsorted(self.hashes, hashes, side="right") - first
        entries = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
        items, texts, shared = _distinct(self.items[entries], np.repeat(texts, counts))
        found = np.empty(len(shared), OVERLAP)
        found["position"], found["item"], found["ngrams"] = texts, items, shared
        return found


def evaluation_ngrams(sets: Sequence[EvaluationSet]) -> EvaluationNgrams:
    """The n-grams of all items of all sets, items being numbered through."""
    parts = [(np.empty(0, np.uint64), np.empty(0, np.uint32))]
    first, too_short = 0, []
    for one in sets:
        short = 0
        for lot in _lots(one.items):
            hashes, owners = _ngrams_of(lot)
            parts.append((hashes, (owners + first).astype(np.uint32)))
            short += len(lot) - len(np.unique(owners))
            first += len(lot)
        too_short.append(short)
    hashes = np.concatenate([part for part, _ in parts])
    items = np.concatenate([part for _, part in parts])
    order = np.lexsort((items, hashes))
    return EvaluationNgrams(hashes[order], items[order], tuple(too_short))


def _lots(items: Sequence[EvaluationItem]) -> Iterable[Sequence[EvaluationItem]]:
    return (items[start : start + _ITEMS_AT_A_TIME] for start in range(0, len(items), _ITEMS_AT_A_TIME))


def _ngrams_of(items: Sequence[EvaluationItem]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Each n-gram of each item once: its hash, and the item's number from 0."""
    texts = [text for item in items for text in item.texts]
    owner_of_text = np.repeat(np.arange(len(items)), [len(item.texts) for item in items])
    ngrams = hashed_words(texts).ngrams(NGRAM_WORDS)
    hashes, owners, _ = _distinct(ngrams.hashes, np.repeat(owner_of_text, ngrams.counts))
    return hashes, owners


def _distinct(
    values: npt.NDArray[Any], owners: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The different values of each owner, sorted by owner and value, and how often each was there."""
    order = np.lexsort((values, owners))
    values, owners = values[order], owners[order]
    changes = (np.diff(values) != 0) | (np.diff(owners) != 0) if len(values) else np.empty(0, np.bool_)
    firsts = np.flatnonzero(np.concatenate([np.ones(min(1, len(values)), np.bool_), changes]))
    return values[firsts], owners[firsts], np.diff(firsts, append=len(values))


def item_names(sets: Sequence[EvaluationSet], ngrams: EvaluationNgrams) -> list[dict[str, Any]]:
    """What is kept of the sets beside the pieces, for the pass that joins them."""
    return [
        {
            "name": one.name,
            "source": one.source,
            "sha256": one.sha256,
            "too_short": too_short,
            "items": [item.id for item in one.items],
        }
        for one, too_short in zip(sets, ngrams.too_short, strict=True)
    ]
