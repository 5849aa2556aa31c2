"""The n-gram model against a direct evaluation of its definition."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.corpus.stream import DocumentChunk
from megatron_cpt.quality.ngram import NgramModel, train

VOCABULARY = 6
Texts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), min_size=1, max_size=12)


def chunk(texts: Sequence[Sequence[int]]) -> DocumentChunk:
    return DocumentChunk(np.array([t for text in texts for t in text], np.int64), np.array([len(t) for t in texts]))


def probability(model: NgramModel, context: Sequence[int], token: int) -> float:
    return float(np.exp(model.log_probabilities(chunk([[*context, token]]))[-1]))


@given(Texts, st.integers(1, 4), st.lists(st.integers(0, VOCABULARY - 1), max_size=5))
def test_the_tokens_that_may_come_next_share_one_probability(
    texts: list[list[int]], order: int, context: list[int]
) -> None:
    model = train(lambda: [chunk(texts)], order, VOCABULARY)
    shares = [probability(model, context, token) for token in range(VOCABULARY)]
    assert sum(shares) == pytest.approx(1, abs=1e-6)
    assert min(shares) > 0


@given(Texts, st.integers(1, 4), st.integers(1, 11))
def test_how_the_text_is_cut_into_chunks_changes_nothing(texts: list[list[int]], order: int, cut: int) -> None:
    whole = train(lambda: [chunk(texts)], order, VOCABULARY)
    parts = train(lambda: [chunk(part) for part in (texts[:cut], texts[cut:]) if part], order, VOCABULARY)
    asked = chunk([[0, 1, 2, 3], [5], [2, 2, 2]])
    assert parts.log_probabilities(asked).tolist() == whole.log_probabilities(asked).tolist()
    alone = np.concatenate([whole.perplexities(chunk([text])) for text in texts])
    assert whole.perplexities(chunk(texts)) == pytest.approx(alone)


def test_bigrams_in_literal_numbers() -> None:
    """Two texts, `0 1` and `0 2 1`: too few n-grams for estimated discounts, so those of FALLBACK hold.

    Bigram types: begin-0, 0-1, 0-2, 2-1. Left neighbours: of 0 one, of 1 two, of 2 one; four in all.
    p(1) = (2 - 1.0) / 4 + (0.5 + 1.0 + 0.5) / 4 / 6 = 1/3. After 0 (seen twice: 1 and 2 once each)
    p(1 | 0) = (1 - 0.5) / 2 + (0.5 + 0.5) / 2 * p(1).
    """
    model = train(lambda: [chunk([[0, 1], [0, 2, 1]])], 2, VOCABULARY)
    assert probability(model, [0], 1) == pytest.approx(0.25 + 0.5 / 3)
    # begin-0 came twice, which is discounted by 1.
    p0 = 0.5 / 4 + 2 / 4 / 6
    assert probability(model, [], 0) == pytest.approx(1 / 2 + 1 / 2 * p0)
    # After 1 nothing was ever seen, and 9 is no token of the vocabulary.
    assert probability(model, [0, 1], 2) == pytest.approx(0.5 / 4 + 2 / 4 / 6)
    assert probability(model, [], 9) == pytest.approx(1 / 2 * (2 / 4 / 6))


def test_trigrams_as_their_definition_has_them() -> None:
    """Modified Kneser-Ney written down with dictionaries, over enough text that its discounts are estimated."""
    draw = np.random.default_rng(3)
    texts = [[int(t) for t in draw.zipf(1.6, draw.integers(3, 15)) if t <= 12] or [1] for _ in range(600)]
    model = train(lambda: [chunk(texts)], 3, 13)
    definition = Definition(texts, 3, 13)
    asked = [[1, 2, 3, 1], [12, 12, 11, 10], [1, 1, 1, 1, 1], [0]]
    found = np.split(model.log_probabilities(chunk(asked)), np.cumsum([len(text) for text in asked])[:-1])
    for text, values in zip(asked, found, strict=True):
        expected = [definition.probability(["B", *text[:n]][-2:], text[n]) for n in range(len(text))]
        assert np.exp(values) == pytest.approx(expected, rel=1e-6)


class Definition:
    """Chen and Goodman 1999, equations 24 to 26, an n-gram at a time."""

    def __init__(self, texts: Sequence[Sequence[int]], order: int, vocabulary: int) -> None:
        counts = [Counter() for _ in range(order + 1)]  # type: ignore[var-annotated]
        for text in texts:
            marked = ["B", *text]
            for n in range(1, order + 1):
                counts[n].update(tuple(marked[i : i + n]) for i in range(len(marked) - n + 1))
        self.vocabulary = vocabulary
        self.adjusted = counts
        for n in range(1, order):
            left = Counter(gram[1:] for gram in counts[n + 1])
            self.adjusted[n] = Counter({g: counts[n][g] if g[0] == "B" else left[g] for g in counts[n]})
        self.adjusted[1][("B",)] = 0
        self.discounts = [(0.0, 0.0, 0.0, 0.0)] + [self._estimated(c) for c in self.adjusted[1:]]

    @staticmethod
    def _estimated(counts: Counter) -> tuple[float, ...]:  # type: ignore[type-arg]
        n1, n2, n3, n4 = (sum(value == k for value in counts.values()) for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return (0.0, 0.5, 1.0, 1.5)
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return (0.0, *(found if all(0 <= d <= k for k, d in enumerate(found, 1)) else (0.5, 1.0, 1.5)))

    def probability(self, context: Sequence[object], token: object) -> float:
        n = len(context) + 1
        shorter = self.probability(context[1:], token) if context else 1 / self.vocabulary
        grams = {g: c for g, c in self.adjusted[n].items() if g[:-1] == tuple(context) and c}
        if not grams:
            return shorter
        total = sum(grams.values())
        cut = {g: self.discounts[n][min(c, 3)] for g, c in grams.items()}
        own = (*context, token)
        return (grams.get(own, 0) - cut.get(own, 0)) / total + sum(cut.values()) / total * shorter


def test_perplexity_is_the_exponential_of_the_mean_and_an_empty_document_gets_a_uniform_guess() -> None:
    model = train(lambda: [chunk([[0, 1], [0, 2, 1]])], 2, VOCABULARY)
    found = model.perplexities(chunk([[0, 1], [], [0]]))
    p0, p1 = probability(model, [], 0), probability(model, [0], 1)
    assert found == pytest.approx([math.exp(-(math.log(p0) + math.log(p1)) / 2), VOCABULARY, 1 / p0])
