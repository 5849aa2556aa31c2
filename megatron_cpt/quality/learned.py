"""Scores learned from n-grams of token ids: importance weights and a linear classifier.

`importance`: log importance weights (DSIR, arXiv:2302.03169, section 3.2). `classifier`: the probability that a
document is of the good kind, by a linear classifier (after arXiv:2406.11794).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack

from megatron_cpt.corpus.hashing import mixed
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.corpus.stream import DocumentChunk, dataset_chunks
from megatron_cpt.quality.engines import Engine, OneMachine
from megatron_cpt.quality.score import Method, Reference, Scorer, in_order, tokenized

_LONGEST_NGRAM = 2
"""Tokens of an n-gram: uni- and bigrams, as in the paper."""


def importance_method(
    pool: Sequence[SelectedDataset], references: Sequence[Reference], buckets: int, text_key: str
) -> Method:
    """The weights by which the documents of `pool`, all of them, are drawn so as to look like the references."""
    how = {
        "by": "importance",
        "ngram": _LONGEST_NGRAM,
        "buckets": buckets,
        "reference": [reference.described() for reference in references],
        "pool": sorted(part.manifest.data_sha256 for part in pool),
        "tokenizer": pool[0].manifest.tokenizer,
    }

    def learn(folder: Path, engine: Engine) -> Scorer:
        target = tokenized(references, pool[0].manifest, text_key, folder, engine.workers)
        count = partial(_bucket_counts, buckets)
        of_target = OneMachine(engine.threads).each(count, target)
        return partial(_importance, _log_shares(of_target, buckets) - _log_shares(engine.each(count, pool), buckets))

    return Method(how, learn)


def _importance(weights: npt.NDArray[np.float64], chunk: DocumentChunk) -> npt.NDArray[np.float32]:
    features, documents = hashed_ngrams(chunk, _LONGEST_NGRAM, len(weights))
    return np.bincount(documents, weights[features], minlength=len(chunk.lengths)).astype(np.float32)


def _bucket_counts(buckets: int, part: SelectedDataset, here: OneMachine) -> npt.NDArray[np.int64]:
    """How many n-grams of a dataset are in each bucket: int64[buckets]."""
    counts = np.zeros(buckets, np.int64)

    def counted(chunk: DocumentChunk) -> npt.NDArray[np.int64]:
        return np.bincount(hashed_ngrams(chunk, _LONGEST_NGRAM, buckets)[0], minlength=buckets)

    for of_chunk in in_order(counted, dataset_chunks(part), here.threads):
        counts += of_chunk
    return counts


def _log_shares(parts: Sequence[npt.NDArray[np.int64]], buckets: int) -> npt.NDArray[np.float64]:
    """Natural log of the share of each bucket among the n-grams of all parts, each counted once more: float64[buckets].

    `parts`: the counts of each, int64[buckets].
    """
    counts = sum(parts, np.ones(buckets, np.int64))
    return np.log(counts / counts.sum())


_LONGEST_FEATURE = 2
"""Tokens of an n-gram: uni- and bigrams, as arXiv:2406.11794 has them."""
BUCKETS = 1 << 20
"""Features: 16 MB of weights."""
_EPOCHS = 5
"""Passes over the larger side, as fastText's default."""


@dataclass(frozen=True)
class Sides:
    """What the classifier tells apart."""

    positive: Sequence[Reference]
    negative: Sequence[Reference]


def classifier_method(manifest: Manifest, sides: Sides, seed: int, text_key: str) -> Method:
    """The probability of the positive side, for datasets tokenized as that of `manifest`."""
    how = {
        "by": "classifier",
        "ngram": _LONGEST_FEATURE,
        "buckets": BUCKETS,
        "epochs": _EPOCHS,
        "seed": seed,
        "positive": [reference.described() for reference in sides.positive],
        "negative": [reference.described() for reference in sides.negative],
        "tokenizer": manifest.tokenizer,
    }

    def learn(folder: Path, engine: Engine) -> Scorer:
        positive, negative = (
            tokenized(side, manifest, text_key, folder, engine.workers) for side in (sides.positive, sides.negative)
        )
        # An optional library.
        from sklearn.linear_model import SGDClassifier  # noqa: PLC0415

        model = SGDClassifier(loss="log_loss", alpha=1e-6, average=True, random_state=seed)
        for epoch in range(_EPOCHS):
            for documents, labels in _pairs(positive, negative):
                order = np.random.default_rng((seed, epoch, len(labels))).permutation(len(labels))
                model.partial_fit(documents[order], labels[order], classes=[0, 1])
        return partial(_probabilities, model)

    return Method(how, learn)


def _probabilities(model: Any, chunk: DocumentChunk) -> npt.NDArray[np.float32]:
    """By a classifier of scikit-learn."""
    probabilities: npt.NDArray[np.float32] = model.predict_proba(_bags(chunk))[:, 1].astype(np.float32)
    return probabilities


def _bags(chunk: DocumentChunk) -> csr_matrix:
    """The counts of hashed n-grams of each document, of length 1: float64[documents, BUCKETS]."""
    features, documents = hashed_ngrams(chunk, _LONGEST_FEATURE, BUCKETS)
    shape = (len(chunk.lengths), BUCKETS)
    counts = csr_matrix((np.ones(len(features)), (documents, features)), shape)
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)))
    return csr_matrix(counts.multiply(1 / np.maximum(lengths, 1)))


def _pairs(
    positive: Sequence[SelectedDataset], negative: Sequence[SelectedDataset]
) -> Iterator[tuple[csr_matrix, npt.NDArray[np.int64]]]:
    """A chunk of each side at a time, the side that has fewer chunks again and again."""
    counts = [sum(1 for _ in _chunks(side)) for side in (positive, negative)]
    longer = int(counts[1] > counts[0])
    sides = [_chunks(positive), _chunks(negative)]
    sides[1 - longer] = cycle(_chunks((positive, negative)[1 - longer]))
    for first, second in zip(*sides, strict=False):
        documents = vstack([_bags(first), _bags(second)], format="csr")
        yield documents, np.repeat([1, 0], [len(first.lengths), len(second.lengths)])


def _chunks(parts: Sequence[SelectedDataset]) -> Iterator[DocumentChunk]:
    return chain.from_iterable(map(dataset_chunks, parts))


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
