"""shares.py: exact shares from decimal weights."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.schema import DataSettings, SourceSettings
from megatron_cpt.mixture.order import LARGEST_WEIGHT_SUM
from megatron_cpt.mixture.phases import due_shares, integer_weights


def data_of(replay_ratio: float | None, **sources: tuple[str, float]) -> DataSettings:
    """Settings of sources given as name = (role, weight)."""
    return DataSettings(
        sequence_length=8,
        replay_ratio=replay_ratio,
        sources={
            name: SourceSettings(paths=[name], role="replay" if role == "replay" else "domain", weight=weight)
            for name, (role, weight) in sources.items()
        },
    )


def test_the_replay_ratio_divides_the_run_between_the_roles() -> None:
    data = data_of(0.3, law=("domain", 2), web=("replay", 1), code=("domain", 1), books=("replay", 1))
    assert due_shares(data) == {
        "law": Fraction(7, 15),
        "web": Fraction(3, 20),
        "code": Fraction(7, 30),
        "books": Fraction(3, 20),
    }
    assert integer_weights(tuple(due_shares(data).values())) == (28, 9, 14, 9)


def test_without_a_ratio_the_weights_alone_decide() -> None:
    data = data_of(None, a=("domain", 0.1), b=("replay", 0.2), c=("domain", 0))
    assert integer_weights(tuple(due_shares(data).values())) == (1, 2, 0)


def test_ratios_of_0_and_1_leave_a_role_out() -> None:
    sources = {"a": ("domain", 1.0), "b": ("replay", 1.0)}
    assert integer_weights(tuple(due_shares(data_of(0.0, **sources)).values())) == (1, 0)
    assert integer_weights(tuple(due_shares(data_of(1.0, **sources)).values())) == (0, 1)
    assert due_shares(data_of(0.0, a=("domain", 1))) == {"a": 1}


@given(st.lists(st.floats(0, 1e12, allow_subnormal=False), min_size=1, max_size=30).filter(any))
def test_any_weights_become_bounded_integers_in_their_ratio(weights: list[float]) -> None:
    shares = due_shares(data_of(None, **{f"s{number}": ("domain", weight) for number, weight in enumerate(weights)}))
    integers = integer_weights(tuple(shares.values()))
    assert sum(shares.values()) == 1
    assert sum(integers) <= LARGEST_WEIGHT_SUM
    for share, integer in zip(shares.values(), integers, strict=True):
        assert (share > 0) == (integer > 0)
        assert abs(Fraction(integer, sum(integers)) - share) < Fraction(1, 10**7)


def test_a_role_that_is_to_give_tokens_needs_weight() -> None:
    for data in (
        data_of(0.25, a=("domain", 0), b=("replay", 1)),
        data_of(0.25, a=("domain", 1)),
        data_of(None, a=("domain", 0), b=("replay", 0)),
    ):
        with pytest.raises(ValueError, match="have no weight"):
            due_shares(data)
