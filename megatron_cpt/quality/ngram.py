"""An n-gram language model over token ids, and perplexity of documents under it (arXiv:2406.14833, section 3).

Interpolated modified Kneser-Ney (Chen and Goodman 1999, section 3). Text like the reference has a low perplexity.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.stream import DocumentChunk, dataset_chunks
from megatron_cpt.quality.engines import Engine
from megatron_cpt.quality.score import Method, Reference, Scorer, tokenized


def ngram_method(manifest: Manifest, references: Sequence[Reference], order: int, text_key: str) -> Method:
    """The perplexity of each document of datasets tokenized as that of `manifest`. BadInput: an order below 1."""
    if not 1 <= order <= 8:
        raise BadInput(Fault(f"--order {order}", "must be from 1 to 8.", "The paper has 3; 5 is usual for sub-words."))
    how = {
        "by": "ngram",
        "order": order,
        "reference": [reference.described() for reference in references],
        "tokenizer": manifest.tokenizer,
    }

    def learn(folder: Path, engine: Engine) -> Scorer:
        parts = tokenized(references, manifest, text_key, folder, engine.workers)
        if not sum(part.tokens for part in parts):
            raise BadInput(Fault("--reference", "holds no text.", "Name text like the one you look for."))
        vocabulary = manifest.vocabulary_size
        if vocabulary is None:
            vocabulary = 1 + max(int(chunk.tokens.max(initial=0)) for part in parts for chunk in dataset_chunks(part))
        return train(lambda: chain.from_iterable(map(dataset_chunks, parts)), order, vocabulary).perplexities

    return Method(how, learn)


_NOT_SEEN = -1
"""Node of an n-gram that the reference does not have."""
FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where a level has too few n-grams to estimate them; those of lmplz."""
_MERGE_AT = 1 << 22
"""Counted keys that wait before they are merged, at least."""


@dataclass(frozen=True)
class Level:
    """The n-grams of one length."""

    keys: npt.NDArray[np.int64]
    """Sorted keys, one an n-gram: int64[n]."""
    alpha: npt.NDArray[np.float32]
    """Discounted probability of the last token after the others: [n]."""


@dataclass(frozen=True)
class NgramModel:
    """A trained model. `train` makes one."""

    vocabulary: int
    """Tokens that can come, 0 to vocabulary - 1; begin of document and unknown ids are numbered after them."""
    unigrams: npt.NDArray[np.float64]
    """Probability of each token without context: [vocabulary + 2]."""
    levels: tuple[Level, ...]
    """N-grams of length 2 and up."""
    gammas: tuple[npt.NDArray[np.float32], ...]
    """Weight of the shorter context: of contexts of length 1 [vocabulary + 2], then of each level's but the last."""

    def log_probabilities(self, chunk: DocumentChunk) -> npt.NDArray[np.float64]:
        """Natural log of the probability of each token after those before it in its document: float64[tokens]."""
        text = _with_begins(chunk, self.vocabulary)
        probability = self.unigrams[text.ids]
        node = text.ids
        for length, (level, gamma) in enumerate(zip(self.levels, self.gammas, strict=True), start=2):
            ends, contexts, keys = _grown(node, text, length, self.vocabulary)
            found = _find(level.keys, keys)
            seen = found != _NOT_SEEN
            probability[ends] *= gamma[contexts]
            probability[ends[seen]] += level.alpha[found[seen]]
            node = np.full(len(text.ids), _NOT_SEEN)
            node[ends] = found
        return np.log(probability[text.places > 0])

    def perplexities(self, chunk: DocumentChunk) -> npt.NDArray[np.float32]:
        """Perplexity a token of each document, float32[documents]; the size of the vocabulary for an empty one."""
        documents = np.repeat(np.arange(len(chunk.lengths)), chunk.lengths)
        nats = -np.bincount(documents, self.log_probabilities(chunk), minlength=len(chunk.lengths))
        mean = np.where(chunk.lengths > 0, nats / np.maximum(chunk.lengths, 1), np.log(self.vocabulary))
        return np.exp(mean).astype(np.float32)


def train(chunks: Callable[[], Iterable[DocumentChunk]], order: int, vocabulary: int) -> NgramModel:
    """The model of n-grams up to `order` of all chunks; `chunks` is called once for each length."""
    alphabet = vocabulary + 2
    counts = [np.zeros(alphabet, np.int64)]
    for chunk in chunks():
        counts[0] += np.bincount(_with_begins(chunk, vocabulary).ids, minlength=alphabet)
    counts[0][vocabulary] = 0
    keys: list[npt.NDArray[np.int64]] = []
    for length in range(2, order + 1):
        level_keys, level_counts = _merged(_keys_of(chunks(), keys, length, vocabulary))
        keys.append(level_keys)
        counts.append(level_counts)
    adjusted = _left_neighbours(keys, counts, vocabulary)
    total = int(adjusted[0].sum())
    discounted, left_over = _discounted(adjusted[0])
    unigrams = discounted / total + left_over.sum() / total / vocabulary
    levels, gammas = [], []
    contexts = alphabet
    for level_keys, level_counts in zip(keys, adjusted[1:], strict=True):
        discounted, left_over = _discounted(level_counts)
        context = level_keys // alphabet
        totals = np.bincount(context, level_counts, minlength=contexts)
        rest = np.bincount(context, left_over, minlength=contexts)
        levels.append(Level(level_keys, (discounted / totals[context]).astype(np.float32)))
        gammas.append(np.where(totals > 0, rest / np.maximum(totals, 1), 1).astype(np.float32))
        contexts = len(level_keys)
    return NgramModel(vocabulary, unigrams, tuple(levels), tuple(gammas))


@dataclass(frozen=True)
class _Text:
    """A chunk with the begin of each document put before it."""

    ids: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    """Place of each id in its document; the begin's is 0."""


def _with_begins(chunk: DocumentChunk, vocabulary: int) -> _Text:
    lengths = chunk.lengths + 1
    begins = np.cumsum(lengths) - lengths
    ids = np.full(len(chunk.tokens) + len(lengths), vocabulary)
    is_token = np.ones(len(ids), np.bool_)
    is_token[begins] = False
    ids[is_token] = np.where(chunk.tokens < vocabulary, chunk.tokens, vocabulary + 1)
    return _Text(ids, np.arange(len(ids)) - np.repeat(begins, lengths))


def _keys_of(
    chunks: Iterable[DocumentChunk], keys: list[npt.NDArray[np.int64]], length: int, vocabulary: int
) -> Iterator[npt.NDArray[np.int64]]:
    """The key of every n-gram of one length, given the keys of all shorter lengths from 2 on."""
    for chunk in chunks:
        text = _with_begins(chunk, vocabulary)
        node = text.ids
        for shorter_length, shorter in enumerate(keys, start=2):
            ends, _, grown = _grown(node, text, shorter_length, vocabulary)
            node = np.full(len(text.ids), _NOT_SEEN)
            node[ends] = _find(shorter, grown)
        yield _grown(node, text, length, vocabulary)[2]


def _grown(
    node: npt.NDArray[np.int64], text: _Text, length: int, vocabulary: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where n-grams of a length end whose context has a node, that node, and the n-grams' keys.

    node: of the n-gram one shorter that ends at each place, or NOT_SEEN.
    """
    ends = np.flatnonzero(text.places >= length - 1)
    contexts = node[ends - 1]
    ends, contexts = ends[contexts != _NOT_SEEN], contexts[contexts != _NOT_SEEN]
    return ends, contexts, contexts * (vocabulary + 2) + text.ids[ends]


def _merged(
    pieces: Iterable[npt.NDArray[np.int64]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct keys, sorted, and how often each comes."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    waiting: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    size = 0
    for piece in pieces:
        waiting.append(np.unique(piece, return_counts=True))
        size += len(waiting[-1][0])
        # Merging when as much waits as is merged already keeps the work in proportion to the text.
        if size > max(_MERGE_AT, len(keys)):
            keys, counts = _merge([(keys, counts), *waiting])
            waiting, size = [], 0
    return _merge([(keys, counts), *waiting])


def _merge(
    runs: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    every, counts = (np.concatenate(column) for column in zip(*runs, strict=True))
    order = np.argsort(every, kind="stable")
    every, counts = every[order], counts[order]
    firsts = np.flatnonzero(np.diff(every, prepend=_NOT_SEEN))
    return every[firsts], np.add.reduceat(counts, firsts) if len(firsts) else counts


def _left_neighbours(
    keys: list[npt.NDArray[np.int64]], counts: list[npt.NDArray[np.int64]], vocabulary: int
) -> list[npt.NDArray[np.int64]]:
    """The counts of each level, below the highest as numbers of different tokens that come before."""
    alphabet = vocabulary + 2
    adjusted: list[npt.NDArray[np.int64]] = []
    begins = np.arange(alphabet) == vocabulary
    # Node, one level down, of an n-gram without its first token; a single token leaves nothing.
    rest = np.zeros(alphabet, np.int64)
    for number, level in enumerate(keys):
        prefix, last = np.divmod(level, alphabet)
        rest = last if number == 0 else _find(keys[number - 1], rest[prefix] * alphabet + last)
        neighbours = np.bincount(rest, minlength=len(counts[number]))
        adjusted.append(np.where(begins, counts[number], neighbours))
        begins = begins[prefix]
    return [*adjusted, counts[-1]]


def _discounted(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Counts less their discount, and the discount of each."""
    of_count = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    return counts - of_count, of_count


def _discounts(counts: npt.NDArray[np.int64]) -> tuple[float, float, float]:
    """D1, D2, D3+ of a level (Chen and Goodman 1999, equation 26)."""
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if not n1 or not n2 or not n3:
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 <= value <= most for most, value in enumerate(found, start=1)) else FALLBACK


def _find(sorted_keys: npt.NDArray[np.int64], keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if not len(sorted_keys):
        return np.full(len(keys), _NOT_SEEN)
    places = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[places] == keys, places, _NOT_SEEN)
