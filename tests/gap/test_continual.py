"""Measures of continual evaluation, in literal numbers."""

import numpy as np
import pytest

from megatron_cpt.gap.curves import WRONG, LossCurve
from megatron_cpt.gap.figures import continual_measures, equally_spaced, largest_fall


def accuracy(name: str, role: str, values: list[float], tokens: list[int] | None = None) -> LossCurve:
    marks = np.arange(len(values)) if tokens is None else np.array(tokens)
    return LossCurve(name, role, "id", marks, marks * 100, 1 - np.array(values), unit=WRONG)


def test_minimum_and_worst_case() -> None:
    curves = [
        accuracy("a", "general", [0.8, 0.5, 0.7]),
        accuracy("b", "general", [0.6, 0.6, 0.4]),
        accuracy("new", "domain", [0.3, 0.2, 0.9]),
    ]
    found = continual_measures(curves)
    assert found.min_accuracy == pytest.approx(0.45)
    assert found.worst_case_accuracy == pytest.approx(0.9 / 3 + 0.45 * 2 / 3)
    assert found.windowed_forgetting == {"10": None, "100": None}
    assert continual_measures(curves[:2]).worst_case_accuracy is None
    # An evaluation that is not finite is left out, and is no accuracy at the end.
    broken = [accuracy("a", "general", [0.8, 0.5, np.nan, 0.7]), accuracy("new", "domain", [0.3, np.nan, 0.9])]
    assert continual_measures(broken).worst_case_accuracy == pytest.approx(0.9 / 2 + 0.5 / 2)
    assert continual_measures([broken[0], accuracy("new", "domain", [0.3, np.nan])]).worst_case_accuracy is None
    assert continual_measures(curves[2:]).min_accuracy is None


def test_marks_count_from_the_first_update_on_where_none_was_before_it() -> None:
    unmeasured = accuracy("a", "general", [0.5, 0.55, 0.6], [1, 2, 3])
    assert continual_measures([unmeasured]).min_accuracy == pytest.approx(0.5)
    assert continual_measures([accuracy("a", "general", [0.5], [7])]).min_accuracy == pytest.approx(0.5)
    assert continual_measures([accuracy("a", "general", [0.5], [0])]).min_accuracy is None


def test_windows_see_falls_and_gains() -> None:
    values = [0.5, 0.6, 0.3, 0.4, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7]
    found = continual_measures([accuracy("a", "general", values)])
    assert found.windowed_forgetting["10"] == pytest.approx(0.3)
    assert found.windowed_plasticity["10"] == pytest.approx(0.6)
    assert largest_fall(np.array([3.0, 1.0, 2.0, 0.0]), 2) == 2.0
    assert largest_fall(np.array([3.0, 1.0, 2.0, 0.0]), 4) == 3.0
    assert largest_fall(np.array([1.0, 2.0]), 3) is None


def test_log_spaced_marks_and_a_crooked_end_are_left_out() -> None:
    tokens = np.array([0, 1, 2, 3, 5, 8, 10, 20, 30, 40, 47]) + 7
    assert equally_spaced(tokens).tolist() == [0, 6, 7, 8, 9]
    assert equally_spaced(np.array([5])).tolist() == [0]
