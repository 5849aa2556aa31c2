"""The table of rows: every row has tests that are there, and the page says what they gave."""

from tests.reliability.battery import PAGE, ROOT, own_tests, page, rows_with_tests
from tests.reliability.rows import ROWS


def test_there_are_67_rows() -> None:
    numbers = {"P": 13, "D": 13, "C": 15, "R": 8, "F": 10, "S": 8}
    assert list(ROWS) == [f"{letter}{number + 1}" for letter, count in numbers.items() for number in range(count)]


def test_every_test_that_a_row_names_is_there() -> None:
    for name, tests in rows_with_tests().items():
        for test in tests:
            file, function = test.split("::")
            assert f"\ndef {function}(" in (ROOT / "tests" / file).read_text(), f"{name}: {test}"


def test_every_test_of_this_folder_is_of_a_row() -> None:
    assert set(own_tests()) <= set(ROWS)


def test_the_page_is_written_from_the_results() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.reliability.battery --page"
