"""order.py: exact shares, true epochs and stable prefixes (contract 3.2, properties 1 to 5)."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.mixture.order import TOKEN_LIMIT, Located, Phase, SampleOrder, SourceStream


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    """Orders of a few sources over phases at odd places; sources may be shorter than a sequence."""
    tokens = draw(st.lists(st.integers(1, 300), min_size=1, max_size=6))
    starts = [0, *sorted(draw(st.sets(st.integers(1, 250), max_size=3)))]
    weights = st.lists(st.integers(0, 9), min_size=len(tokens), max_size=len(tokens)).filter(any)
    phases = [Phase(start, tuple(draw(weights))) for start in starts]
    sources = [SourceStream(f"s{number}", count) for number, count in enumerate(tokens)]
    return SampleOrder(sources, phases, draw(st.integers(1, 64)), draw(st.integers(0, 2**31)))


def rows(located: Located) -> list[tuple[int, int, int]]:
    return list(zip(located.source.tolist(), located.epoch.tolist(), located.sequence.tolist(), strict=True))


@given(orders())
def test_every_prefix_of_every_phase_is_within_two_of_the_due_shares(order: SampleOrder) -> None:
    sources = order.locate(np.arange(400)).source
    ends = [phase.first_sequence for phase in order.phases[1:]] + [400]
    for phase, end in zip(order.phases, ends, strict=True):
        counts = [0] * len(order.sources)
        for index in range(phase.first_sequence, end):
            counts[sources[index]] += 1
            length = index + 1 - phase.first_sequence
            for count, weight in zip(counts, phase.weights, strict=True):
                assert abs(count - Fraction(length * weight, sum(phase.weights))) < 2


@given(orders(), st.integers(0, 400))
def test_counts_are_the_prefix_counts_of_the_order(order: SampleOrder, sequences: int) -> None:
    counted = np.bincount(order.locate(np.arange(sequences)).source, minlength=len(order.sources))
    assert order.counts(sequences).tolist() == counted.tolist()


@given(orders())
def test_each_epoch_is_read_whole_and_once_before_the_next_begins(order: SampleOrder) -> None:
    length = order.sequence_length
    located = order.locate(np.arange(400))
    for number, source in enumerate(order.sources):
        mine = located.source == number
        epochs, sequences = located.epoch[mine].tolist(), located.sequence[mine].tolist()
        assert epochs == sorted(epochs)
        assert len(set(sequences)) == len(sequences)
        for epoch in set(epochs[:-1]) - {epochs[-1]} if epochs else ():
            owned = range(-(-epoch * source.tokens // length), -(-(epoch + 1) * source.tokens // length))
            assert sorted(s for s, e in zip(sequences, epochs, strict=True) if e == epoch) == list(owned)


@given(st.integers(1, 120), st.integers(1, 150), st.integers(0, 9))
def test_every_token_is_read_k_times_before_any_is_read_once_more(tokens: int, length: int, seed: int) -> None:
    """One sequence at the edge of an epoch aside: it starts in its epoch and ends in the next."""
    order = SampleOrder([SourceStream("only", tokens)], [Phase(0, (1,))], length, seed)
    located = order.locate(np.arange(4 * tokens // length + 4))
    for epoch in range(1, int(located.epoch[-1]) + 1):
        starts = located.sequence[located.epoch < epoch] * length
        read = Counter(((starts[:, None] + np.arange(length)) % tokens).ravel().tolist())
        spilled = int(starts.max()) + length - epoch * tokens
        assert 0 <= spilled < length
        for token in range(tokens):
            extra = spilled // tokens + (token < spilled % tokens)
            assert read[token] == epoch + extra


def test_a_longer_run_begins_with_the_shorter_one_and_phases_can_be_appended() -> None:
    sources = [SourceStream("a", 1000), SourceStream("b", 333)]
    short = SampleOrder(sources, [Phase(0, (3, 1))], 16, 7)
    appended = SampleOrder(sources, [Phase(0, (3, 1)), Phase(101, (1, 1))], 16, 7)
    everything = rows(short.locate(np.arange(300)))
    assert rows(short.locate(np.arange(100))) == everything[:100]
    assert rows(appended.locate(np.arange(101))) == everything[:101]
    assert rows(appended.locate(np.arange(300))) != everything


@given(orders(), st.lists(st.integers(0, 399), min_size=1, max_size=20))
def test_an_index_does_not_depend_on_the_others_asked_for(order: SampleOrder, indices: list[int]) -> None:
    everything = rows(order.locate(np.arange(400)))
    assert rows(order.locate(np.array(indices))) == [everything[index] for index in indices]


def test_a_phase_carries_positions_on() -> None:
    """No sequence of a source is skipped or repeated where the weights change, even to 0 and back."""
    sources = [SourceStream("a", 10_000), SourceStream("b", 10_000)]
    phases = [Phase(0, (1, 1)), Phase(57, (1, 0)), Phase(111, (1, 3))]
    located = SampleOrder(sources, phases, 100, 1).locate(np.arange(250))
    for number in (0, 1):
        mine = located.sequence[located.source == number]
        first_epoch = mine[:100]
        assert sorted(first_epoch) == list(range(len(first_epoch)))


@given(index=st.integers(0, 2 * 10**12), seed=st.integers(0, 5))
def test_huge_indices_are_exact(index: int, seed: int) -> None:
    tokens, length = 15 * 10**12 + 1, 8192
    sources = [SourceStream("web", tokens), SourceStream("tiny", 1000), SourceStream("books", 10**9 + 7)]
    weights = (10**9, 1, 7 * 10**6)
    order = SampleOrder(sources, [Phase(0, weights)], length, seed)
    [(source, epoch, sequence)] = rows(order.locate(np.array([index])))
    before = order.counts(index).tolist()
    assert epoch == before[source] * length // sources[source].tokens
    assert epoch * sources[source].tokens <= sequence * length < (epoch + 1) * sources[source].tokens
    for count, weight in zip(before, weights, strict=True):
        assert abs(count - Fraction(index * weight, sum(weights))) < 2


def test_seed_and_name_key_the_shuffle_and_the_listing_order_does_not() -> None:
    def sequences(name: str, seed: int) -> list[int]:
        order = SampleOrder([SourceStream(name, 6400)], [Phase(0, (1,))], 64, seed)
        return order.locate(np.arange(100)).sequence.tolist()

    assert sequences("a", 1) == sequences("a", 1)
    assert sequences("a", 1) != sequences("a", 2)
    assert sequences("a", 1) != sequences("b", 1)
    a, b = SourceStream("a", 6400), SourceStream("b", 999)
    one = SampleOrder([a, b], [Phase(0, (2, 1))], 64, 1).locate(np.arange(300))
    other = SampleOrder([b, a], [Phase(0, (1, 2))], 64, 1).locate(np.arange(300))
    assert one.source.tolist() == (1 - other.source).tolist()
    assert one.sequence.tolist() == other.sequence.tolist()


def test_epochs_are_shuffled_differently() -> None:
    order = SampleOrder([SourceStream("a", 6400)], [Phase(0, (1,))], 64, 1)
    first, second = order.locate(np.arange(100)).sequence, order.locate(np.arange(100, 200)).sequence - 100
    assert sorted(first) == sorted(second) == list(range(100))
    assert (first == second).sum() < 10


def test_what_makes_no_order() -> None:
    a, empty = SourceStream("a", 100), SourceStream("b", 0)
    for sources, phases, length in (
        ([a], [], 8),
        ([a], [Phase(1, (1,))], 8),
        ([a], [Phase(0, (1,)), Phase(0, (2,))], 8),
        ([a], [Phase(0, (1,))], 0),
        ([a, a], [Phase(0, (1, 1))], 8),
        ([a, empty], [Phase(0, (1, 1))], 8),
        ([a], [Phase(0, (0,))], 8),
    ):
        with pytest.raises(ValueError):
            SampleOrder(sources, phases, length, 1)
    order = SampleOrder([a, empty], [Phase(0, (1, 0))], 8, 1)
    for index in (-1, TOKEN_LIMIT // 8):
        with pytest.raises(ValueError, match="index"):
            order.locate(np.array([index]))


def test_golden_values() -> None:
    sources = [SourceStream("domain", 100), SourceStream("replay", 1000)]
    order = SampleOrder(sources, [Phase(0, (7, 3)), Phase(24, (1, 1))], 10, 1234)
    located = order.locate(np.arange(32))
    assert "".join(map(str, located.source)) == "01000100100100010010010001010101"
    domain = [6, 1, 3, 0, 9, 8, 2, 7, 4, 5, 13, 15, 12, 14, 11, 10, 18, 19, 16, 17, 25]
    replay = [32, 49, 88, 73, 75, 56, 28, 41, 26, 42, 14]
    assert located.sequence[located.source == 0].tolist() == domain
    assert located.sequence[located.source == 1].tolist() == replay
    assert rows(order.locate(np.array([10**12]))) == [(0, 50000000000, 500000000003)]
