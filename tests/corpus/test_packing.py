"""Documents packed into sequences: none is lost, split without need, or seen by another."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.corpus.label_mask import LabelMask
from megatron_cpt.corpus.packing import PADDING, PackedStream, best_fit, pieces_of
from megatron_cpt.corpus.stream import TokenStream
from tests.corpus.datasets import write_dataset

LENGTHS = st.lists(st.integers(1, 24), max_size=60)


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """Best fit decreasing as the paper has it: the room that is left in each bin."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [left for left in room if left >= length]
        if fitting:
            room.remove(min(fitting))
            room.append(min(fitting) - length)
        else:
            room.append(capacity - length)
    return sorted(room)


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(24, 50))
def test_items_are_placed_by_best_fit_decreasing(lengths: list[int], capacity: int) -> None:
    bins = best_fit(np.array(lengths, np.int64), capacity)
    filled = np.bincount(bins, np.array(lengths), minlength=0).astype(int) if lengths else np.empty(0, int)
    assert sorted((capacity - filled).tolist()) == one_by_one(lengths, capacity)
    assert sorted(set(bins.tolist())) == list(range(len(filled)))


def test_the_packing_never_changes_in_silence() -> None:
    rng = np.random.default_rng(3)
    assert best_fit(rng.integers(1, 11, 12), 10).tolist() == [0, 0, 4, 4, 5, 1, 2, 3, 1, 2, 3, 4]


def test_many_items_are_packed_in_a_moment() -> None:
    lengths = np.random.default_rng(1).integers(1, 4097, 200_000)
    bins = best_fit(lengths, 4096)
    filled = np.bincount(bins, lengths)
    assert filled.max() <= 4096 and filled.mean() > 0.99 * 4096


@given(lengths=LENGTHS, capacity=st.integers(2, 9))
def test_every_token_but_the_first_is_a_label_of_one_piece(lengths: list[int], capacity: int) -> None:
    documents, offsets, sizes = pieces_of(np.array(lengths, np.int64), capacity)
    assert not len(sizes) or (sizes.min() >= 2 and sizes.max() <= capacity)
    labels = [
        (document, offset + inside)
        for document, offset, size in zip(documents.tolist(), offsets.tolist(), sizes.tolist(), strict=True)
        for inside in range(1, size)
    ]
    assert labels == [(document, token) for document, length in enumerate(lengths) for token in range(1, length)]


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=8), min_size=1, max_size=2),
    length=st.integers(2, 12),
    masked=st.booleans(),
    rounds=st.integers(0, 3),
)
def test_a_stream_holds_every_label_once_in_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], length: int, masked: bool, rounds: int
) -> None:
    folder, prefixes, first = tmp_path_factory.mktemp("packed"), [], 1
    for number, lengths in enumerate(parts):
        prefixes.append(write_dataset(folder / f"{number}", lengths, first=first))
        first += sum(lengths)
        spans = [(token, token + 1) for token in range(0, sum(lengths), 3)]
        np.save(f"{prefixes[-1]}.thirds.npy", np.array(spans, LOSS_SPAN))
    stream = PackedStream(prefixes, None, length)
    column = "thirds" if masked else None
    expected = []
    begin = 1  # tokens count up from 1 over both datasets
    for lengths in parts:
        of_dataset = begin
        for size in lengths:
            inside = range(begin + 1, begin + size)
            expected += [token for token in inside if not masked or (token - of_dataset) % 3 == 0]
            begin += size
    assert stream.tokens % length == 0
    if not stream.tokens:
        assert not expected
        return
    found: list[int] = []
    mask = LabelMask(column=column, own_mask=stream.has_own_mask)
    for sequence in range(stream.tokens // length):
        start = (sequence + rounds * stream.tokens // length) * length
        window = stream.read(start, length + 1)
        counts = mask.loss_mask(stream, start + 1, window[1:])
        starts = {*stream.document_starts(start, length).tolist(), length}
        assert 0 in starts
        for place in np.flatnonzero(counts).tolist():
            # A label is the token after its input, of the same document.
            assert window[place + 1] == window[place] + 1 and place + 1 not in starts
            found.append(int(window[place + 1]))
        # What is not of a document is padding, by itself.
        padding = np.flatnonzero(window[:-1] == PADDING)
        assert not len(padding) or (padding.tolist() == list(range(int(padding[0]), length)) and padding[0] in starts)
    assert sorted(found) == expected


def test_a_stream_that_is_packed_otherwise_is_another(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "data", [5, 9, 3, 12], first=1)
    streams = [TokenStream([prefix]), PackedStream([prefix], None, 8), PackedStream([prefix], None, 16)]
    assert len({stream.identity for stream in streams}) == 3
    assert PackedStream([prefix], None, 8).identity == streams[1].identity
    assert (streams[2].sequences, round(streams[2].padding_share, 3)) == (2, round(3 / 32, 3))
