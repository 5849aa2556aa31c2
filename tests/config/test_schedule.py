import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.schedule import Areas, learning_rate
from megatron_cpt.config.schema import PieceSettings, ScheduleSettings
from megatron_cpt.config.units import Duration

STEP = 100  # tokens of an update


def rates(schedule: ScheduleSettings, steps: int) -> list[float]:
    return [learning_rate(schedule, step * STEP, steps * STEP, STEP) for step in range(1, steps + 1)]


def test_warmup_rises_from_0_and_its_first_update_is_not_0() -> None:
    schedule = ScheduleSettings(kind="constant", peak_lr=0.4, warmup=Duration(4, "steps"))
    assert rates(schedule, 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_warmup_in_tokens_need_not_be_whole_steps() -> None:
    schedule = ScheduleSettings(kind="constant", peak_lr=0.5, warmup=Duration(250))
    assert rates(schedule, 4) == pytest.approx([0.2, 0.4, 0.5, 0.5])


def test_linear() -> None:
    schedule = ScheduleSettings(kind="linear", peak_lr=1.0, final_lr=0.2, warmup=Duration(1, "steps"))
    assert rates(schedule, 5) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine() -> None:
    schedule = ScheduleSettings(kind="cosine", peak_lr=1.0, final_lr=0.0)
    half = math.sqrt(0.5) / 2
    assert rates(schedule, 4) == pytest.approx([0.5 + half, 0.5, 0.5 - half, 0.0])


def test_wsd_is_stable_and_then_decays_linearly() -> None:
    schedule = ScheduleSettings(
        kind="wsd", peak_lr=1.0, final_lr=0.1, warmup=Duration(2, "steps"), decay=Duration(3, "steps")
    )
    assert rates(schedule, 8) == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, 0.7, 0.4, 0.1])


def test_wsd_decays_over_a_tenth_of_the_run_unless_told() -> None:
    schedule = ScheduleSettings(kind="wsd", peak_lr=1.0)
    assert rates(schedule, 20)[-4:] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert rates(schedule, 3) == [1.0, 1.0, 0.0]


QUARTERS = [0.8535534, 0.5, 0.1464466, 0.0]  # half of 1 + cos(pi p) at p = 1/4, 1/2, 3/4, 1


def test_rewarming_and_redecaying() -> None:
    """arXiv:2403.08763: linear from the base run's final rate to a new peak, then a cosine over the new budget."""
    schedule = ScheduleSettings(kind="cosine", peak_lr=1.0, final_lr=0.1, initial_lr=0.1, warmup=Duration(3, "steps"))
    assert rates(schedule, 7) == pytest.approx([0.4, 0.7, 1.0, 0.8681981, 0.55, 0.2318019, 0.1])


def test_restarting_without_rewarming() -> None:
    """arXiv:2407.07263: from the base run's final rate, 4.5e-5, by a cosine to a hundredth of it."""
    schedule = ScheduleSettings(kind="cosine", peak_lr=4.5e-5, final_lr=4.5e-7)
    assert rates(schedule, 4) == pytest.approx([3.847580e-5, 2.2725e-5, 6.974196e-6, 4.5e-7])
    # Its second blend begins where the rate has come down to a fifth: at 71.1 % of the run.
    assert rates(schedule, 1000)[710] == pytest.approx(9e-6, rel=2e-3)


@pytest.mark.parametrize(
    ("shape", "final", "expected"),
    [
        ("linear", 0.0, [0.75, 0.5, 0.25, 0.0]),
        ("cosine", 0.0, QUARTERS),
        ("exponential", 1e-4, [0.1, 0.01, 0.001, 1e-4]),
        ("1-sqrt", 0.0, [0.5, 0.2928932, 0.1339746, 0.0]),
    ],
)
def test_shapes_of_the_final_decay(shape: str, final: float, expected: list[float]) -> None:
    """arXiv:2404.06395 (wsd), arXiv:2405.18392 (1-sqrt)."""
    schedule = ScheduleSettings(
        kind="wsd",
        peak_lr=1.0,
        final_lr=final,
        decay=Duration(4, "steps"),
        decay_shape=shape,  # type: ignore[arg-type]
    )
    assert rates(schedule, 6) == pytest.approx([1.0, 1.0, *expected])


def test_infinite_warms_cools_down_stays_and_anneals() -> None:
    """arXiv:2403.08763: the annealing is exponential, so half of its way is the geometric mean of its ends."""
    schedule = ScheduleSettings(
        kind="infinite",
        peak_lr=1.0,
        plateau_lr=0.1,
        final_lr=0.01,
        warmup=Duration(2, "steps"),
        cooldown=Duration(4, "steps"),
        decay=Duration(2, "steps"),
    )
    expected = [0.5, 1.0, 0.8681981, 0.55, 0.2318019, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0316228, 0.01]
    assert rates(schedule, 12) == pytest.approx(expected)


def test_pieces_drop_at_their_places() -> None:
    """Two stages, as in the curves of arXiv:2503.12811: 3e-4, and 9e-5 from the fourth update on."""
    pieces = [PieceSettings(from_tokens=Duration(3, "steps"), lr=9e-5)]
    schedule = ScheduleSettings(kind="piecewise", peak_lr=3e-4, warmup=Duration(2, "steps"), pieces=pieces)
    assert rates(schedule, 5) == pytest.approx([1.5e-4, 3e-4, 3e-4, 9e-5, 9e-5])


def test_a_longer_run_goes_on_with_a_schedule_whose_past_does_not_depend_on_its_end() -> None:
    """Stopped after 6 updates of a planned 12 and continued to 20: the first 6 rates are the same."""
    infinite = ScheduleSettings(
        kind="infinite",
        peak_lr=1.0,
        plateau_lr=0.5,
        final_lr=0.1,
        cooldown=Duration(4, "steps"),
        decay=Duration(2, "steps"),
    )
    assert rates(infinite, 12)[:6] == rates(infinite, 20)[:6]
    assert rates(infinite, 20)[9:18] == [0.5] * 9


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd", "infinite", "piecewise"])
@pytest.mark.parametrize("done", [1, 5, 9])
def test_the_rest_of_a_schedule_has_the_rates_of_the_whole(kind: str, done: int) -> None:
    schedule = ScheduleSettings(
        kind=kind,  # type: ignore[arg-type]
        peak_lr=1.0,
        final_lr=0.1,
        warmup=Duration(3, "steps"),
        cooldown=Duration(2, "steps") if kind == "infinite" else None,
        plateau_lr=0.5 if kind == "infinite" else None,
        pieces=[PieceSettings(from_tokens=Duration(7, "steps"), lr=0.3)] if kind == "piecewise" else [],
    )
    rest = replace(schedule, consumed=Duration(done, "steps"))
    assert rates(rest, 12 - done) == rates(schedule, 12)[done:]


def test_a_schedule_ends_before_the_run_or_after_it() -> None:
    schedule = ScheduleSettings(kind="cosine", peak_lr=1.0, final_lr=0.2, tokens=Duration(4, "steps"))
    whole = rates(replace(schedule, tokens=None), 4)
    assert rates(schedule, 6) == [*whole, 0.2, 0.2]
    assert rates(schedule, 3) == whole[:3]


@given(
    kind=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    peak=st.floats(1e-9, 10),
    share=st.floats(0, 1),
    steps=st.integers(2, 500),
    warmup=st.integers(0, 1),
)
def test_rates_stay_between_their_ends_and_reach_the_last_exactly(
    kind: str, peak: float, share: float, steps: int, warmup: int
) -> None:
    final = peak * share
    schedule = ScheduleSettings(
        kind=kind,  # type: ignore[arg-type]
        peak_lr=peak,
        final_lr=final,
        warmup=Duration(warmup, "steps") if warmup else None,
    )
    series = rates(schedule, steps)
    assert series[-1] == (peak if kind == "constant" else final)
    assert all(final * (1 - 1e-12) <= rate <= peak * (1 + 1e-12) for rate in series)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(series))


def test_a_run_that_is_all_warmup_ends_at_its_final_rate() -> None:
    schedule = ScheduleSettings(kind="cosine", peak_lr=1.0, final_lr=0.1, warmup=Duration(4, "steps"))
    assert rates(schedule, 4) == pytest.approx([0.25, 0.5, 0.75, 0.1])


def areas(rates: Sequence[float], decay: float = 0.999, before: float | None = None) -> Areas:
    summed = Areas(before, decay)
    for rate in rates:
        summed.add(rate)
    return summed


def test_forward_area_is_the_sum_of_the_rates() -> None:
    assert areas([0.1] * 10).forward == pytest.approx(1.0, rel=1e-15)
    assert (areas([]).forward, areas([]).peak, areas([]).final) == (0.0, None, None)
    assert (areas([1e-4, 1e-3, 0.0]).peak, areas([1e-4, 1e-3, 0.0]).final) == (1e-3, 0.0)


def test_annealing_area_by_hand() -> None:
    # m = 0, 1, 0.5 * 1 + 1 = 1.5, 0.5 * 1.5 - 2 = -1.25
    assert areas([4.0, 3.0, 2.0, 4.0], 0.5).annealing == 0 + 1 + 1.5 - 1.25
    # The same after a rate of 5: m = 1, 1.5, 1.75, -1.125
    assert areas([4.0, 3.0, 2.0, 4.0], 0.5, 5.0).annealing == 1 + 1.5 + 1.75 - 1.125


def test_annealing_area_of_a_linear_decay_is_that_of_the_paper() -> None:
    # 2e-4 to 0 over 20,000 updates: about 0.190 of the 0.2 = 2e-4 / (1 - 0.999) reached in the limit.
    decay = [2e-4 * (1 - step / 20_000) for step in range(20_001)]
    assert areas(decay).annealing == pytest.approx(0.190, abs=5e-4)
    assert areas([*decay, *[0.0] * 20_000]).annealing == pytest.approx(0.2, rel=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 0.999))
def test_annealing_area_equals_the_double_sum_of_its_definition(series: list[float], decay: float) -> None:
    # Without a rate before, the first rise is level.
    falls = [number for number in range(1, len(series)) if series[number] < series[number - 1]]
    peak = falls[0] - 1 if falls else len(series) - 1
    eta = [*[series[peak]] * (peak + 1), *series[peak:]]
    double_sum = sum((eta[k - 1] - eta[k]) * decay ** (i - k) for i in range(1, len(eta)) for k in range(1, i + 1))
    assert areas(series, decay).annealing == pytest.approx(double_sum, abs=1e-9)
