"""Which labels count: by id, at the beginning of documents, and after a lead of each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.corpus.label_mask import LabelMask, label_mask
from megatron_cpt.corpus.manifest import load_manifest, open_dataset, write_manifest
from megatron_cpt.corpus.selection import all_documents
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.data.loader import make_batch
from megatron_cpt.evaluate.validation import open_set
from megatron_cpt.quality.select import HowMany, select
from tests.config.examples import config_with
from tests.corpus.datasets import write_dataset


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Documents 0 1 2, 3 4, 5 6 7 8; of each its first 1, 0 and 3 tokens are a prompt."""
    written = write_dataset(tmp_path / "data", [3, 2, 4])
    np.save(tmp_path / "data.prompt.npy", np.array([1, 0, 3]))
    return written


def counted(mask: LabelMask, stream: TokenStream, start: int, length: int) -> str:
    """The labels [start, start + length) that count."""
    labels = stream.read(start, length)
    return " ".join(
        str(label) for label, counts in zip(labels, mask.loss_mask(stream, start, labels), strict=True) if counts
    )


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (LabelMask(), "1 2 3 4 5 6 7 8 0 1 2 3"),
        (LabelMask(tokens=(2, 8)), "1 3 4 5 6 7 0 1 3"),
        (LabelMask(document_starts=False), "1 2 4 6 7 8 1 2"),
        (LabelMask(column="prompt"), "1 2 3 4 8 1 2 3"),
        (LabelMask(tokens=(4,), document_starts=False, column="prompt"), "1 2 8 1 2"),
    ],
)
def test_what_counts_of_a_stream(prefix: Path, mask: LabelMask, expected: str) -> None:
    assert counted(mask, TokenStream([prefix]), 1, 12) == expected
    assert mask.leaves_out == (mask != LabelMask())


def test_prompt_lengths_belong_to_the_documents_of_a_selection(prefix: Path) -> None:
    np.save(prefix.with_name("data.score.npy"), np.array([0.0, 2.0, 1.0]))
    chosen = select([str(prefix)], prefix.with_name("s"), HowMany(tokens=7), keep="lowest", by="score").selection
    assert counted(LabelMask(column="prompt"), TokenStream([chosen.path]), 0, 14) == "1 2 8 1 2 8"


BOUNDS = st.lists(st.integers(0, 40), max_size=12).map(sorted).map(lambda bounds: bounds[: len(bounds) // 2 * 2])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=8).filter(any),
    bounds=BOUNDS,
    start=st.integers(0, 99),
    length=st.integers(1, 70),
    chosen=st.none() | st.sets(st.integers(0, 7), min_size=1),
)
def test_spans_count_what_lies_in_them(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    bounds: list[int],
    start: int,
    length: int,
    chosen: set[int] | None,
) -> None:
    """Of any documents, whole or selected, read from anywhere."""
    prefix = write_dataset(tmp_path_factory.mktemp("spans") / "data", lengths)
    total = sum(lengths)
    bounds = [min(bound, total) for bound in bounds]
    np.save(f"{prefix}.answers.npy", np.array(list(zip(bounds[::2], bounds[1::2], strict=True)), LOSS_SPAN))
    stream, numbers = TokenStream([prefix]), np.arange(len(lengths))
    if chosen is not None:
        numbers = np.array(sorted(number for number in chosen if number < len(lengths)), np.int64)
        part = all_documents(*open_dataset(prefix))
        part = replace(part, documents=numbers, starts=part.starts[numbers], lengths=part.lengths[numbers])
        if part.tokens == 0:
            return
        stream = TokenStream([], only=[part])
    counts = LabelMask(column="answers").loss_mask(stream, start, tokens := stream.read(start, length))
    # Tokens are their own places in the dataset.
    spans = list(zip(bounds[::2], bounds[1::2], strict=True))
    assert counts.tolist() == [any(begin <= token < end for begin, end in spans) for token in tokens.tolist()]


@pytest.mark.parametrize("spans", [[(2, 4), (3, 5)], [(4, 5), (0, 1)], [(-1, 2)], [(8, 10)], [(3, 2)]])
def test_spans_that_overlap_or_lie_outside_are_refused(prefix: Path, spans: list[tuple[int, int]]) -> None:
    np.save(prefix.with_name("data.answers.npy"), np.array(spans, LOSS_SPAN))
    with pytest.raises(IntegrityFault, match=r"data\.answers\.npy: holds spans"):
        TokenStream([prefix]).open_loss_masks("answers")


def test_columns_that_count_no_tokens_are_refused(prefix: Path) -> None:
    stream = TokenStream([prefix])
    with pytest.raises(BadInput, match=r"data\.missing\.npy: is not there"):
        stream.open_loss_masks("missing")
    np.save(prefix.with_name("data.half.npy"), np.array([0.5, 1, 2]))
    with pytest.raises(BadInput, match="does not count tokens"):
        stream.open_loss_masks("half")


def test_the_eod_is_the_one_that_the_manifest_names(prefix: Path) -> None:
    write_manifest(prefix, replace(load_manifest(prefix), eod=8))
    stream = TokenStream([prefix])
    assert label_mask(config_with().data, stream, None) == LabelMask()
    without = config_with(data__loss_mask={"eod": False, "ignored_token_ids": [4, 2]}).data
    assert label_mask(without, stream, "prompt") == LabelMask((2, 4, 8), True, "prompt")


def test_ends_of_turns_count_in_conversations_whose_eod_is_the_same(prefix: Path) -> None:
    """The EOD of Qwen's chat models ends every answer."""
    write_manifest(prefix, replace(load_manifest(prefix), eod=8, loss_spans_sha256="0" * 64))
    without = config_with(data__loss_mask={"eod": False}).data
    assert label_mask(without, TokenStream([prefix]), None) == LabelMask(own_mask=True)


def test_a_batch_counts_what_is_there_and_not_left_out(prefix: Path) -> None:
    windows = np.arange(10).reshape(2, 5)
    counts = np.array([[True, False, True, True], [True, True, False, True]])
    batch = make_batch(windows, np.array([3, 4]), np.zeros(2), torch.device("cpu"), loss_mask=counts)
    assert batch.loss_mask.tolist() == [[1, 0, 1, 0], [1, 1, 0, 1]]


def test_a_validation_set_counts_alike_and_its_identity_says_so(prefix: Path) -> None:
    stream, byte_each = TokenStream([prefix]), np.ones(9, np.int64)
    plain = open_set("set", "general", stream, 3, None, byte_each)
    assert (plain.labels.tolist(), plain.scored_tokens.tolist(), plain.scored_bytes) == ([3, 3, 2], [3, 3, 2], 8)
    masks = [LabelMask(tokens=(4,)), LabelMask(document_starts=False), LabelMask(column="prompt")]
    masked = [open_set("set", "general", stream, 3, None, byte_each, mask=mask) for mask in masks]
    # Labels 1 2 3, 4 5 6, 7 8.
    assert [one.scored_tokens.tolist() for one in masked] == [[3, 2, 2], [2, 2, 2], [3, 1, 1]]
    assert [one.scored_bytes for one in masked] == [7, 6, 5]
    assert len({plain.identity, *(one.identity for one in masked)}) == 4
    np.save(prefix.with_name("data.prompt.npy"), np.array([1, 0, 2]))
    assert (
        open_set("set", "general", TokenStream([prefix]), 3, None, None, mask=masks[2]).identity != masked[2].identity
    )


def test_a_validation_set_in_which_nothing_counts_is_refused(prefix: Path) -> None:
    np.save(prefix.with_name("data.prompt.npy"), np.array([99, 99, 99]))
    with pytest.raises(BadInput, match=r"validation.sets.set: has no label that counts among its 8"):
        open_set("set", "general", TokenStream([prefix]), 3, None, None, mask=LabelMask(column="prompt"))
