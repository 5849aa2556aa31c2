"""The fixed sequences of a validation set."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.corpus.stream import scored_tokens


def test_literal_sets() -> None:
    assert scored_tokens(100, 32, None).tolist() == [32, 32, 32, 3]
    assert scored_tokens(97, 32, None).tolist() == [32, 32, 32]
    assert scored_tokens(100, 32, 70).tolist() == [32, 32]
    assert scored_tokens(100, 32, 5).tolist() == [32]
    assert scored_tokens(20, 32, 64).tolist() == [19]
    assert scored_tokens(1, 32, None).tolist() == []


@given(st.integers(2, 10_000), st.integers(1, 300), st.integers(1, 20_000) | st.none())
def test_every_label_of_a_set_counts_once(tokens: int, length: int, budget: int | None) -> None:
    scored = scored_tokens(tokens, length, budget)
    assert 0 < scored.min() <= scored.max() <= length
    assert (scored[:-1] == length).all()
    assert scored.sum() <= tokens - 1
    if budget is None:
        assert scored.sum() == tokens - 1
    else:
        assert scored.sum() <= max(budget, length)
