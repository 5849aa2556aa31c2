"""Windows of long texts, and examples before questions, in literal numbers."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.tasks.task_files import Question, windows, with_examples


def test_the_first_window_begins_at_the_text_and_the_last_is_full() -> None:
    found = windows([1, 2, 3, 4, 5, 6, 7], longest=4, opening=0)
    assert [(window.ids, window.scored) for window in found] == [
        ((0, 1, 2, 3), 3),
        ((3, 4, 5, 6), 3),
        ((4, 5, 6, 7), 1),
    ]
    assert [(window.ids, window.scored) for window in windows([1, 2], longest=4, opening=0)] == [((0, 1, 2), 2)]
    assert windows([], longest=4, opening=0) == []


@given(st.integers(0, 50), st.integers(2, 9))
def test_every_token_is_predicted_once_and_in_order(count: int, longest: int) -> None:
    ids = list(range(1, count + 1))
    found = windows(ids, longest, opening=0)
    assert [token for window in found for token in window.ids[len(window.ids) - window.scored :]] == ids
    assert all(len(window.ids) <= longest and window.scored < len(window.ids) for window in found)


def test_examples_are_solved_and_divided_by_an_empty_line() -> None:
    shown, asked = Question("1", "Is it?", ("no", "yes"), 1), Question("2", "And now?", ("x", "y"), 0)
    assert with_examples(asked, [shown], " ").prompt == "Is it? yes\n\nAnd now?"
    assert with_examples(asked, [], " ") == asked
