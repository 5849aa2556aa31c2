"""Runs over seeds: grouped, averaged, and their differences judged."""

import pytest

from megatron_cpt.gap.compare import MeasuredRun, Spread, arm_differences, group_arms, holm, two_sided_p_value, welch
from megatron_cpt.gap.figures import gap_figures
from tests.gap.test_figures import curve


def run(name: str, seed: int, peak: float, losses: list[float]) -> MeasuredRun:
    config = f"run:\n  folder: runs/{name}\n  seed: {seed}\nschedule:\n  peak_lr: {peak}\n"
    measured = curve(losses)
    return MeasuredRun(name, config, [(measured, gap_figures(measured))])


NAIVE = [
    run("naive-seed1", 1, 1e-3, [4.0, 4.5, 4.2, 4.3]),
    run("naive-seed2", 2, 1e-3, [4.0, 4.7, 4.2, 4.4]),
    run("naive-seed3", 3, 1e-3, [4.0, 4.6, 4.2, 4.5]),
]
GENTLE = [
    run("gentle-seed1", 1, 1e-4, [4.0, 4.1, 4.0, 4.0]),
    run("gentle-seed2", 2, 1e-4, [4.0, 4.2, 4.3, 4.31]),
]


def test_runs_that_differ_only_in_seed_and_folder_are_one_arm():
    naive, gentle = group_arms([NAIVE[0], GENTLE[0], *NAIVE[1:], GENTLE[1]])
    assert (naive.name, naive.runs, naive.seeds) == ("naive", ["naive-seed1", "naive-seed2", "naive-seed3"], [1, 2, 3])
    assert (gentle.name, gentle.seeds) == ("gentle", [1, 2])


def test_every_figure_has_its_mean_and_standard_deviation():
    naive, gentle = group_arms([*NAIVE, *GENTLE])
    figures = naive.sets["general"].figures
    assert figures["depth"].mean == pytest.approx(0.6) and figures["depth"].sd == pytest.approx(0.1)
    assert figures["final"].mean == pytest.approx(0.4) and figures["final"].sd == pytest.approx(0.1)
    assert figures["depth_tokens"] == Spread(100.0, 0.0, 3)
    assert figures["recovery_tokens"] == Spread(None, None, 0)
    # One of two recovered: its tokens alone, and no deviation.
    assert gentle.sets["general"].figures["recovery_tokens"] == Spread(200.0, None, 1)
    assert gentle.sets["general"].recovery == {"not_needed": 0, "recovered": 1, "not_recovered": 1}


def test_a_repeated_seed_and_a_run_without_config_are_not_averaged():
    twice = group_arms([NAIVE[0], NAIVE[0]])
    assert [arm.name for arm in twice] == ["naive-seed1 (1)", "naive-seed1 (2)"]
    foreign = [MeasuredRun(name, None, NAIVE[0].sets) for name in ("a", "b")]
    assert [arm.seeds for arm in group_arms(foreign)] == [[None], [None]]


def test_runs_at_other_marks_or_on_other_sets_are_not_averaged():
    shorter = run("naive-seed4", 4, 1e-3, [4.0, 4.5, 4.2])
    (arm,) = group_arms([NAIVE[0], shorter])
    assert "same steps" in (arm.sets["general"].missing or "") and arm.sets["general"].figures == {}
    without = MeasuredRun("naive-seed5", shorter.config.replace("seed: 4", "seed: 5"), [])  # type: ignore[union-attr]
    (arm,) = group_arms([NAIVE[0], without])
    assert arm.sets["general"].missing == "not evaluated in naive-seed5"
    broken = run("naive-seed6", 6, 1e-3, [4.0, 4.5, float("nan"), 4.3])
    (arm,) = group_arms([NAIVE[0], broken])
    assert arm.sets["general"].missing == "naive-seed6: the loss is not finite at step 2"


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    # The two-sided 5 % and 1 % points of printed tables of Student's t; the normal one last.
    [(12.7062, 1, 0.05), (2.7764, 4, 0.05), (4.6041, 4, 0.01), (2.0423, 30, 0.05), (1.9600, 1e5, 0.05), (0, 7, 1)],
)
def test_the_tails_of_students_t(t: float, freedom: float, p: float):
    assert two_sided_p_value(t, freedom) == pytest.approx(p, rel=2e-4)
    assert two_sided_p_value(-t, freedom) == pytest.approx(p, rel=2e-4)


def test_welch_in_literal_numbers():
    # sd^2/n = 0.01/4 and 0.04/4; difference 0.3: t = 0.3/sqrt(0.0125); v = 0.0125^2/((0.0025^2 + 0.01^2)/3).
    found = welch(Spread(1.0, 0.1, 4), Spread(1.3, 0.2, 4))
    assert found is not None
    assert found[0] == pytest.approx(0.1118034) and found[1] == pytest.approx(4.4117647)
    assert found[2] == pytest.approx(two_sided_p_value(2.6832816, 4.4117647))
    assert welch(Spread(1.0, None, 1), Spread(1.3, 0.2, 4)) is None
    assert welch(Spread(1.0, 0.0, 2), Spread(1.0, 0.0, 2)) is None


def test_holm_in_literal_numbers():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_differences_are_judged_against_the_seeds():
    depth = next(item for item in arm_differences(group_arms([*NAIVE, *GENTLE])) if item.figure == "depth")
    assert depth.arms == ("naive", "gentle")
    assert depth.difference == pytest.approx((0.1 + 0.31) / 2 - 0.6)
    # A large difference, but two runs of 0.1 and 0.31 say little.
    assert depth.p_value is not None and depth.p_value > 0.05 and depth.significant is False
    close = [run(f"low-{seed}", seed, 1e-5, [4.0, 4.1 + seed / 1000, 4.1, 4.1]) for seed in range(4)]
    depth = next(item for item in arm_differences(group_arms([*NAIVE, *close])) if item.figure == "depth")
    assert depth.significant is True


def test_an_arm_of_one_run_cannot_be_judged():
    for item in arm_differences(group_arms([NAIVE[0], GENTLE[0]])):
        assert item.p_value is None and item.significant is None
