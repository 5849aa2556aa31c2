"""The figures of the stability gap: how far a loss rose, what of it came back, when, and whether it is real.

A rise is tested against evaluation noise by paired standard errors and a max-t test over all evaluations. Measures of
continual evaluation over tasks follow De Lange et al. (arXiv:2205.13452, section 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from megatron_cpt.gap.curves import WRONG, LossCurve, loss_curves

KEPT = ("kind", "step", "tokens", "set", "role", "identity", "loss")


class RunningGap:
    """Takes the validation records of a run one by one."""

    def __init__(self) -> None:
        self._records: dict[str, list[dict[str, Any]]] = {}

    def add(self, record: Mapping[str, Any]) -> dict[str, float]:
        """The figures of the record's set up to it, by name; of earlier losses that are not finite as in `gap_figures`.

        None without a baseline on its sequences, or where its own loss is not finite.
        """
        evaluations = self._records.setdefault(record["set"], [])
        evaluations.append({name: record[name] for name in KEPT} | {"baseline": record.get("baseline")})
        (curve,) = loss_curves(evaluations)
        if curve.identity != record["identity"] or not curve.is_finite[-1] or _without_figures(curve) is not None:
            return {}
        rise = rises(curve.finite())
        depth, final, area = float(rise.max()), float(rise[-1]), _area(curve)
        found = {"change": final, "depth": depth, "transient": depth - max(final, 0.0)}
        return found if area is None else found | {"area": area}


WINDOWS = (10, 100)
"""Evaluations of a window, as in the paper."""


@dataclass(frozen=True)
class ContinualMeasures:
    """The measures of one run; None where its tasks or evaluations do not give one."""

    min_accuracy: float | None
    """min-ACC: the mean over old tasks of the lowest accuracy since the first update."""
    worst_case_accuracy: float | None
    """WC-ACC: accuracy of the new task at the end, weighted 1/k, and min-ACC, weighted 1 - 1/k, of k tasks."""
    windowed_forgetting: dict[str, float | None]
    """WF^w by w: the mean over tasks of the largest fall within w consecutive, equally spaced evaluations."""
    windowed_plasticity: dict[str, float | None]
    """WP^w: the same of the largest gain."""


def continual_measures(curves: Sequence[LossCurve]) -> ContinualMeasures:
    """The measures of the tasks that have accuracies. Evaluations whose accuracy is not finite are left out."""
    measured = [curve for curve in curves if curve.unit == WRONG and curve.is_finite.any()]
    tasks = [curve.finite() for curve in measured if curve.finite().steps[-1] > 0]
    # Evaluations since the first update: the first evaluation is one of them where nothing was evaluated before it.
    old = [1 - curve.losses[curve.steps > 0] for curve in tasks if curve.role != "domain"]
    last = [1 - float(curve.losses[-1]) for curve in measured if curve.role == "domain" and curve.steps[-1] > 0]
    lowest = float(np.mean([accuracy.min() for accuracy in old])) if old else None
    worst = None
    if lowest is not None and last and np.isfinite(last).all():
        share = 1 / (len(old) + 1)
        worst = float(share * np.mean(last) + (1 - share) * lowest)
    spaced = [1 - curve.losses[equally_spaced(curve.tokens)] for curve in tasks]
    return ContinualMeasures(
        min_accuracy=lowest,
        worst_case_accuracy=worst,
        windowed_forgetting={str(width): _mean([largest_fall(one, width) for one in spaced]) for width in WINDOWS},
        windowed_plasticity={str(width): _mean([largest_fall(-one, width) for one in spaced]) for width in WINDOWS},
    )


def equally_spaced(tokens: np.ndarray) -> np.ndarray:
    """Places of the most evaluations that are equally far from each other, beginning with the first: int64 [places].

    Log-spaced early evaluations are left out so, and an end that does not fit. tokens: int64 [evaluations], ascending.
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
    """Largest fall from one value to a later one among `width` consecutive values; None with fewer values."""
    if len(values) < width:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(values, width)
    return float((np.maximum.accumulate(windows, axis=1) - windows).max())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


BAND = 0.01
"""Nats per token: a loss this near to its baseline, or within 2 standard errors, is back at it."""

FAMILY_WISE_LEVEL = 0.05
"""Share of flat curves that may be called a gap."""


class Recovery(StrEnum):
    """What became of a rise."""

    NOT_NEEDED = "not_needed"
    """The loss never left the band above its baseline: there was nothing to recover from."""
    RECOVERED = "recovered"
    """After the peak, two consecutive evaluations were back in the band."""
    NOT_RECOVERED = "not_recovered"
    """No two consecutive evaluations were back in the band up to the last one."""


@dataclass(frozen=True)
class GapFigures:
    """The gap of one validation set in one run. A figure that the records do not hold is None, never 0."""

    missing: str | None
    """Why there are no figures; None where there are."""
    evaluations: int
    """Evaluations of the set, the baseline included."""
    not_finite: str | None = None
    """Where evaluations had a loss that is not finite, in words: `steps 10 and 20`. All figures leave them out; depth,
    transient and first_rise may be too small, and `area` is None. None where all losses are finite."""
    baseline: float | None = None
    """Loss before the first update."""
    depth: float | None = None
    """Largest rise above the baseline; 0 where the loss never was above it."""
    depth_tokens: int | None = None
    """Tokens at the largest rise."""
    depth_standard_error: float | None = None
    """Paired standard error of the change at that evaluation (evaluation noise)."""
    final: float | None = None
    """Last loss minus baseline: the forgetting that stays. Negative where the loss improved. None, like all that is
    made of it, where the last loss is not finite."""
    final_tokens: int | None = None
    """Tokens at the last evaluation."""
    final_standard_error: float | None = None
    """Paired standard error of `final`."""
    improvement: float | None = None
    """Baseline minus last loss: on a domain set, the domain gain."""
    transient: float | None = None
    """depth - max(final, 0): what of the rise came back, the stability gap proper."""
    recovery: Recovery | None = None
    """Whether the rise came back."""
    recovery_tokens: int | None = None
    """Tokens at the first of two consecutive evaluations, after the peak, that are within max(0.01 nat, 2
    standard errors) of the baseline or below it. None unless `recovery` is `recovered`."""
    first_rise: float | None = None
    """Height of the first rise that came back, which a later drift may top: `transient` does not see it then. None: no
    rise came back."""
    first_rise_tokens: int | None = None
    """Tokens at its peak."""
    first_rise_recovery_tokens: int | None = None
    """Tokens at the first of two consecutive evaluations after it that are back in the band."""
    area: float | None = None
    """Trapezoid of the positive rise over tokens, to the last evaluation: nats per token times tokens."""
    p_value: float | None = None
    """Family-wise p value of a rise at any evaluation (figures.py); None without losses per sequence."""
    significant: bool | None = None
    """p_value <= 5 %; None where it cannot be tested."""
    changed_tokens: int | None = None
    """Tokens at the first evaluation on other sequences or labels, which these figures leave out. None: none."""


def rises(curve: LossCurve) -> np.ndarray:
    """Loss minus baseline at each evaluation, float64 [evaluations]. The curve must have a baseline."""
    return curve.losses - curve.losses[0]


def rise_standard_errors(curve: LossCurve) -> np.ndarray:
    """Paired standard error of each rise, float64 [evaluations]; NaN where the records cannot give one."""
    if curve.sequence_nats is None or curve.sequence_tokens is None:
        return np.full(len(curve.losses), np.nan)
    return paired_standard_error(curve.sequence_nats - curve.sequence_nats[0], curve.sequence_tokens)


def bands(standard_errors: np.ndarray) -> np.ndarray:
    """How far above its baseline a loss counts as being at it: max(0.01 nat, 2 standard errors)."""
    return np.fmax(BAND, 2 * standard_errors)


def gap_figures(curve: LossCurve) -> GapFigures:
    """All gap figures of a curve."""
    missing, finite = _without_figures(curve), curve.is_finite
    changed = None if curve.later is None else int(curve.later.tokens[0])
    not_finite = None if finite.all() else curve.places(~finite)
    if missing is not None:
        return GapFigures(missing=missing, evaluations=len(curve.steps), not_finite=not_finite, changed_tokens=changed)
    rise, errors = rises(curve), rise_standard_errors(curve)
    peak = int(np.argmax(np.where(finite, rise, -np.inf)))
    depth = float(rise[peak])
    final = float(rise[-1]) if finite[-1] else None
    # A loss that is not finite is above every band.
    above = np.where(finite, rise, np.inf)
    recovery, recovery_place = find_recovery(above, bands(errors))
    first = _first_recovered_rise(above, bands(errors))
    p_value = _p_value(curve.finite())
    return GapFigures(
        missing=None,
        evaluations=len(rise),
        not_finite=not_finite,
        baseline=float(curve.losses[0]),
        depth=depth,
        depth_tokens=int(curve.tokens[peak]),
        depth_standard_error=_number(errors[peak]) if peak > 0 else None,
        final=final,
        final_tokens=None if final is None else int(curve.tokens[-1]),
        final_standard_error=None if final is None else _number(errors[-1]),
        improvement=None if final is None else -final,
        transient=None if final is None else depth - max(final, 0.0),
        recovery=recovery,
        recovery_tokens=None if recovery_place is None else int(curve.tokens[recovery_place]),
        first_rise=None if first is None else float(rise[first[0]]),
        first_rise_tokens=None if first is None else int(curve.tokens[first[0]]),
        first_rise_recovery_tokens=None if first is None else int(curve.tokens[first[1]]),
        area=_area(curve),
        p_value=p_value,
        significant=None if p_value is None else p_value <= FAMILY_WISE_LEVEL,
        changed_tokens=changed,
    )


def find_recovery(rise: np.ndarray, band: np.ndarray) -> tuple[Recovery, int | None]:
    """Whether a rise came back, and the evaluation at which it did.

    `rise`, `band` [evaluations] in nats per token. It is the first after the peak from which two evaluations running
    are within the band or below the baseline; one evaluation alone, even the last, is no recovery. A rise of inf is the
    peak, the last of several.
    """
    peak = max([int(np.argmax(rise)), *np.flatnonzero(np.isposinf(rise)).tolist()])
    if not (rise > band).any():
        return Recovery.NOT_NEEDED, None
    inside = rise <= band
    for place in range(peak + 1, len(rise) - 1):
        if inside[place] and inside[place + 1]:
            return Recovery.RECOVERED, place
    return Recovery.NOT_RECOVERED, None


def _first_recovered_rise(rise: np.ndarray, band: np.ndarray) -> tuple[int, int] | None:
    """Evaluations of the peak and of the end of the first rise that came back; None where none did.

    It begins with the first evaluation above the band and ends with the first of two evaluations running within it. Its
    peak is the largest finite one; without any it has no height, and None is returned.
    """
    inside = rise <= band
    if inside.all():
        return None
    begin = int(np.argmin(inside))
    for place in range(begin + 1, len(rise) - 1):
        if inside[place] and inside[place + 1]:
            heights = np.where(np.isposinf(rise[begin:place]), -np.inf, rise[begin:place])
            peak = begin + int(np.argmax(heights))
            return (peak, place) if np.isfinite(rise[peak]) else None
    return None


def without_baseline(curve: LossCurve) -> str | None:
    """Why a curve has no baseline; None where it has one."""
    first = curve.places(np.arange(len(curve.steps)) == 0)
    if not curve.has_baseline:
        return f"has no baseline: not evaluated before the first update on these sequences, but first at {first}"
    if not curve.is_finite[0]:
        return f"has no baseline: the loss before the first update ({first}) is not finite"
    return None


def _without_figures(curve: LossCurve) -> str | None:
    """Why a curve has no figures; None where it has."""
    if (reason := without_baseline(curve)) is not None:
        return reason
    if len(curve.steps) < 2:
        return "not evaluated since the first update"
    if not curve.is_finite[1:].any():
        return f"has no finite loss since the first update: none at {curve.places(~curve.is_finite)}"
    return None


def _area(curve: LossCurve) -> float | None:
    """The integral of the positive rise over tokens; None where a loss is not finite."""
    return float(np.trapezoid(np.maximum(rises(curve), 0), curve.tokens)) if curve.is_finite.all() else None


def _p_value(curve: LossCurve) -> float | None:
    if curve.sequence_nats is None or curve.sequence_tokens is None:
        return None
    return family_wise_p_value(curve.sequence_nats[1:] - curve.sequence_nats[0], curve.sequence_tokens)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


_MINIMUM_SEQUENCES = 5
"""With fewer, 2^-sequences > 5 %: no outcome of the sign-flip test could be significant."""

FLIPS = 1999
"""Random sign patterns. The standard error of a p value of 0.05 is then 0.005."""

SEED = 20220514
"""Of the sign patterns; fixed, so that the same records give the same answer."""


def paired_standard_error(differences: np.ndarray, sequence_tokens: np.ndarray) -> np.ndarray:
    """Standard error of the change of the loss, in nats per token.

    `differences` [..., sequences]: summed nats of a sequence now minus then. `sequence_tokens`
    [sequences]: scored tokens. The change is a ratio of sums, c = sum(d) / sum(n); its variance is that
    of the residuals d - c n (ratio estimator: Cochran, Sampling Techniques, 1977, eq. 6.9). Returns [...],
    NaN with fewer than two sequences.
    """
    squares = (differences**2).sum(axis=-1)
    return _standard_error(squares, differences @ sequence_tokens, differences.sum(axis=-1), sequence_tokens)


def family_wise_p_value(
    differences: np.ndarray, sequence_tokens: np.ndarray, flips: int = FLIPS, seed: int = SEED
) -> float | None:
    """Probability of so large a rise at any evaluation, were there none at all.

    `differences` [evaluations, sequences]: summed nats at an evaluation minus those at the baseline. The statistic is
    the largest of change / standard error over evaluations, one-sided (a rise). Without a rise each sequence's
    row of differences is as likely with the opposite sign, at all evaluations at once; so flipping the signs of
    whole sequences gives the distribution of the largest t whatever the correlation between evaluations
    (Westfall and Young, Resampling-Based Multiple Testing, 1993). A test at the maximum alone would call
    flat noise a gap in 33 to 96 % of runs. None with fewer than MINIMUM_SEQUENCES sequences or no evaluation.
    """
    evaluations, sequences = differences.shape
    if sequences < _MINIMUM_SEQUENCES or evaluations == 0:
        return None
    squares = (differences**2).sum(axis=-1)
    products = differences * sequence_tokens
    observed = _largest_t(squares, products.sum(axis=-1), differences.sum(axis=-1), sequence_tokens)
    if observed <= 0:
        return 1.0
    generator = np.random.default_rng(seed)
    as_large = 0
    for block in _blocks(flips, sequences):
        signs = generator.integers(0, 2, size=(block, sequences)).astype(np.float64) * 2 - 1
        flipped = _largest_t(squares, signs @ products.T, signs @ differences.T, sequence_tokens)
        # The pattern of all +1 is the observation itself; rounding must not make it smaller.
        as_large += int((flipped >= observed * (1 - 1e-9)).sum())
    return (1 + as_large) / (1 + flips)


def _blocks(flips: int, sequences: int) -> list[int]:
    """Sizes of blocks of sign patterns that hold at most about 32 MB."""
    size = max(1, min(flips, 4_000_000 // sequences))
    return [min(size, flips - start) for start in range(0, flips, size)]


def _largest_t(squares: np.ndarray, products: np.ndarray, sums: np.ndarray, sequence_tokens: np.ndarray) -> np.ndarray:
    """Largest of change / standard error over the last axis (evaluations). No change at all is 0."""
    changes = sums / sequence_tokens.sum()
    errors = _standard_error(squares, products, sums, sequence_tokens)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(changes == 0, 0.0, changes / errors).max(axis=-1)


def _standard_error(
    squares: np.ndarray, products: np.ndarray, sums: np.ndarray, sequence_tokens: np.ndarray
) -> np.ndarray:
    """sqrt(S/(S-1) * sum (d - c n)^2) / sum n, from sum d^2, sum d n and sum d."""
    sequences, total = len(sequence_tokens), sequence_tokens.sum()
    changes = sums / total
    residuals = squares - 2 * changes * products + changes**2 * (sequence_tokens.astype(np.float64) ** 2).sum()
    if sequences < 2:
        return np.full_like(residuals, np.nan)
    return np.sqrt(np.maximum(residuals, 0) * sequences / (sequences - 1)) / total
