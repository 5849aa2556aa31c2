import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.quality.score import histogram_lines


def counted(lines: list[str]) -> int:
    return sum(int(line.split(" to ")[1].split()[1].replace(",", "")) for line in lines if " to " in line)


def test_literal_bins() -> None:
    lines = histogram_lines(np.array([0, 0, 0, 0, 12, 12, 5.5]))
    assert lines[0] == "0 to 1   4 ########################################"
    assert lines[1] == "1 to 2   0"
    assert lines[5] == "5 to 6   1 ##########"
    assert lines[11] == "11 to 12 2 ####################"
    assert len(lines) == 12


def test_what_spreads_far_is_binned_by_logarithms() -> None:
    lines = histogram_lines(np.array([1] * 50 + [4096]))
    assert lines[0] == "1 to 2         50 ########################################"
    assert lines[-1] == "2,048 to 4,096  1 #"


def test_one_value_and_values_that_are_none() -> None:
    assert histogram_lines(np.array([3.0, 3.0])) == ["3 to 3 2 ########################################"]
    assert histogram_lines(np.array([np.inf, 1.0]))[-1] == "not finite: 1"
    assert histogram_lines(np.array([])) == histogram_lines(np.array([np.nan])) == ["no values"]


@given(st.lists(st.floats(-1e30, 1e30) | st.integers(0, 10), min_size=1, max_size=50))
def test_every_value_is_in_one_bin(values: list[float]) -> None:
    assert counted(histogram_lines(np.array(values, np.float64))) == len(values)
