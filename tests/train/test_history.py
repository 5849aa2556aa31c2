"""What a run remembers: the limit of a spike, and what was left out."""

import math

import pytest

from megatron_cpt.train.run import UpdateHistory
from tests.config.examples import config_with

SETTINGS = config_with(training__on_spike="skip", training__spike_window=4, training__spike_sigmas=3).training


def test_the_limit_is_mean_plus_deviations_of_the_last_updates() -> None:
    history = UpdateHistory()
    for loss in (9.0, 1.0, 2.0, 3.0, 4.0):
        history = history.with_update(loss, SETTINGS)
    assert history.losses == (1.0, 2.0, 3.0, 4.0)
    # mean 2.5; the squares of -1.5, -0.5, 0.5, 1.5 have the mean 1.25
    assert history.loss_limit(SETTINGS) == pytest.approx(2.5 + 3 * math.sqrt(1.25))


def test_there_is_no_limit_before_half_the_window_nor_without_a_policy() -> None:
    assert UpdateHistory((1.0,)).loss_limit(SETTINGS) == math.inf
    assert UpdateHistory((1.0, 1.0)).loss_limit(SETTINGS) == 1.0
    going_on = config_with().training
    assert UpdateHistory((1.0,) * 128).loss_limit(going_on) == math.inf
    assert UpdateHistory().with_update(1.0, going_on).losses == ()


def test_ranges_left_out_join_where_they_touch() -> None:
    history = (
        UpdateHistory()
        .with_skipped(16, 24, 1)
        .with_skipped(24, 32, 2)
        .with_update(1.0, SETTINGS)
        .with_skipped(40, 48, 1)
    )
    assert history.skipped_ranges == ((16, 32), (40, 48))
    assert history.skipped_in_a_row == 1
