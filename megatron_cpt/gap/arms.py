"""Runs that differ only in seed, as one arm: what a figure is on average, and how far seeds spread it.

A standard error over sequences (significance.py) tells what other text of the same kind would have
given. It does not tell what another seed would have given, and that is what differences between two
recipes must be judged against.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import yaml

from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.figures import GapFigures, Recovery

AVERAGED = (
    "baseline", "depth", "depth_tokens", "final", "improvement", "transient", "recovery_tokens", "area",
)  # fmt: skip
"""The figures of GapFigures that are averaged over seeds."""


@dataclass(frozen=True)
class MeasuredRun:
    """What an arm needs to know of a run."""

    name: str
    """Its name in the report."""
    config: str | None
    """Text of its config.yaml; None for logs of other systems."""
    sets: Sequence[tuple[LossCurve, GapFigures]]
    """Its validation sets."""


@dataclass(frozen=True)
class Spread:
    """One figure over the runs of an arm."""

    mean: float | None
    """Mean over the runs that have the figure; None where none has."""
    sd: float | None
    """Standard deviation over them (n - 1); None with fewer than two."""
    runs: int
    """Runs that have the figure. A run that did not recover has no recovery_tokens."""


@dataclass(frozen=True)
class ArmSet:
    """One validation set over the runs of an arm."""

    role: str
    """domain or replay."""
    identity: str
    """Of the sequences, in the first run."""
    missing: str | None
    """Why there are no figures; None where there are."""
    figures: dict[str, Spread]
    """By name, those of AVERAGED; empty where `missing`."""
    recovery: dict[str, int]
    """How many runs recovered, did not, and never had to."""


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration, with different seeds."""

    name: str
    """What their names have in common."""
    runs: list[str]
    """Their names."""
    seeds: list[int | None]
    """Their seeds; None where no config tells."""
    sets: dict[str, ArmSet]
    """Their validation sets by name."""


def group_arms(runs: Sequence[MeasuredRun]) -> list[Arm]:
    """The arms, in the order of their first runs.

    Two runs are of one arm if their configs are equal but for `run.seed` and `run.folder`. A run without
    a readable config, or with a seed that the arm has already (the same run twice), is an arm by itself.
    """
    grouped: list[tuple[Any, list[MeasuredRun], list[int | None]]] = []
    for run in runs:
        recipe, seed = _recipe(run.config)
        for other, members, seeds in grouped:
            if recipe is not None and recipe == other and seed not in seeds:
                members.append(run)
                seeds.append(seed)
                break
        else:
            grouped.append((recipe, [run], [seed]))
    names = _different([_common_name([run.name for run in members]) for _, members, _ in grouped])
    return [
        Arm(name, [run.name for run in members], seeds, _arm_sets(members))
        for name, (_, members, seeds) in zip(names, grouped, strict=True)
    ]


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of a figure."""
    mean = float(np.mean(values)) if len(values) else None
    return Spread(mean, float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def values_of(figures: Sequence[GapFigures], name: str) -> list[float]:
    """One figure of several runs, without those that have none."""
    return [float(value) for item in figures if (value := getattr(item, name)) is not None]


def _recipe(config: str | None) -> tuple[Any, int | None]:
    """A config without what seeds may change, and its seed; (None, None) where there is none to read."""
    try:
        values = None if config is None else yaml.safe_load(config)
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("run"), dict):
        return None, None
    run = {name: value for name, value in values["run"].items() if name not in ("seed", "folder")}
    return {**values, "run": run}, values["run"].get("seed")


def _arm_sets(members: Sequence[MeasuredRun]) -> dict[str, ArmSet]:
    found: dict[str, list[tuple[LossCurve, GapFigures]]] = {}
    for run in members:
        for curve, figures in run.sets:
            found.setdefault(curve.name, []).append((curve, figures))
    return {name: _arm_set(curves, len(members)) for name, curves in found.items()}


def _arm_set(curves: Sequence[tuple[LossCurve, GapFigures]], members: int) -> ArmSet:
    first, figures = curves[0][0], [item for _, item in curves]
    missing = _missing(curves, members)
    if missing is not None:
        return ArmSet(first.role, first.identity, missing, {}, {})
    recovery = {kind.value: sum(item.recovery is kind for item in figures) for kind in Recovery}
    spreads = {name: spread(values_of(figures, name)) for name in AVERAGED}
    return ArmSet(first.role, first.identity, None, spreads, recovery)


def _missing(curves: Sequence[tuple[LossCurve, GapFigures]], members: int) -> str | None:
    """Why the runs of an arm cannot be averaged on a set, or None."""
    if len(curves) < members:
        return "not evaluated in every run"
    if len({curve.identity for curve, _ in curves}) > 1:
        return "other sequences in some runs"
    for _, figures in curves:
        if figures.missing is not None:
            return figures.missing
        if figures.changed_tokens is not None:
            return "changed during a run"
    if len({tuple(curve.tokens.tolist()) for curve, _ in curves}) > 1:
        return "not evaluated at the same marks in every run (some may still go on)"
    return None


def _common_name(names: Sequence[str]) -> str:
    """What names of runs have in common, without a separator or the word seed at its end."""
    if len(names) == 1:
        return names[0]
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = re.sub(r"[-_./ =]*(seed)?[-_./ =]*$", "", "".join(letters[0] for letters in shared))
    return common or " + ".join(names)


def _different(names: Sequence[str]) -> list[str]:
    """The names, those that stand more than once with a number after them."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]
