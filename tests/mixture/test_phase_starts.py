"""Phases that ramp, and phases that begin at a learning rate or with an epoch of a source."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schedule import phase_steps
from megatron_cpt.config.schema import DataSettings, PhaseSettings, SourceSettings
from megatron_cpt.config.units import Duration
from megatron_cpt.mixture.blend import BlendPlan, plan_blend
from megatron_cpt.mixture.phases import blend_streams
from tests.config.examples import config_with

START = PhaseSettings(from_tokens=Duration(0))
STEP = 4


def planned(
    *phases: PhaseSettings,
    sequences: int = 400,
    when: str = "error",
    tokens: dict[str, int] | None = None,
    max_epochs: float | None = None,
) -> BlendPlan:
    """Steps of four sequences of ten tokens."""
    data = DataSettings(
        sequence_length=10,
        replay_ratio=0.5,
        sources={
            "law": SourceSettings(paths=["l"], max_epochs=max_epochs),
            "code": SourceSettings(paths=["c"]),
            "web": SourceSettings(paths=["w"], role="replay"),
        },
        phases=list(phases),
        when_exhausted=when,  # type: ignore[arg-type]
    )
    tokens = tokens or {"law": 500, "code": 10_000, "web": 10_000}
    return plan_blend(data, blend_streams(data, tokens), sequences, seed=1, step_sequences=STEP)


def at(steps: int, **more: object) -> PhaseSettings:
    return PhaseSettings(from_tokens=Duration(steps, "steps"), **more)  # type: ignore[arg-type]


def test_a_ramp_is_pieces_that_give_what_a_line_would() -> None:
    ramp = at(10, replay_ratio=0.1, ramp=Duration(4, "steps"))
    blend = planned(START, ramp)
    assert [phase.first_sequence for phase in blend.phases] == [0, 40, 44, 48, 52, 56]
    replayed = [phase.shares[2] for phase in blend.phases]
    assert replayed == [Fraction(*pair) for pair in ((1, 2), (9, 20), (7, 20), (1, 4), (3, 20), (1, 10))]
    given_ = blend.source_sequences(56)["web"] - blend.source_sequences(40)["web"]
    assert abs(given_ - 16 * 0.3) < 2


def test_a_ramp_has_32_pieces_or_one_a_step() -> None:
    long = planned(START, at(10, replay_ratio=0.1, ramp=Duration(64, "steps"))).phases
    assert [phase.first_sequence for phase in long] == [0, *range(40, 297, 8)]
    assert len(planned(START, at(10, replay_ratio=0.1, ramp=Duration(5, "steps"))).phases) == 7


def test_a_phase_begins_with_the_step_after_an_epoch() -> None:
    """law: 50 sequences a pass at a quarter of the run; two passes are given by sequence 400."""
    blend = planned(START, PhaseSettings(from_epoch="1.5 of law", replay_ratio=0.9), sequences=600)
    first = blend.phases[1].first_sequence
    assert first % STEP == 0
    assert blend.source_sequences(first)["law"] >= 75 > blend.source_sequences(first - STEP)["law"]
    assert planned(START, PhaseSettings(from_epoch="3 of law")).phases == planned(START).phases


def test_epochs_and_tokens_that_are_out_of_order_are_refused() -> None:
    with pytest.raises(BadInput) as refusal:
        planned(START, PhaseSettings(from_epoch="1 of law"), at(20))
    assert "data.phases.1.from_epoch = 1 of law: it has not come by token 800" in str(refusal.value)
    blend = planned(START, PhaseSettings(from_epoch="1 of law"), PhaseSettings(from_epoch="1 of law"), at(80))
    assert [phase.number for phase in blend.phases] == [0, 1, 2, 3]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from([None, 0.4, 1.1]),
    st.integers(1, 99),
    st.booleans(),
)
def test_ramps_epochs_and_limits_leave_the_order_prefix_stable_and_exact(
    start: int, ramp: int, limit: float | None, steps: int, by_epoch: bool
) -> None:
    ramped = {"ramp": Duration(ramp, "steps"), "replay_ratio": 0.2}
    second = PhaseSettings(from_epoch="0.3 of law", **ramped) if by_epoch else at(start, **ramped)  # type: ignore[arg-type]
    long, short = (
        planned(START, second, sequences=count, when="redistribute", max_epochs=limit) for count in (400, STEP * steps)
    )
    assert short.fingerprint(STEP * steps) == long.fingerprint(STEP * steps)
    sources = long.order.locate(np.arange(400)).source
    ends = [*(phase.first_sequence for phase in long.phases[1:]), 400]
    for phase, end in zip(long.phases, ends, strict=True):
        assert sum(phase.shares) == 1
        counts = np.cumsum(sources[phase.first_sequence : end, None] == np.arange(3), axis=0)
        due = np.arange(1, end - phase.first_sequence + 1)[:, None] * np.array([float(share) for share in phase.shares])
        assert np.abs(counts - due).max() < 2
    if limit is not None:
        assert long.counts[0] <= -(-limit * 500 // 10)


def test_the_switch_at_a_fifth_of_the_peak_lies_at_71_per_cent_of_a_cosine_to_a_hundredth() -> None:
    config = config_with(
        data__phases=[{"from_tokens": 0}, {"from_lr": "0.2 of peak", "replay_ratio": 0.1}],
        training__tokens="1000 steps",
        schedule={"kind": "cosine", "peak_lr": 1e-3, "final_lr": 1e-5},
    )
    assert phase_steps(config) == [0, 711]


def test_a_rate_is_looked_for_after_the_peak_and_never_before() -> None:
    changes = {"data__phases": [{"from_tokens": 0}, {"from_lr": "0.5 of peak"}], "training__tokens": "100 steps"}
    linear = config_with(**changes, schedule={"kind": "linear", "peak_lr": 1.0, "warmup": "20 steps"})
    assert phase_steps(linear) == [0, 59]
    constant = config_with(**changes, schedule={"kind": "constant", "peak_lr": 1.0})
    assert phase_steps(constant) == [0, 100]
