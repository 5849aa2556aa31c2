"""Log importance weights of documents (DSIR, arXiv:2302.03169, section 3.2).

The score of a document is log p(n-grams) - log q(n-grams): p is a bag of hashed uni- and bigrams of the
reference, q one of the text to choose from, both with one count added to every bucket. n-grams are of
token ids, not of words. It is a sum over the n-grams of the document, as in the paper, which compares
pieces of like length: of whole documents the long ones lie at both ends.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_cpt.corpus.chunks import DocumentChunk, dataset_chunks
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.quality.hashed import hashed_ngrams
from megatron_cpt.quality.reference import Reference, tokenized
from megatron_cpt.quality.score import Method, Scorer, in_order

LONGEST = 2
"""Tokens of an n-gram: uni- and bigrams, as in the paper."""


def importance_method(
    pool: Sequence[SelectedDataset], references: Sequence[Reference], buckets: int, text_key: str, workers: int
) -> Method:
    """The weights by which the documents of `pool`, all of them, are drawn so as to look like the references."""
    how = {
        "by": "importance",
        "ngram": LONGEST,
        "buckets": buckets,
        "reference": [reference.described() for reference in references],
        "pool": sorted(part.manifest.data_sha256 for part in pool),
        "tokenizer": pool[0].manifest.tokenizer,
    }

    def learn(folder: Path) -> Scorer:
        target = _log_shares(tokenized(references, pool[0].manifest, text_key, folder), buckets, workers)
        weights = target - _log_shares(pool, buckets, workers)

        def scorer(chunk: DocumentChunk) -> npt.NDArray[np.float32]:
            features, documents = hashed_ngrams(chunk, LONGEST, buckets)
            return np.bincount(documents, weights[features], minlength=len(chunk.lengths)).astype(np.float32)

        return scorer

    return Method(how, learn)


def _log_shares(parts: Iterable[SelectedDataset], buckets: int, workers: int) -> npt.NDArray[np.float64]:
    """Natural log of the share of each bucket among the n-grams of the parts: float64[buckets]."""
    counts = np.ones(buckets, np.int64)

    def counted(chunk: DocumentChunk) -> npt.NDArray[np.int64]:
        return np.bincount(hashed_ngrams(chunk, LONGEST, buckets)[0], minlength=buckets)

    for part in parts:
        for of_chunk in in_order(counted, dataset_chunks(part), workers):
            counts += of_chunk
    return np.log(counts / counts.sum())
