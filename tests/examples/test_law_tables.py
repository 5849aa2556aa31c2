"""The tables of the study of laws, on curves that the law itself gives."""

import zlib

import numpy as np
import pytest

from examples.studies.laws import compare, evaluate
from examples.studies.laws.study import ARMS, BASE_PEAK, SEEDS, Arm, schedule
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.schema import ScheduleSettings
from megatron_cpt.config.units import Duration
from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import Fit

CONSTANTS = {"floor": 2.9, "amplitude": 0.45, "exponent": 0.5, "base_gain": 5.0, "gain": 5.0, "shift_size": 0.9,
             "shift_speed": 40.0, "shift_exponent": 0.3, "bend": -4.0, "base_forward_area": 10.0, "decay": 0.95,
             "rate_power": 0.0, "gain_bend": 0.0, "injection_gain": 30.0, "injection_exponent": 0.2,
             "size_amplitude": 0.0, "size_exponent": 0.19, "base_gain_growth": 0.0, "gain_growth": 0.0}  # fmt: skip
NOISE = 0.002


def settings_of(arm: Arm) -> ScheduleSettings:
    """The schedule of an arm as the program takes it."""
    values = {key: _steps(value) for key, value in schedule(arm).items() if key != "pieces"}
    return ScheduleSettings(**values)


def _steps(value: object) -> object:
    return Duration(int(value.split()[0]), "steps") if isinstance(value, str) and value.endswith(" steps") else value


def curve_of(arm: Arm, seed: int, name: str) -> Curve:
    """The planted losses of an arm, with noise that a seed has."""
    rates = np.array([learning_rate(settings_of(arm), step, arm.steps, 1) for step in range(1, arm.steps + 1)]) \
        if arm.schedule != "two-stages" else np.repeat([arm.peak, 0.3 * arm.peak], arm.steps // 2)  # fmt: skip
    marks = np.arange(max(1, arm.steps // 40), arm.steps + 1, max(1, arm.steps // 40))
    stable = arm.base == "stable"
    base = (11.0, 0.0, BASE_PEAK, BASE_PEAK) if stable else (12.0, 0.07, BASE_PEAK, 0.1 * BASE_PEAK)
    curve = Curve(arm.name, rates, marks, np.ones(len(marks)), *base, 1 - arm.replay / 100, 4.0)
    noise = np.random.default_rng(zlib.crc32(f"{arm.name} {name}".encode()) + seed).normal(0, NOISE, len(marks))
    return Curve(**{**vars(curve), "losses": Fit(CONTINUAL, CONSTANTS, 0.0, 0).predict(curve) + noise})


@pytest.mark.slow
def test_planted_curves_are_predicted_within_their_noise() -> None:
    """Reason: fits with refits for each schedule left out take a minute."""
    sets = (*evaluate.LAW_SETS, "general-more", "domain-more")
    curves = {(arm, seed, name): curve_of(arm, seed, name) for arm in ARMS for seed in SEEDS for name in sets}
    fit = evaluate.fitted(curves, "general", *evaluate.FORMS["injection"])
    rows = evaluate.errors_of(curves, "general", "injection", fit)
    unseen = [row for row in rows if row["part"] not in ("fitted", "another base", "another length")]
    assert max(abs(row["end"]) for row in unseen) < 0.01
    assert np.mean([row["mae"] for row in unseen]) < 2 * np.mean([row["noise floor"] for row in unseen])
    assert all(row["noise floor"] == pytest.approx(NOISE / np.sqrt(np.pi), rel=0.5) for row in rows)
    choices = evaluate.choices_of(curves, "injection", dict.fromkeys(evaluate.LAW_SETS, fit))
    for row in choices:
        if row["question"].startswith(("replay", "peak")):
            assert row["off by"] <= max(0.005, row["allowed"]), row

    of_law = {row["set"]: row for row in compare.schedule_rows(curves) if row["law"] == "continual"}
    assert max(abs(value) for key, value in of_law["general"].items() if key.startswith("end of")) < 0.01
    runs = compare.table_of(curves, [Arm("cosine", 0), Arm("cosine", 50)], "general")
    assert runs.rows == ("cosine-replay-0 1", "cosine-replay-0 2", "cosine-replay-50 1", "cosine-replay-50 2")
    assert runs.column("tokens").tolist() == [800 * 4096.0] * 4
