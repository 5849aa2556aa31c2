"""Which settings differ between two configurations: lengths by what they mean, not by how they are written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.planning.resume_changes import setting_changes
from tests.planning.small_run import settings

STEP = 8 * 32
"""Tokens of a step of the small run."""


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [str(change) for change in setting_changes(config_from_dict(before), config_from_dict(now))]


def lengths(sections: dict[str, Any], length: Callable[[int], Any], spaced_to: str) -> dict[str, Any]:
    """The sections with all lengths written in one way."""
    interval = {
        "log_spaced": f"2 per decade to {spaced_to}",
        "every": length(25),
        "at": [length(3), length(7)],
    }
    return sections | {
        "training": {**sections["training"], "tokens": length(100)},
        "schedule": {"kind": "wsd", "peak_lr": 1e-3, "warmup": length(10), "decay": length(20)},
        "validation": {"sets": sections["validation"]["sets"], "eval_interval": interval},
        "checkpoint": {"save_interval": length(50)},
    }


@pytest.fixture
def written(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One run with its lengths in steps, and in tokens."""
    sections = settings(tmp_path)
    in_steps = lengths(sections, lambda steps: f"{steps} steps", "50 steps")
    return in_steps, lengths(sections, lambda steps: steps * STEP, f"{50 * STEP} tokens")


def test_lengths_in_steps_and_in_tokens_are_the_same(written: tuple[dict[str, Any], dict[str, Any]]) -> None:
    in_steps, in_tokens = written
    assert changed(in_steps, in_tokens) == changed(in_tokens, in_steps) == []
    in_tokens["schedule"]["warmup"] += 1
    spaced = f"2 per decade to {50 * STEP + 1} tokens"
    in_tokens["validation"]["eval_interval"]["log_spaced"] = spaced
    in_tokens["training"]["tokens"] += 1  # whole steps are trained
    assert changed(in_steps, in_tokens) == [
        f"schedule.warmup: 10 steps before, {10 * STEP + 1} now",
        f"validation.eval_interval.log_spaced: 2 per decade to 50 steps before, {spaced} now",
    ]


def test_where_batches_ramp_up_only_the_length_of_the_run_is_known_in_tokens(
    written: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Its first steps are smaller: 10 steps are fewer tokens there than 10 whole ones."""
    before, now = written
    for sections in written:
        sections["training"]["batch_size_rampup"] = {"start": 2, "increment": 2, "tokens": 40 * STEP}
    now["training"]["tokens"] = config_from_dict(before).total_tokens
    keys = [change.partition(":")[0] for change in changed(before, now)]
    assert "training.tokens" not in keys and "schedule.warmup" in keys
