"""Draws in order.py: a part of a source for each epoch of a mixture, the same one or another each time."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import DataSettings, SamplePerEpochSettings, SourceSettings
from megatron_cpt.mixture.blend import BlendPlan, expected_unique, plan_blend
from megatron_cpt.mixture.order import Draw, Phase, SampleOrder, SourceStream
from megatron_cpt.mixture.phases import blend_streams


def drawn(tokens: int, length: int, sequences: int, resample: bool, seed: int = 1) -> SampleOrder:
    return SampleOrder([SourceStream("a", tokens, Draw(sequences, resample))], [Phase(0, (1,))], length, seed)


@given(st.integers(1, 500), st.integers(1, 20), st.data(), st.booleans(), st.integers(0, 9))
def test_no_sequence_comes_twice_within_a_draw(
    tokens: int, length: int, data: st.DataObject, resample: bool, seed: int
) -> None:
    length = min(length, tokens)
    size = data.draw(st.integers(1, tokens // length))
    located = drawn(tokens, length, size, resample, seed).locate(np.arange(5 * size))
    draws = [located.sequence[located.epoch == number].tolist() for number in range(5)]
    assert [len(set(draw)) for draw in draws] == [size] * 5
    for draw in draws:
        starts = sorted(sequence * length % tokens for sequence in draw)
        assert all(second - first >= length for first, second in pairwise(starts))
    if not resample:
        assert all(set(draw) == set(draws[0]) for draw in draws)


def test_a_fixed_draw_is_repeated_in_other_orders_and_a_new_one_has_other_sequences() -> None:
    fixed = drawn(10_000, 10, 800, resample=False).locate(np.arange(1600)).sequence
    assert set(fixed[:800]) == set(fixed[800:])
    assert (fixed[:800] == fixed[800:]).sum() < 10
    anew = drawn(10_000, 10, 800, resample=True).locate(np.arange(3200)).sequence % 1000
    times = Counter(Counter(anew.tolist()).values())
    # Four draws of 80 %: binomial(4, 0.8) of 1,000 sequences, 410 of them in all four and 410 in three.
    assert 350 < times[4] < 470
    assert 350 < times[3] < 470
    assert sum(count * number for count, number in times.items()) == 3200


def strategy(resample: str, epochs: int) -> BlendPlan:
    """Strategy III of arXiv:2406.14833, a thousandth of a thousandth: 4.1 of 5 parts of domain text, 0.9 of general."""
    data = DataSettings(
        sequence_length=10,
        sources={
            "domain": SourceSettings(
                paths=["d"], weight=4.1, sample_per_epoch=SamplePerEpochSettings(tokens=4100, resample=resample)
            ),  # type: ignore[arg-type]
            "general": SourceSettings(
                paths=["g"],
                role="replay",
                weight=0.9,
                sample_per_epoch=SamplePerEpochSettings(tokens=900, resample=resample),  # type: ignore[arg-type]
            ),
        },
    )
    return plan_blend(data, blend_streams(data, {"domain": 5000, "general": 600_000}), 500 * epochs, seed=1)


def test_strategy_three_dynamic_makes_3_28_mean_passes_over_the_subset() -> None:
    blend = strategy("each_epoch", 4)
    assert blend.counts == (1640, 360)
    assert blend.epochs == pytest.approx((3.28, 0.006))
    located = blend.order.locate(np.arange(2000))
    assert np.bincount(located.epoch[located.source == 0]).tolist() == [410] * 4
    assert np.bincount(located.epoch[located.source == 1]).tolist() == [90] * 4


def test_strategy_three_fixed_repeats_one_mixture() -> None:
    blend = strategy("fixed", 4)
    assert blend.epochs == pytest.approx((4, 4))
    located = blend.order.locate(np.arange(2000))
    mixtures = [
        sorted(zip(located.source[part].tolist(), located.sequence[part].tolist(), strict=True))
        for part in np.split(np.arange(2000), 4)
    ]
    assert mixtures == [mixtures[0]] * 4
    assert blend.rows[0].effective_unique_tokens < 4 * 4100


def test_the_fingerprint_names_the_draw() -> None:
    fixed, anew = strategy("fixed", 4), strategy("each_epoch", 4)
    assert fixed.fingerprint(10) != anew.fingerprint(10)
    assert anew.describe(10)["sources"]["domain"]["draw"] == {"sequences": 410, "anew": True}


def test_a_draw_larger_than_its_source_is_refused() -> None:
    data = DataSettings(
        sequence_length=10,
        sources={"a": SourceSettings(paths=["a"], sample_per_epoch=SamplePerEpochSettings(tokens=2000))},
    )
    with pytest.raises(
        BadInput, match=r"data.sources.a.sample_per_epoch.tokens = 2000: the source has 1,999"
    ) as refused:
        plan_blend(data, blend_streams(data, {"a": 1999}), 10, seed=1)
    assert "take `sample_per_epoch` out" in str(refused.value)
    with pytest.raises(ValueError, match="draw"):
        drawn(19, 10, 2, resample=True)


def test_expected_unique_tokens() -> None:
    assert expected_unique(1000, 800, 3200) == pytest.approx(1000 * (1 - 0.2**4))
    assert expected_unique(1000, 800, 400) == 400
    assert expected_unique(1000, 1000, 5000) == 1000


def test_golden_draws() -> None:
    assert drawn(105, 10, 4, resample=True).locate(np.arange(8)).sequence.tolist() == [3, 2, 4, 6, 14, 19, 13, 18]
    assert drawn(105, 10, 4, resample=False).locate(np.arange(8)).sequence.tolist() == [4, 3, 2, 6, 3, 2, 4, 6]
