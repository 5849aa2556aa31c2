"""The laws, against numbers worked out by hand or by the sums of the papers written as loops."""

import math

import numpy as np
import pytest

from megatron_cpt.scaling_law.laws import (
    annealing_law,
    at_size,
    continual_law,
    injection_factor,
    multi_power_law,
    replay_factor,
    shift,
)


def test_annealing_law_by_hand():
    # 3 + 0.5 * 4^-0.5 - 0.4 * 0.1 = 3 + 0.25 - 0.04
    loss = annealing_law(np.array([4.0]), np.array([0.1]), floor=3.0, amplitude=0.5, exponent=0.5, gain=0.4)
    assert loss[0] == pytest.approx(3.21, abs=1e-12)


def test_shift_by_hand():
    # 0.366 (1 - (1 + 28 * 4)^-0.189): the printed constants of arXiv:2505.07796 Fig. 3 at S1 = 4
    assert shift(np.array([0.0, 4.0]), 0.366, 28, 0.189).tolist() == pytest.approx([0.0, 0.216222], abs=1e-6)


def test_continual_law_by_hand():
    loss = continual_law(
        forward_area=np.array([4.0]),
        annealing_area=np.array([-0.05]),
        base_forward_area=5.0,
        base_annealing_area=0.19,
        floor=3.057,
        amplitude=0.49,
        exponent=0.5,
        base_gain=0.3,
        gain=0.3,
        shift_size=0.3,
        shift_speed=2.0,
        shift_exponent=0.5,
        domain_share=0.5,
        bend=0.0,
    )
    assert loss[0] == pytest.approx(3.057 + 0.49 / 3 - 0.057 + 0.015 + 0.3 * (2 / 3) * 0.5, abs=1e-12)


def test_replay_factor_holds_both_printed_forms():
    shares = np.array([0.33, 0.5, 0.67])
    convex = (np.exp(3.238 * shares) - 1) / (math.exp(3.238) - 1)
    concave = (1 - np.exp(-5.696 * shares)) / (1 - math.exp(-5.696))
    np.testing.assert_allclose(replay_factor(shares, -3.238), convex, rtol=1e-12)
    np.testing.assert_allclose(replay_factor(shares, 5.696), concave, rtol=1e-12)
    assert convex.round(2).tolist() == [0.08, 0.17, 0.32]
    for bend in (-300.0, -3.0, -1e-9, 0.0, 1e-9, 3.0, 300.0):
        assert replay_factor(0.0, bend) == 0.0
        assert replay_factor(1.0, bend) == pytest.approx(1.0)
    np.testing.assert_allclose(replay_factor(shares, 1.1e-6), replay_factor(shares, 0.9e-6), rtol=1e-6)


def test_replay_factor_shows_the_steep_effect_of_the_first_per_cents():
    # arXiv:2403.08763, Pile to German: 1 / 5 / 25 % replay leave 47 / 29 / 12 % of the forgetting.
    left = replay_factor(np.array([0.99, 0.95]), -60.0)
    assert 0.45 < left[0] < 0.6
    assert left[1] < 0.1


def test_multi_power_law_is_the_sum_of_the_paper():
    rates = np.concatenate([np.linspace(1e-5, 3e-4, 30), np.full(30, 3e-4), np.linspace(3e-4, 0, 40)])
    floor, amplitude, exponent, size, speed, drop_exponent, rate_exponent = 3.04, 0.525, 0.508, 363.8, 2.07, 0.58, 0.64
    steps = np.array([1, 45, 80, 100])
    expected = []
    for step in steps:
        reduction = 0.0
        for k in range(1, step + 1):
            drop = (rates[k - 2] if k > 1 else 0.0) - rates[k - 1]
            if rates[k - 1] > 0:
                growth = rates[k - 1] ** -rate_exponent * rates[k - 1 : step].sum()
                reduction += drop * (1 - (speed * growth + 1) ** -drop_exponent)
        expected.append(floor + amplitude * rates[:step].sum() ** -exponent - size * reduction)
    found = multi_power_law(rates, steps, floor, amplitude, exponent, size, speed, drop_exponent, rate_exponent)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_size_of_the_model_as_printed():
    # arXiv:2505.07796 Fig. 15 at 106M: 1.829 + 3.072 * 106^-0.195 is the 3.066 of its fit at that size alone.
    floor, base_gain, gain = at_size(106.0, 1.829, 0.090, 0.103, 3.072, 0.195, 0.235, 0.199)
    assert [float(floor), float(base_gain), float(gain)] == pytest.approx([3.0663, 0.26927, 0.26052], abs=2e-4)


def test_a_negative_bend_has_the_first_per_cents_of_replay_take_most_of_the_shift():
    # arXiv:2403.08763, to German: 1 % of replay leaves 47 % of the forgetting.
    assert float(replay_factor(0.99, -75.0)) == pytest.approx(0.4724, abs=1e-4)
    assert float(replay_factor(0.95, -75.0)) < 0.03


def test_injection_is_steep_at_first_and_slow_after():
    # The same measurements at 1, 5 and 25 %: 47, 29 and 12 % of the forgetting, which no single bend meets.
    left = injection_factor(np.array([0.0, 0.01, 0.05, 0.25]), 500.0, 0.42)
    assert left.tolist() == pytest.approx([1.0, 0.4712, 0.2545, 0.1312], abs=1e-3)
    assert injection_factor(0.3, 0.0, 0.0) == 1
