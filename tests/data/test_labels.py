"""Which labels count: by id, at the beginning of documents, and after a lead of each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.label_mask import LabelMask, label_mask
from megatron_cpt.corpus.manifest import load_manifest, write_manifest
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
        (LabelMask(prompt_length_column="prompt"), "1 2 3 4 8 1 2 3"),
        (LabelMask(tokens=(4,), document_starts=False, prompt_length_column="prompt"), "1 2 8 1 2"),
    ],
)
def test_what_counts_of_a_stream(prefix: Path, mask: LabelMask, expected: str) -> None:
    assert counted(mask, TokenStream([prefix]), 1, 12) == expected
    assert mask.leaves_out == (mask != LabelMask())


def test_prompt_lengths_belong_to_the_documents_of_a_selection(prefix: Path) -> None:
    np.save(prefix.with_name("data.score.npy"), np.array([0.0, 2.0, 1.0]))
    chosen = select([str(prefix)], prefix.with_name("s"), HowMany(tokens=7), keep="lowest", by="score").selection
    assert counted(LabelMask(prompt_length_column="prompt"), TokenStream([chosen.path]), 0, 14) == "1 2 8 1 2 8"


def test_columns_that_count_no_tokens_are_refused(prefix: Path) -> None:
    stream = TokenStream([prefix])
    with pytest.raises(BadInput, match=r"data\.missing\.npy: is not there"):
        stream.prompt_lengths("missing")
    np.save(prefix.with_name("data.half.npy"), np.array([0.5, 1, 2]))
    with pytest.raises(BadInput, match="does not count tokens"):
        stream.prompt_lengths("half")


def test_the_eod_is_the_one_that_the_manifest_names(prefix: Path) -> None:
    write_manifest(prefix, replace(load_manifest(prefix), eod=8))
    stream = TokenStream([prefix])
    assert label_mask(config_with().data, stream, None) == LabelMask()
    without = config_with(data__loss_mask={"eod": False, "ignored_token_ids": [4, 2]}).data
    assert label_mask(without, stream, "prompt") == LabelMask((2, 4, 8), True, "prompt")


def test_a_batch_counts_what_is_there_and_not_left_out(prefix: Path) -> None:
    windows = np.arange(10).reshape(2, 5)
    counts = np.array([[True, False, True, True], [True, True, False, True]])
    batch = make_batch(windows, np.array([3, 4]), np.zeros(2), torch.device("cpu"), loss_mask=counts)
    assert batch.loss_mask.tolist() == [[1, 0, 1, 0], [1, 1, 0, 1]]


def test_a_validation_set_counts_alike_and_its_identity_says_so(prefix: Path) -> None:
    stream, byte_each = TokenStream([prefix]), np.ones(9, np.int64)
    plain = open_set("set", "general", stream, 3, None, byte_each)
    assert (plain.labels.tolist(), plain.scored_tokens.tolist(), plain.scored_bytes) == ([3, 3, 2], [3, 3, 2], 8)
    masks = [LabelMask(tokens=(4,)), LabelMask(document_starts=False), LabelMask(prompt_length_column="prompt")]
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
        open_set("set", "general", TokenStream([prefix]), 3, None, None, mask=LabelMask(prompt_length_column="prompt"))
