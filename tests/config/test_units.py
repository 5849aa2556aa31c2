from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.schema import CheckpointSettings
from megatron_cpt.config.units import (
    Duration,
    parse_count,
    parse_duration,
    parse_number,
    parse_share,
    parse_wall_time,
    share_of_peak,
    short_count,
    wall_seconds,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (7, 7),
        ("1_000", 1000),
        ("300M", 300_000_000),
        ("4.1B", 4_100_000_000),
        ("0.3k", 300),
        (" 2 K ", 2000),
        ("2e9", 2_000_000_000),
        ("1e+3", 1000),
        (5e9, 5_000_000_000),
        (1e17, 10**17),
        ("1T", 10**12),
    ],
)
def test_counts_are_exact_and_take_suffixes(text: object, amount: int) -> None:
    assert parse_count(text) == amount


@pytest.mark.parametrize(
    "value", [True, None, "five", "", "-3", -3, "1.5", 0.1, "1.0001K", float("nan"), [1], "1+0", "1e999999999", "5G"]
)
def test_what_is_not_a_count_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_count(value)


def test_a_count_beyond_all_sums_is_refused() -> None:
    assert parse_count("1000000T") == 10**18
    for value in ("1000001T", 10**24, 1e22):
        with pytest.raises(ValueError, match=r"is more than any run counts \(1000000T\); lower it"):
            parse_count(value)
        with pytest.raises(ValueError, match="is more than any run counts"):
            parse_duration(value)


@given(st.integers(0, 10**9), st.sampled_from(["", "K", "M", "B"]))
def test_a_count_survives_its_text(amount: int, suffix: str) -> None:
    scale = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}[suffix]
    assert parse_count(f"{amount}{suffix}") == amount * scale


def test_numbers_may_be_text_and_never_words() -> None:
    assert parse_number("1e-3") == 0.001
    assert parse_number(2) == 2.0
    for value in (True, None, "fast", [1], {}, 10**400):
        with pytest.raises(ValueError, match="is not a number"):
            parse_number(value)


def test_durations_carry_their_unit() -> None:
    assert parse_duration("100 steps") == Duration(100, "steps")
    assert parse_duration("1 step") == Duration(1, "steps")
    assert parse_duration("2K  steps") == Duration(2000, "steps")
    assert parse_duration("5B tokens") == parse_duration("5B") == parse_duration(5_000_000_000)
    assert parse_duration({"amount": 3, "unit": "steps"}) == Duration(3, "steps")
    for value in ("100 epochs", "steps", "1.5 steps", "100steps", True, None, {"amount": 3}):
        with pytest.raises(ValueError, match="100 steps"):
            parse_duration(value)


def test_tokens_become_the_nearest_whole_step_and_at_least_one() -> None:
    assert [Duration(amount).steps(100) for amount in (1, 149, 150, 1000)] == [1, 1, 2, 10]
    assert Duration(7, "steps").steps(100) == 7
    assert Duration(7, "steps").tokens(100) == 700
    assert Duration(7).tokens(100) == 7


@given(st.integers(0, 10**13), st.sampled_from(["steps", "tokens"]))
def test_a_duration_survives_its_text(amount: int, unit: str) -> None:
    assert parse_duration(str(Duration(amount, unit))) == Duration(amount, unit)


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13_800), ("90s", 90), ("1d", 86_400), ("2d3h4m5s", 183_845), ("90m", 5_400)]
)
def test_wall_time_has_units(text: str, seconds: int) -> None:
    assert parse_wall_time(text) == text
    assert wall_seconds(text) == seconds


@pytest.mark.parametrize("value", [230, "3:50", "50m3h", "1.5h", "", "h", None, True, "0s", "3 h", "-1h"])
def test_what_is_not_a_wall_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"3h50m|no time at all"):
        parse_wall_time(value)


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("30 %", 0.3), ("100%", 1.0), ("0.3", 0.3), (1, 1.0)])
def test_a_share_is_a_number_or_a_percentage(text: object, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("value", [True, None, "101%", "-1%", 1.5, "nan", "nan%", "inf", "%", "half", "5%%"])
def test_what_is_no_share_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        parse_share(value)


def test_percentages_are_understood_wherever_a_share_is_meant() -> None:
    assert share_of_peak("20% of peak") == share_of_peak("0.2 of peak") == 0.2
    for text in ("20 of peak", "100% of peak", "20%% of peak", "% of peak"):
        with pytest.raises(ValueError, match=r"is no(t a number| share of the peak)"):
            share_of_peak(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999, "999"),
        (999.6, "1.00K"),
        (1000, "1.00K"),
        (12_345, "12.3K"),
        (1.5e9, "1.50B"),
        (1234, "1.23K"),
        (99_949, "99.9K"),
        (999_499, "999K"),
        (999_500, "1.00M"),
        (45_600_000, "45.6M"),
        (5 * 10**9, "5.00B"),
        (15 * 10**12, "15.0T"),
    ],
)
def test_counts_have_three_digits(count: float, text: str) -> None:
    assert short_count(count) == text


def test_checkpoints_that_stay_are_as_many_saves_apart_as_the_tokens_say() -> None:
    kept = CheckpointSettings(save_interval=Duration(100_000), keep_every=Duration(500_000))
    assert kept.keep_every_steps(2048) == 5 * 49
    assert replace(kept, keep_every=Duration(150_000)).keep_every_steps(2048) == 73
    assert replace(kept, keep_every=Duration(98, "steps")).keep_every_steps(2048) == 98
    assert replace(kept, keep_every=None).keep_every_steps(2048) is None
