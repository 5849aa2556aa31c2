import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.corpus.hashing import mixed
from megatron_cpt.preparation.sorted_runs import ALL, below, bound_of_share, bound_of_tokens, content_hash, holdout_keys


def test_the_share_is_met_and_a_larger_one_holds_out_the_same_and_more() -> None:
    keys = holdout_keys(mixed(np.arange(20_000, dtype=np.uint64)))
    small, large = (below(keys, bound_of_share(share)) for share in (0.01, 0.1))
    assert abs(small.sum() - 200) < 60
    assert abs(large.sum() - 2000) < 180
    assert (large >= small).all()
    assert not below(keys, bound_of_share(0.0)).any()
    assert below(keys, bound_of_share(1.0)).all()


def test_the_decision_never_changes() -> None:
    assert content_hash(b"one").hex() == "34f2ddaa8b7615c9"
    assert holdout_keys(np.array([0, 1], np.uint64)).tolist() == [16941347293769759394, 304843367714107351]


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 9)), min_size=1, max_size=50), st.integers(1, 300))
def test_a_number_of_tokens_is_reached_with_the_fewest_documents(found: list[tuple[int, int]], tokens: int) -> None:
    keys = np.array([key for key, _ in found], np.uint64)
    counts = np.array([count for _, count in found], np.int64)
    bound = bound_of_tokens(lambda: [(keys[:7], counts[:7]), (keys[7:], counts[7:])], tokens)
    taken = counts[below(keys, bound)].sum()
    if counts.sum() < tokens:
        assert bound == ALL
        return
    assert taken >= tokens
    # Without those that have the largest key it would be too few.
    largest = keys[below(keys, bound)].max()
    assert taken - counts[keys == largest].sum() < tokens


@pytest.mark.parametrize("bound", [1, 5, ALL])
def test_the_bound_itself_is_not_held_out(bound: int) -> None:
    keys = np.array([0, 4, 5, 2**64 - 1], np.uint64)
    assert below(keys, bound).tolist() == [int(key) < bound for key in keys]
