"""Is the difference between two arms more than the spread over seeds? Welch's test, Holm's correction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from megatron_cpt.gap.arms import Arm, Spread
from megatron_cpt.gap.figures import FAMILY_WISE_LEVEL

COMPARED = ("depth", "final", "transient", "area")
"""The figures in which arms are compared."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(256)


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
    families = [_pairs(arms, name, figure) for name in names for figure in COMPARED]
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
    """Probability that Student's t with some degrees of freedom (1 or more) is as far from 0.

    With t = sqrt(v) tan(a) the density is cos(a)^(v - 1) over half a Beta(v/2, 1/2); Gauss-Legendre.
    """
    start = math.atan(abs(t) / math.sqrt(freedom))
    half = (math.pi / 2 - start) / 2
    tail = half * float(WEIGHTS @ np.cos(start + half * (1 + NODES)) ** (freedom - 1))
    log_beta = math.lgamma(freedom / 2) + math.lgamma(0.5) - math.lgamma((freedom + 1) / 2)
    return min(1.0, 2 * tail / math.exp(log_beta))


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
