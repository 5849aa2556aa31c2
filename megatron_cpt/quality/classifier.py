"""Probability that a document is of the good kind, by a linear classifier over n-grams (after arXiv:2406.11794).

As in fastText's classifier, a document is a bag of hashed uni- and bigrams and the model is linear with a
logistic loss; n-grams are of token ids, not of words, and there is no hidden layer, which for two classes
adds nothing that a linear model cannot say. Positives and negatives are seen equally often, whatever their
number, so 0.5 means as like the ones as the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import SGDClassifier

from megatron_cpt.corpus.chunks import DocumentChunk, dataset_chunks
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.quality.hashed import hashed_ngrams
from megatron_cpt.quality.reference import Reference, tokenized
from megatron_cpt.quality.score import Method, Scorer

LONGEST = 2
"""Tokens of an n-gram: uni- and bigrams, as arXiv:2406.11794 has them."""
BUCKETS = 1 << 20
"""Features: 16 MB of weights."""
EPOCHS = 5
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
        "ngram": LONGEST,
        "buckets": BUCKETS,
        "epochs": EPOCHS,
        "seed": seed,
        "positive": [reference.described() for reference in sides.positive],
        "negative": [reference.described() for reference in sides.negative],
        "tokenizer": manifest.tokenizer,
    }

    def learn(folder: Path) -> Scorer:
        positive, negative = (tokenized(side, manifest, text_key, folder) for side in (sides.positive, sides.negative))
        model = SGDClassifier(loss="log_loss", alpha=1e-6, average=True, random_state=seed)
        for epoch in range(EPOCHS):
            for documents, labels in _pairs(positive, negative):
                order = np.random.default_rng((seed, epoch, len(labels))).permutation(len(labels))
                model.partial_fit(documents[order], labels[order], classes=[0, 1])

        def scorer(chunk: DocumentChunk) -> npt.NDArray[np.float32]:
            return model.predict_proba(bags(chunk))[:, 1].astype(np.float32)

        return scorer

    return Method(how, learn)


def bags(chunk: DocumentChunk) -> csr_matrix:
    """The counts of hashed n-grams of each document, of length 1: float64[documents, BUCKETS]."""
    features, documents = hashed_ngrams(chunk, LONGEST, BUCKETS)
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
        documents = vstack([bags(first), bags(second)], format="csr")
        yield documents, np.repeat([1, 0], [len(first.lengths), len(second.lengths)])


def _chunks(parts: Sequence[SelectedDataset]) -> Iterator[DocumentChunk]:
    return chain.from_iterable(map(dataset_chunks, parts))
