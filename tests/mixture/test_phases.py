"""phases.py through plan_blend: phases of a config, and those that begin where a source is exhausted."""

from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import DataSettings, PhaseSettings, SourceSettings
from megatron_cpt.config.units import Duration, RampPiece
from megatron_cpt.mixture.blend import BlendPlan, plan_blend
from megatron_cpt.mixture.phases import BlendPhase, blend_streams

TOKENS = {"law": 10_000, "code": 5_000, "web": 1_000_000, "books": 50_000}
HALF, TENTH = Fraction(1, 2), Fraction(1, 10)


def source(role: Literal["domain", "replay"] = "domain", max_epochs: float | None = None) -> SourceSettings:
    return SourceSettings(paths=["p"], role=role, max_epochs=max_epochs)


def data_of(
    *phases: PhaseSettings, when: Literal["error", "redistribute", "stop"] = "error", **limits: float
) -> DataSettings:
    roles: dict[str, Literal["domain", "replay"]] = {
        "law": "domain",
        "code": "domain",
        "web": "replay",
        "books": "replay",
    }
    return DataSettings(
        sequence_length=100,
        replay_ratio=0.5,
        sources={name: source(role, limits.get(name)) for name, role in roles.items()},
        phases=list(phases),
        when_exhausted=when,
    )


def phase(steps: int, replay_ratio: float | None = None, **weights: float) -> PhaseSettings:
    return PhaseSettings(from_tokens=Duration(steps, "steps"), replay_ratio=replay_ratio, weights=weights)


def blend_of(data: DataSettings, sequences: int = 800) -> BlendPlan:
    """Steps of eight sequences."""
    return plan_blend(data, blend_streams(data, TOKENS), sequences, seed=3, step_sequences=8)


def test_phases_begin_at_whole_steps_and_have_their_own_shares() -> None:
    tokens = PhaseSettings(from_tokens=Duration(33_000), replay_ratio=0.1, weights={"law": 3.0})
    blend = blend_of(data_of(phase(0), tokens))
    assert blend.phases == (
        BlendPhase(0, (HALF / 2, HALF / 2, HALF / 2, HALF / 2)),
        BlendPhase(328, (Fraction(27, 40), Fraction(9, 40), TENTH / 2, TENTH / 2), number=1),
    )
    assert blend.source_sequences(328) == {"law": 82, "code": 82, "web": 82, "books": 82}
    assert blend.counts == (401, 188, 105, 106)
    expected = (328 * HALF + 472 * TENTH) / 800
    assert blend.due_shares[2] + blend.due_shares[3] == expected


def test_phases_and_their_ramps_keep_to_whole_steps_while_batches_grow() -> None:
    """Steps of 2, 2, 2, 2, 4, 4, 6 and then of 8 sequences: they end at 2, 4, 6, 8, 12, 16, 22, 30, 38 and so on."""
    ramped = PhaseSettings(from_tokens=Duration(4, "steps"), replay_ratio=0.1, ramp=Duration(1300))
    data = data_of(phase(0), ramped, PhaseSettings(from_tokens=Duration(3300)))
    pieces = (RampPiece(4, 2), RampPiece(2, 4), RampPiece(1, 6))
    blend = plan_blend(data, blend_streams(data, TOKENS), 86, seed=3, step_sequences=8, ramp=pieces)
    # 1,300 tokens after 8 sequences are at 21: the end of step 7. 3,300 tokens are 33 sequences, nearest to 30.
    assert [each.first_sequence for each in blend.phases] == [0, 8, 12, 16, 22, 30]
    replay = [each.shares[2] + each.shares[3] for each in blend.phases]
    # A straight line from 0.5 to 0.1 over 14 sequences, at 2, at 6 and at 11 of them.
    line = [HALF - Fraction(at, 14) * Fraction(4, 10) for at in (2, 6, 11)]
    assert replay == [HALF, *line, TENTH, HALF]
    steady = plan_blend(data_of(), blend_streams(data_of(), TOKENS), 86, seed=3, step_sequences=8)
    assert blend.source_sequences(8) == steady.source_sequences(8)


def test_a_run_that_stops_early_ends_with_a_whole_step_of_the_ramp() -> None:
    data = data_of(when="stop", law=0.11)  # 11 sequences of law, a quarter of all
    ramp = (RampPiece(4, 2), RampPiece(10, 4))
    assert plan_blend(data, blend_streams(data, TOKENS), 800, seed=3, step_sequences=8).total_sequences == 40
    assert plan_blend(data, blend_streams(data, TOKENS), 800, 3, 8, ramp=ramp).total_sequences == 44


def test_an_appended_phase_leaves_what_was_before() -> None:
    before = blend_of(data_of(), 400)
    for data in (data_of(phase(0), phase(50, 0.1)), data_of(phase(0), phase(50, 0.1, law=0), phase(60, 0.9))):
        after = blend_of(data)
        assert after.describe(400) == before.describe(400)
        assert after.fingerprint(400) == before.fingerprint(400)
        assert after.fingerprint(401) != before.fingerprint(401)
        assert after.source_sequences(400) == before.source_sequences(400)
        indices = np.arange(400)
        assert np.array_equal(after.order.locate(indices).sequence, before.order.locate(indices).sequence)


def test_a_phase_within_what_was_trained_on_changes_the_fingerprint() -> None:
    before = blend_of(data_of(), 400)
    assert blend_of(data_of(phase(0), phase(49, 0.1))).fingerprint(400) != before.fingerprint(400)


def test_an_appended_source_begins_in_its_phase() -> None:
    data = data_of(phase(0, web=0), phase(50))
    before, after = blend_of(replace(data, phases=[phase(0, web=0)]), 400), blend_of(data)
    assert after.fingerprint(400) == before.fingerprint(400)
    assert after.source_sequences(400)["web"] == 0
    assert after.source_sequences(800)["web"] == 100


def test_a_source_is_read_to_its_limit_and_its_role_takes_over() -> None:
    """code: 5,000 tokens twice are 100 sequences, met after 400 of the run, of which it gives a quarter."""
    blend = blend_of(data_of(when="redistribute", code=2))
    first, second = blend.phases
    assert first.exhausted == ()
    assert second.exhausted == ("code",)
    assert second.shares == (HALF, 0, HALF / 2, HALF / 2)
    assert 396 <= second.first_sequence <= 400
    start = second.first_sequence
    assert blend.source_sequences(start - 1)["code"] == 99
    assert blend.source_sequences(start)["code"] == blend.source_sequences(800)["code"] == 100
    assert abs(sum(blend.counts[2:]) - 400) <= 2


def test_an_exhausted_source_stays_out_of_later_phases() -> None:
    blend = blend_of(data_of(phase(0), phase(60, 0.25, law=3), when="redistribute", code=2))
    assert [(phase.first_sequence, phase.exhausted) for phase in blend.phases][1:] == [
        (blend.phases[1].first_sequence, ("code",)),
        (480, ("code",)),
    ]
    assert blend.phases[2].shares == (Fraction(3, 4), 0, Fraction(1, 8), Fraction(1, 8))


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    plain = blend_of(data_of())
    for when in ("redistribute", "stop"):
        limited = blend_of(data_of(when=when, law=50, code=50))  # type: ignore[arg-type]
        assert (limited.fingerprint(800), limited.counts) == (plain.fingerprint(800), plain.counts)


def test_nothing_left_to_take_over_is_refused_and_the_way_out_works() -> None:
    with pytest.raises(BadInput) as refusal:
        blend_of(data_of(when="redistribute", code=1, law=1))
    assert str(refusal.value) == (
        "data.when_exhausted = redistribute: after 29,800 tokens every source of role `domain` has given what its "
        "max_epochs or target allows, and nothing is left to take over its share. Train on at most 29,600 "
        "tokens, raise the limit, "
        "or give the role another source."
    )
    assert blend_of(data_of(when="redistribute", code=1, law=1), 296).counts[1] == 50


def test_a_run_stops_with_the_last_whole_step_before_the_limit_is_passed() -> None:
    stopped, whole = blend_of(data_of(when="stop", code=2)), blend_of(data_of())
    longest = max(length for length in range(801) if whole.source_sequences(length)["code"] <= 100)
    assert stopped.total_sequences == longest // 8 * 8
    assert 392 <= stopped.total_sequences <= 408
    assert stopped.fingerprint(stopped.total_sequences) == whole.fingerprint(stopped.total_sequences)


def test_a_run_that_would_stop_at_once_is_refused() -> None:
    with pytest.raises(BadInput, match=r"\(code: max_epochs = 0.001\) is exhausted within the first step"):
        blend_of(data_of(when="stop", code=0.001))


@st.composite
def limited(draw: st.DrawFn) -> tuple[DataSettings, dict[str, int]]:
    """Two unlimited sources, one of each role, and some that are exhausted, over phases at odd places."""
    count = draw(st.integers(1, 6))
    roles = ["domain", "replay", *draw(st.lists(st.sampled_from(["domain", "replay"]), min_size=count, max_size=count))]
    names = [f"s{number}" for number in range(len(roles))]
    limits = [None, None, *draw(st.lists(st.floats(0.01, 3), min_size=count, max_size=count))]
    starts = [0, *sorted(draw(st.sets(st.integers(1, 90), max_size=3)))]
    sources = {
        name: SourceSettings(paths=[name], role=role, weight=draw(st.integers(1, 9)), max_epochs=limit)  # type: ignore[arg-type]
        for name, role, limit in zip(names, roles, limits, strict=True)
    }
    phases = [
        phase(start, draw(st.sampled_from([None, 0.1, 0.5])), **{names[-1]: draw(st.integers(0, 5))})
        for start in starts
    ]
    data = DataSettings(
        sequence_length=draw(st.integers(1, 50)),
        replay_ratio=draw(st.sampled_from([0.25, 0.3])),
        sources=sources,
        phases=phases,
        when_exhausted="redistribute",
    )
    return data, {name: draw(st.integers(1, 2000)) for name in names}


@settings(max_examples=60, deadline=None)
@given(limited())
def test_limits_are_met_exactly_and_every_phase_keeps_the_replay_ratio(
    case: tuple[DataSettings, dict[str, int]],
) -> None:
    data, tokens = case
    blend = plan_blend(data, blend_streams(data, tokens), 400, seed=1, step_sequences=4)
    allowed = {
        name: floor(Fraction(repr(source.max_epochs)) * tokens[name] / data.sequence_length)
        for name, source in data.sources.items()
        if source.max_epochs is not None
    }
    located = blend.order.locate(np.arange(400)).source
    ends = [*(phase.first_sequence for phase in blend.phases[1:]), 400]
    for phase_, end in zip(blend.phases, ends, strict=True):
        settings_ = [
            each
            for each in data.phases
            if each.from_tokens.whole_steps(4 * data.sequence_length) * 4 <= phase_.first_sequence
        ]
        ratio = settings_[-1].replay_ratio or data.replay_ratio
        replayed = [share for share, role in zip(phase_.shares, blend.roles, strict=True) if role == "replay"]
        assert sum(replayed) == Fraction(repr(ratio))
        weights = data.in_phase(settings_[-1]).sources
        before = blend.source_sequences(phase_.first_sequence)
        for number, name in enumerate(blend.sources):
            out = name in allowed and before[name] >= allowed[name]
            assert (phase_.shares[number] == 0) == (out or weights[name].weight == 0)
            given_ = int((located[phase_.first_sequence : end] == number).sum())
            assert abs(given_ - (end - phase_.first_sequence) * phase_.shares[number]) < 2
    for name, most in allowed.items():
        assert blend.source_sequences(400)[name] <= most


@settings(max_examples=40, deadline=None)
@given(limited(), st.integers(1, 99))
def test_a_longer_run_begins_with_the_shorter_one(case: tuple[DataSettings, dict[str, int]], steps: int) -> None:
    data, tokens = case
    short = plan_blend(data, blend_streams(data, tokens), 4 * steps, seed=1, step_sequences=4)
    long = plan_blend(data, blend_streams(data, tokens), 400, seed=1, step_sequences=4)
    assert short.fingerprint(4 * steps) == long.fingerprint(4 * steps)
    assert short.source_sequences(4 * steps) == long.source_sequences(4 * steps)
