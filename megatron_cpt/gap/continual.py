"""Measures of continual evaluation over the tasks of a run, from De Lange et al. (arXiv:2205.13452, section 3).

The old tasks are those of role `replay`, the new one is the mean of those of role `domain`. All are accuracies, 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_cpt.gap.curves import WRONG, LossCurve

WINDOWS = (10, 100)
"""Evaluations of a window, as in the paper."""


@dataclass(frozen=True)
class ContinualMeasures:
    """The measures of one run; None where its tasks or marks do not give one."""

    min_accuracy: float | None
    """min-ACC: the mean over old tasks of the lowest accuracy since the first update."""
    worst_case_accuracy: float | None
    """WC-ACC: accuracy of the new task at the end, weighted 1/k, and min-ACC, weighted 1 - 1/k, of k tasks."""
    windowed_forgetting: dict[str, float | None]
    """WF^w by w: the mean over tasks of the largest fall within w evaluations running, on equally spaced marks."""
    windowed_plasticity: dict[str, float | None]
    """WP^w: the same of the largest gain."""


def continual_measures(curves: Sequence[LossCurve]) -> ContinualMeasures:
    """The measures of the tasks that have accuracies."""
    tasks = [curve for curve in curves if curve.unit == WRONG and curve.steps[-1] > 0]
    # Marks since the first update: the first mark is one of them where nothing was evaluated before it.
    old = [1 - curve.losses[curve.steps > 0] for curve in tasks if curve.role != "domain"]
    new = [1 - curve.losses for curve in tasks if curve.role == "domain"]
    lowest = float(np.mean([accuracy.min() for accuracy in old])) if old else None
    worst = None
    if lowest is not None and new:
        share = 1 / (len(old) + 1)
        worst = float(share * np.mean([accuracy[-1] for accuracy in new]) + (1 - share) * lowest)
    spaced = [1 - curve.losses[equally_spaced(curve.tokens)] for curve in tasks]
    return ContinualMeasures(
        min_accuracy=lowest,
        worst_case_accuracy=worst,
        windowed_forgetting={str(width): _mean([largest_fall(one, width) for one in spaced]) for width in WINDOWS},
        windowed_plasticity={str(width): _mean([largest_fall(-one, width) for one in spaced]) for width in WINDOWS},
    )


def equally_spaced(tokens: np.ndarray) -> np.ndarray:
    """Places of the most marks that are equally far from each other, beginning with the first: int64 [places].

    Log-spaced early marks are left out so, and an end that does not fit. tokens: int64 [marks], ascending.
    """
    place_of = {int(count - tokens[0]): place for place, count in enumerate(tokens)}
    best = [0]
    for distance in list(place_of)[1:]:
        found = [0]
        while (place := place_of.get(distance * len(found))) is not None:
            found.append(place)
        best = max(best, found, key=len)
    return np.array(best, dtype=np.int64)


def largest_fall(values: np.ndarray, width: int) -> float | None:
    """Largest fall from one value to a later one among `width` values running; None with fewer values."""
    if len(values) < width:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    return float((np.maximum.accumulate(windows, axis=1) - windows).max())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
