"""text.py: numbers and tables, by literal strings."""

from megatron_cpt.planning.text_tables import columns, percent, size


def test_shares_and_bytes() -> None:
    assert percent(0.2997) == "29.97 %"
    assert [size(512), size(3 * 2**20), size(1.5 * 2**30)] == ["0.50 KiB", "3.00 MiB", "1.50 GiB"]


def test_columns_are_aligned() -> None:
    assert columns([["name", "n"], ["a", "10"]], "lr") == ["name   n", "a     10"]
    assert columns([["n", "name"], ["10", "a"]], "rl") == [" n  name", "10  a"]
