"""text.py: numbers and tables, by literal strings."""

import pytest

from megatron_cpt.planning.text_tables import columns, percent, quantity, size


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.6, "1.00K"),
        (12_345, "12.3K"),
        (999_600, "1.00M"),
        (1.5e9, "1.50B"),
        (15e12, "15.0T"),
    ],
)
def test_quantities(number: float, text: str) -> None:
    assert quantity(number) == text


def test_shares_and_bytes() -> None:
    assert percent(0.2997) == "29.97 %"
    assert [size(512), size(3 * 2**20), size(1.5 * 2**30)] == ["0.50 KiB", "3.00 MiB", "1.50 GiB"]


def test_columns_are_aligned() -> None:
    assert columns([["name", "n"], ["a", "10"]], "lr") == ["name   n", "a     10"]
    assert columns([["n", "name"], ["10", "a"]], "rl") == [" n  name", "10  a"]
