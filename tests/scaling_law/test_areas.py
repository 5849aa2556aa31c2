"""Areas of learning-rate schedules, against sums written out."""

import numpy as np
import pytest

from megatron_cpt.config.schedule import Areas
from megatron_cpt.scaling_law.laws import annealing_areas, forward_areas, rate_drops


def test_literal_areas():
    rates = np.array([2.0, 2.0, 1.0, 0.5])
    assert forward_areas(rates).tolist() == [2.0, 4.0, 5.0, 5.5]
    # momenta at decay 0.5: 0, 0, 1, 0.5 + 0.5
    assert annealing_areas(rates, decay=0.5).tolist() == [0.0, 0.0, 1.0, 2.0]
    # from a previous rate of 0 the first update rises by 2: momenta -2, -1, 0.5, 0.75
    assert annealing_areas(rates, decay=0.5, previous_rate=0.0).tolist() == [-2.0, -3.0, -2.5, -1.75]
    # weighted by the rate: momenta 0, 0, 1, 1 times 2, 2, 1, 0.5
    assert annealing_areas(rates, decay=0.5, rate_power=1.0).tolist() == [0.0, 0.0, 1.0, 1.5]
    # However small the power, S2 stands still at a rate of 0 (arXiv:2505.07796 Eq. 9).
    to_zero = annealing_areas(np.array([2.0, 1.0, 0.0, 0.0, 0.0]), decay=0.5, rate_power=1e-3)
    assert to_zero[-1] == to_zero[1] == 1.0


def test_the_last_areas_are_those_of_a_lineage():
    rates, lineage = np.linspace(2e-4, 0, 3000), Areas(before=3e-4)
    for rate in rates.tolist():
        lineage.add(rate)
    assert forward_areas(rates)[-1] == pytest.approx(lineage.forward, rel=1e-12)
    assert annealing_areas(rates, previous_rate=3e-4)[-1] == pytest.approx(lineage.annealing, rel=1e-10)


def test_a_weighted_area_stands_still_at_a_rate_of_0_and_a_plain_one_does_not():
    rates = np.concatenate([np.linspace(2e-4, 0, 2000), np.zeros(1000)])
    plain, weighted = annealing_areas(rates), annealing_areas(rates, rate_power=0.2)
    assert plain[-1] - plain[1999] > 0.02
    assert abs(weighted[-1] - weighted[1999]) < 1e-6


def test_drops_and_groups_of_drops():
    rates = np.array([1.0, 2.0, 2.0, 1.5, 1.0])
    drops, after, before = rate_drops(rates)
    assert drops.tolist() == [-1.0, -1.0, 0.5, 0.5]
    assert after.tolist() == [1.0, 2.0, 1.5, 1.0]
    assert before.tolist() == [0.0, 1.0, 5.0, 6.5]
    grouped, _, _ = rate_drops(rates, group=3)
    assert grouped.tolist() == [-2.0, 1.0]
