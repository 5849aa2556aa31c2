"""The slices of a name table: every element of every tensor belongs to one rank, in Megatron's order."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.llama import llama_weights
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.weights import (
    GatedUp,
    Piece,
    QueryKeyValue,
    Rule,
    VocabularyParallel,
    local_size,
    padded_share,
    pieces,
    tensor_size,
)
from tests.families.folders import write_config


@pytest.fixture
def shape(tmp_path: Path) -> ModelShape:
    return read_shape(write_config(tmp_path))


def rule_of(shape: ModelShape, kind: type[Rule]) -> Rule:
    return next(rule for rule in llama_weights(shape) if isinstance(rule, kind))


def test_queries_keys_and_values_are_interleaved_by_group(shape: ModelShape) -> None:
    # 2 groups of 2 query heads of width 10: 20 query rows, 10 key rows, 10 value rows each.
    rule = rule_of(shape, QueryKeyValue)
    first, second = pieces(rule, shape, 0, 2), pieces(rule, shape, 1, 2)
    assert first == [Piece(0, 0, 0, 0, 20), Piece(1, 0, 20, 0, 10), Piece(2, 0, 30, 0, 10)]
    assert second == [Piece(0, 0, 0, 20, 20), Piece(1, 0, 20, 10, 10), Piece(2, 0, 30, 10, 10)]
    assert [piece.local for piece in pieces(rule, shape, 0, 1)] == [0, 20, 30, 40, 60, 70]


def test_each_rank_has_its_part_of_the_gate_and_then_of_up(shape: ModelShape) -> None:
    assert pieces(rule_of(shape, GatedUp), shape, 1, 2) == [Piece(0, 0, 0, 22, 22), Piece(1, 0, 22, 22, 22)]


def test_the_last_rank_ends_in_padding(shape: ModelShape) -> None:
    rule = rule_of(shape, VocabularyParallel)
    assert pieces(rule, shape, 0, 2) == [Piece(0, 0, 0, 0, 51)]
    assert pieces(rule, shape, 1, 2) == [Piece(0, 0, 0, 51, 50)]
    assert local_size(rule, shape, 1, 2) == (51, 32)


def test_a_rank_may_have_nothing_but_padding() -> None:
    shape = ModelShape(
        family="llama",
        layers=1,
        hidden=4,
        ffn_hidden=4,
        heads=4,
        query_groups=4,
        head_dim=2,
        vocabulary=5,
        max_positions=4,
        norm_epsilon=1e-5,
        rope_base=1e4,
    )
    rule = rule_of(shape, VocabularyParallel)
    assert [len(pieces(rule, shape, rank, 4)) for rank in range(4)] == [1, 1, 1, 0]
    assert padded_share(5, 4) == 2


@given(groups=st.integers(1, 4), heads=st.integers(1, 3), width=st.integers(1, 5), ranks=st.sampled_from([1, 2, 4]))
def test_every_element_belongs_to_one_rank(groups: int, heads: int, width: int, ranks: int) -> None:
    shape = ModelShape(
        family="llama",
        layers=1,
        hidden=6,
        ffn_hidden=4 * width,
        heads=4 * groups * heads,
        query_groups=4 * groups,
        head_dim=2 * width,
        vocabulary=7 * width,
        max_positions=4,
        norm_epsilon=1e-5,
        rope_base=1e4,
    )
    for rule in llama_weights(shape):
        seen = [np.zeros(tensor_size(tensor, shape), dtype=int) for tensor in rule.tensors]
        for rank in range(ranks):
            size = local_size(rule, shape, rank, ranks)
            held = np.zeros(size, dtype=int)
            for piece in pieces(rule, shape, rank, ranks):
                whole = np.moveaxis(seen[piece.tensor], piece.axis, 0)
                whole[piece.start : piece.start + piece.length] += 1
                np.moveaxis(held, piece.axis, 0)[piece.local : piece.local + piece.length] += 1
            assert held.max(initial=1) == 1
            assert isinstance(rule, VocabularyParallel) or held.min() == 1
        divided = type(rule).__name__ != "Replicated"
        assert all((part == (1 if divided else ranks)).all() for part in seen)


def test_sizes_that_ranks_cannot_share_are_a_defect_here(shape: ModelShape) -> None:
    with pytest.raises(AssertionError, match="not divisible"):
        pieces(rule_of(shape, QueryKeyValue), shape, 0, 3)
