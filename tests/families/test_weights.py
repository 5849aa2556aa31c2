"""The slices of a name table: every element of every tensor belongs to one rank, in Megatron's order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.llama import llama_weights
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.weights import (
    DeltaConvolution,
    DeltaInputs,
    GatedQueryKeyValue,
    GatedUp,
    GroupedDeltaInputs,
    Piece,
    Place,
    QueryKeyValue,
    Rule,
    Tensor,
    VocabularyParallel,
    local_size,
    padded_share,
    pieces,
    places,
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


def test_gates_of_heads_follow_the_query_heads_of_their_group(shape: ModelShape) -> None:
    gated = replace(shape, attention_gate=True)
    rule = rule_of(gated, GatedQueryKeyValue)
    # Hugging Face has a head's query, then its gate, of 10 rows each; rank 1 has heads 2 and 3 and the second group.
    assert pieces(rule, gated, 1, 2) == [
        Piece(0, 0, 0, 40, 10),
        Piece(0, 0, 10, 60, 10),
        Piece(0, 0, 20, 50, 10),
        Piece(0, 0, 30, 70, 10),
        Piece(1, 0, 40, 10, 10),
        Piece(2, 0, 50, 10, 10),
    ]


DELTA = {"delta_key_heads": 2, "delta_value_heads": 4, "delta_key_dim": 10, "delta_value_dim": 6}


def test_inputs_of_a_delta_net_come_from_each_key_head_in_turn(shape: ModelShape) -> None:
    delta = replace(shape, delta_layers=frozenset({0}), **DELTA)
    tensors = (Tensor("qkvz", ("delta_gated_width", "hidden")), Tensor("ba", ("delta_rates", "hidden")))
    rule = GroupedDeltaInputs(("layers.{layer}.in_proj",), tensors, layers="delta")
    # A key head has 10 rows of its query, 10 of its key, 12 of values and 12 of gates; 2 betas and 2 alphas.
    assert pieces(rule, delta, 1, 2) == [
        Piece(0, 0, 0, 44, 10),
        Piece(0, 0, 10, 54, 10),
        Piece(0, 0, 20, 64, 12),
        Piece(0, 0, 32, 76, 12),
        Piece(1, 0, 44, 4, 2),
        Piece(1, 0, 46, 6, 2),
    ]
    assert [piece.local for piece in pieces(rule, delta, 0, 1)] == [0, 10, 20, 30, 40, 52, 64, 76, 88, 90, 92, 94]
    assert places(rule, delta) == [Place(0)]
    assert [place.layer for place in places(rule_of(delta, QueryKeyValue), delta)] == [1, 2, 3]


def test_inputs_of_a_delta_net_in_four_tensors(shape: ModelShape) -> None:
    delta = replace(shape, delta_layers=frozenset({0}), **DELTA)
    sizes = ("delta_convolved_width", "delta_value_width", "delta_value_heads", "delta_value_heads")
    rule = DeltaInputs(("in_proj",), tuple(Tensor(size, (size, "hidden")) for size in sizes), layers="delta")
    assert pieces(rule, delta, 1, 2) == [
        Piece(0, 0, 0, 10, 10),
        Piece(0, 0, 10, 30, 10),
        Piece(0, 0, 20, 52, 12),
        Piece(1, 0, 32, 12, 12),
        Piece(2, 0, 44, 2, 2),
        Piece(3, 0, 46, 2, 2),
    ]
    convolution = DeltaConvolution(("conv1d",), (Tensor("conv1d", ("delta_convolved_width", "one", "delta_kernel")),))
    assert pieces(convolution, delta, 1, 2) == [
        Piece(0, 0, 0, 10, 10),
        Piece(0, 0, 10, 30, 10),
        Piece(0, 0, 20, 52, 12),
    ]


def test_sizes_that_ranks_cannot_share_are_a_defect_here(shape: ModelShape) -> None:
    with pytest.raises(AssertionError, match="not divisible"):
        pieces(rule_of(shape, QueryKeyValue), shape, 0, 3)
