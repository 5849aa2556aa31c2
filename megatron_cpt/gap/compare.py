"""Runs compared: seeds of one configuration as one arm, arms against each other, a run beside its control.

An arm is a set of runs that differ only in seed. Differences between arms are judged against the spread over seeds
(Welch's test, Holm's correction). Beside a control run on general data, a rise is split into re-warming and shift.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from typing import Any

import numpy as np
import yaml
from scipy.special import stdtr

from megatron_cpt.config.units import short_count
from megatron_cpt.gap.curves import LossCurve, is_unknown
from megatron_cpt.gap.figures import (
    FAMILY_WISE_LEVEL,
    GapFigures,
    Recovery,
    family_wise_p_value,
    paired_standard_error,
    rises,
    without_baseline,
)

_SAME_START = 1e-3
"""Nats per token: baselines further apart are of different models. Layouts of ranks differ by less."""


@dataclass(frozen=True)
class SplitRise:
    """A rise at one evaluation, in nats per token."""

    tokens: int
    """Tokens trained."""
    rise: float
    """Loss minus baseline of the run."""
    rewarming: float
    """Loss minus baseline of the control, at the same tokens."""
    shift: float
    """rise - rewarming."""
    shift_standard_error: float | None
    """Each sequence in the run against itself in the control; None without losses per sequence."""


@dataclass(frozen=True)
class ControlSplit:
    """One set of one run beside its control. Only evaluations that both have, with finite losses, are used."""

    missing: str | None
    """Why there is no split; None where there is."""
    remedy: str | None = None
    """What to do about it; None where there is a split."""
    final_refusal: bool = False
    """Whether later evaluations of both runs cannot give a split either."""
    evaluations: int = 0
    """Evaluations that both have, the baseline included."""
    depth: SplitRise | None = None
    """At the largest rise."""
    final: SplitRise | None = None
    """At the last evaluation."""
    largest_shift: SplitRise | None = None
    """Where the shift is largest."""
    p_value: float | None = None
    """Family-wise p value of a shift above 0 at any evaluation (figures.py)."""
    significant: bool | None = None
    """p_value <= 5 %; None where it cannot be tested."""


def control_split(curve: LossCurve, control: LossCurve | None) -> ControlSplit:
    """The split of a run's rise on one set; `control` is the control's curve of the same set."""
    if control is None:
        return _refused("not evaluated in the control", "Give the control the same validation sets.")
    refusal = _refusal(curve, control)
    if refusal is not None:
        return refusal
    curve, control = curve.finite(), control.finite()
    _, ours, theirs = np.intersect1d(curve.tokens, control.tokens, return_indices=True)
    if len(ours) < 2:
        rule = "the control has no finite loss at the same tokens since the first update"
        return ControlSplit(rule, "Give both runs the same steps, batch size and validation.eval_interval.")
    rise, rewarming = rises(curve)[ours], rises(control)[theirs]
    shift = rise - rewarming
    errors, p_value = np.full(len(shift), np.nan), None
    if _paired(curve, control):
        assert curve.sequence_nats is not None and control.sequence_nats is not None
        assert curve.sequence_tokens is not None
        changes = (curve.sequence_nats - curve.sequence_nats[0])[ours]
        changes = changes - (control.sequence_nats - control.sequence_nats[0])[theirs]
        errors = paired_standard_error(changes, curve.sequence_tokens)
        p_value = family_wise_p_value(changes[1:], curve.sequence_tokens)

    def at(place: int) -> SplitRise:
        error = float(errors[place]) if np.isfinite(errors[place]) else None
        tokens = int(curve.tokens[ours[place]])
        return SplitRise(tokens, float(rise[place]), float(rewarming[place]), float(shift[place]), error)

    return ControlSplit(
        missing=None,
        evaluations=len(ours),
        depth=at(int(np.argmax(rise))),
        final=at(-1),
        largest_shift=at(int(np.argmax(shift))),
        p_value=p_value,
        significant=None if p_value is None else p_value <= FAMILY_WISE_LEVEL,
    )


def _refusal(curve: LossCurve, control: LossCurve) -> ControlSplit | None:
    """Why a curve can never be split by a control; None where it can."""
    if curve.identity != control.identity:
        unknown = is_unknown(curve) or is_unknown(control)
        if unknown:
            rule = "its sequences are not known to be those of the control"
            return _refused(rule, "Logs of other systems name no sequences: leave --control out.")
        remedy = "Name a control with the same files, sequence length and tokenizer for the set."
        return _refused("other sequences in the control", remedy)
    for whose, one in (("the run", curve), ("the control", control)):
        if (without := without_baseline(one)) is not None:
            return _refused(f"{whose} {without}", "Name runs that evaluated the set before their first update.")
    if abs(curve.losses[0] - control.losses[0]) > _SAME_START:
        losses = f"{control.losses[0]:.4f} nats per token, not {curve.losses[0]:.4f}"
        rule = f"the control started from another model: its loss before the first update is {losses}"
        return _refused(rule, "Name a control that started from the run's checkpoint.")
    return None


def _refused(rule: str, remedy: str) -> ControlSplit:
    return ControlSplit(rule, remedy, final_refusal=True)


def _paired(curve: LossCurve, control: LossCurve) -> bool:
    """Whether both have the losses of the same sequences."""
    tokens = curve.sequence_tokens, control.sequence_tokens
    return tokens[0] is not None and tokens[1] is not None and np.array_equal(tokens[0], tokens[1])


_AVERAGED = (
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
    """Why the runs are not averaged; None where they are."""
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


def _values_of(figures: Sequence[GapFigures], name: str) -> list[float]:
    """One figure of several runs, without those that have none."""
    return [float(value) for item in figures if (value := getattr(item, name)) is not None]


def config_values(config: str | None) -> dict[str, Any] | None:
    """The sections of a config.yaml from its text; None where there is none to read."""
    try:
        values = None if config is None else yaml.safe_load(config)
    except yaml.YAMLError:
        return None
    return values if isinstance(values, dict) else None


def _recipe(config: str | None) -> tuple[Any, int | None]:
    """A config without what seeds may change, and its seed; (None, None) where there is none to read."""
    values = config_values(config)
    if values is None or not isinstance(values.get("run"), dict):
        return None, None
    run = {name: value for name, value in values["run"].items() if name not in ("seed", "folder")}
    return {**values, "run": run}, values["run"].get("seed")


def _arm_sets(members: Sequence[MeasuredRun]) -> dict[str, ArmSet]:
    found: dict[str, dict[str, tuple[LossCurve, GapFigures]]] = {}
    for run in members:
        for curve, figures in run.sets:
            found.setdefault(curve.name, {})[run.name] = curve, figures
    return {name: _arm_set(curves, [run.name for run in members]) for name, curves in found.items()}


def _arm_set(curves: Mapping[str, tuple[LossCurve, GapFigures]], members: Sequence[str]) -> ArmSet:
    """One set, from its curves by run."""
    first, figures = next(iter(curves.values()))[0], [item for _, item in curves.values()]
    missing = _missing(curves, members)
    if missing is not None:
        return ArmSet(first.role, first.identity, missing, {}, {})
    recovery = {kind.value: sum(item.recovery is kind for item in figures) for kind in Recovery}
    spreads = {name: spread(_values_of(figures, name)) for name in _AVERAGED}
    return ArmSet(first.role, first.identity, None, spreads, recovery)


def _missing(curves: Mapping[str, tuple[LossCurve, GapFigures]], members: Sequence[str]) -> str | None:
    """Why the runs of an arm cannot be averaged on a set, or None."""
    if without := [run for run in members if run not in curves]:
        return f"not evaluated in {', '.join(without)}"
    (name, (first, _)), *_ = curves.items()
    if others := [run for run, (curve, _) in curves.items() if curve.identity != first.identity]:
        return f"other sequences in {', '.join(others)} than in {name}"
    if reasons := {run: reason for run, (_, figures) in curves.items() if (reason := _unfit(figures)) is not None}:
        return "; ".join(reason if len(members) == 1 else f"{run}: {reason}" for run, reason in reasons.items())
    if others := [run for run, (curve, _) in curves.items() if not np.array_equal(curve.tokens, first.tokens)]:
        return f"not evaluated at the same steps in {', '.join(others)} as in {name} (some may still go on)"
    return None


def _unfit(figures: GapFigures) -> str | None:
    """Why the figures of a run are not averaged with those of others, or None."""
    if figures.missing is not None:
        return figures.missing
    if figures.not_finite is not None:
        return f"the loss is not finite at {figures.not_finite}"
    if figures.changed_tokens is not None:
        return f"changed at {short_count(figures.changed_tokens, zeros=False)} tokens"
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


_COMPARED = ("depth", "final", "transient", "area")
"""The figures in which arms are compared."""


@dataclass(frozen=True)
class ArmDifference:
    """One figure of one set in two arms."""

    set: str
    """Name of the validation set."""
    figure: str
    """One of COMPARED."""
    arms: tuple[str, str]
    """Names of the arms."""
    difference: float
    """Mean of the second minus mean of the first, in the unit of the figure."""
    standard_error: float | None = None
    """Of the difference, from the spread over seeds; None where an arm has one run."""
    degrees_of_freedom: float | None = None
    """Welch and Satterthwaite's."""
    p_value: float | None = None
    """Two-sided, this pair alone. None where it cannot be tested."""
    adjusted_p_value: float | None = None
    """Holm's, over all pairs of arms that can be tested in this figure of this set."""
    significant: bool | None = None
    """adjusted_p_value <= 5 %."""


def arm_differences(arms: Sequence[Arm]) -> list[ArmDifference]:
    """Every pair of arms in every compared figure of every set that both have."""
    names = dict.fromkeys(name for arm in arms for name in arm.sets)
    families = [_pairs(arms, name, figure) for name in names for figure in _COMPARED]
    return [difference for family in families for difference in _corrected(family)]


def welch(first: Spread, second: Spread) -> tuple[float, float, float] | None:
    """Standard error, degrees of freedom and two-sided p value of a difference of two means.

    Welch, Biometrika 34, 1947: variances of the arms need not be equal. None where an arm has fewer than
    two runs, or no run differs from another at all.
    """
    if first.mean is None or second.mean is None or first.sd is None or second.sd is None:
        return None
    parts = first.sd**2 / first.runs, second.sd**2 / second.runs
    variance = sum(parts)
    if variance == 0:
        return None
    freedom = variance**2 / (parts[0] ** 2 / (first.runs - 1) + parts[1] ** 2 / (second.runs - 1))
    return math.sqrt(variance), freedom, two_sided_p_value((second.mean - first.mean) / math.sqrt(variance), freedom)


def two_sided_p_value(t: float, freedom: float) -> float:
    """Probability that Student's t with some degrees of freedom (1 or more) is as far from 0."""
    return 2 * float(stdtr(freedom, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values that hold family-wise (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = largest
    return adjusted


def _pairs(arms: Sequence[Arm], name: str, figure: str) -> list[ArmDifference]:
    found = (_difference(name, figure, *pair) for pair in combinations(arms, 2))
    return [difference for difference in found if difference is not None]


def _difference(name: str, figure: str, first: Arm, second: Arm) -> ArmDifference | None:
    if name not in first.sets or name not in second.sets:
        return None
    one, other = first.sets[name], second.sets[name]
    if one.missing is not None or other.missing is not None or one.identity != other.identity:
        return None
    left, right = one.figures[figure], other.figures[figure]
    assert left.mean is not None and right.mean is not None, "figures that are compared are never None"
    test = welch(left, right)
    return ArmDifference(name, figure, (first.name, second.name), right.mean - left.mean, *(test or ()))


def _corrected(differences: Sequence[ArmDifference]) -> list[ArmDifference]:
    p_values = [item.p_value for item in differences if item.p_value is not None]
    adjusted = iter(holm(p_values))
    return [item if item.p_value is None else _judged(item, next(adjusted)) for item in differences]


def _judged(item: ArmDifference, adjusted: float) -> ArmDifference:
    return ArmDifference(
        item.set, item.figure, item.arms, item.difference, item.standard_error, item.degrees_of_freedom,
        item.p_value, adjusted, adjusted <= FAMILY_WISE_LEVEL,
    )  # fmt: skip
