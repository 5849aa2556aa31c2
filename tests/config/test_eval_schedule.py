import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.eval_schedule import LogSpaced, evaluation_steps, parse_log_spaced, subsampled
from megatron_cpt.config.schema import EvalIntervalSettings
from megatron_cpt.config.units import Duration

STEP = 1000  # tokens of an update


def test_by_default_before_the_first_update_and_after_the_last() -> None:
    assert evaluation_steps(EvalIntervalSettings(), 250, STEP) == (0, 250)
    assert evaluation_steps(EvalIntervalSettings(start=False, end=False), 250, STEP) == ()


def test_log_marks_are_dense_early() -> None:
    marks = EvalIntervalSettings(log_spaced="4 per decade to 100 steps", end=False)
    assert evaluation_steps(marks, 250, STEP) == (0, 1, 2, 3, 6, 10, 18, 32, 56, 100)


def test_log_marks_may_end_at_tokens_and_end_with_the_run() -> None:
    marks = EvalIntervalSettings(log_spaced="1 per decade to 5M tokens")
    assert evaluation_steps(marks, 10_000, STEP) == (0, 1, 10, 100, 1000, 10_000)
    assert evaluation_steps(marks, 50, STEP) == (0, 1, 10, 50)


def test_regular_marks_are_multiples_in_whole_steps() -> None:
    assert evaluation_steps(EvalIntervalSettings(every=Duration(40, "steps")), 100, STEP) == (0, 40, 80, 100)
    assert evaluation_steps(EvalIntervalSettings(every=Duration(39_600)), 100, STEP) == (0, 40, 80, 100)
    assert evaluation_steps(EvalIntervalSettings(every=Duration(1)), 3, STEP) == (0, 1, 2, 3)


def test_marks_unite_and_those_beyond_the_end_are_dropped() -> None:
    marks = EvalIntervalSettings(
        log_spaced="2 per decade to 10 steps",
        every=Duration(5, "steps"),
        at=[Duration(7, "steps"), Duration(12_000), Duration(13, "steps")],
    )
    assert evaluation_steps(marks, 12, STEP) == (0, 1, 3, 5, 7, 10, 12)


def test_the_grammar_of_log_marks() -> None:
    assert parse_log_spaced("8 per decade to 1000 steps") == LogSpaced(8, Duration(1000, "steps"))
    assert parse_log_spaced(" 8  per decade to 5M tokens ") == LogSpaced(8, Duration(5_000_000))
    assert parse_log_spaced("1 per decade to 1 step") == LogSpaced(1, Duration(1, "steps"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "8 per decade",
        "8 per decade to 1000",
        "8 per decade to 1.5 steps",
        "8 per decade to 0 steps",
        "0 per decade to 9 steps",
        "-8 per decade to 9 steps",
        "eight per decade to 9 steps",
        "8 per octave to 9 steps",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not of the form|not a duration|before the first update"):
        parse_log_spaced(text)


@given(
    per_decade=st.integers(1, 40),
    end=st.integers(1, 5000),
    every=st.none() | st.integers(1, 3000),
    at=st.lists(st.integers(1, 6000), max_size=4),
    total=st.integers(1, 5000),
)
def test_marks_are_sorted_single_and_inside_the_run(
    per_decade: int, end: int, every: int | None, at: list[int], total: int
) -> None:
    settings = EvalIntervalSettings(
        log_spaced=f"{per_decade} per decade to {end} steps",
        every=Duration(every, "steps") if every else None,
        at=[Duration(step, "steps") for step in at],
    )
    marks = evaluation_steps(settings, total, STEP)
    assert list(marks) == sorted(set(marks))
    assert marks[:2] == (0, 1)
    assert marks[-1] == total
    assert {step for step in at if step <= total} <= set(marks)


def test_marks_are_thinned_evenly_and_never_at_the_ends() -> None:
    marks = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55)
    assert subsampled(marks, 1) == marks
    assert subsampled(marks, 0.5) == (0, 2, 5, 13, 34, 55)
    assert subsampled(marks, 0.3) == (0, 3, 21, 55)
    assert subsampled(marks, 0) == (0, 55)
    assert subsampled((0, 7), 0) == (0, 7) and subsampled((7,), 0) == (7,) and subsampled((), 0) == ()


@given(st.sets(st.integers(0, 1000)), st.floats(0, 1))
def test_thinned_marks_are_marks(steps: set[int], share: float) -> None:
    marks = tuple(sorted(steps))
    kept = subsampled(marks, share)
    assert set(kept) <= steps and list(kept) == sorted(set(kept))
    assert len(kept) == min(len(marks), 2 + int(share * max(0, len(marks) - 2)))
