"""The figures of the stability gap: how far a loss rose, what of it came back, when, and whether it is real.

Continual pretraining raises the loss on what the model knew. Part of the rise is transient (the
stability gap proper: De Lange et al., arXiv:2205.13452; Guo et al., arXiv:2406.14833) and part stays
(forgetting). All losses are nats per token, all tokens are tokens trained since the start of the run.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.significance import family_wise_p_value, paired_standard_error

BAND = 0.01
"""Nats per token: a loss this near to its baseline, or within 2 standard errors, is back at it."""

FAMILY_WISE_LEVEL = 0.05
"""Share of flat curves that may be called a gap."""


class Recovery(StrEnum):
    """What became of a rise."""

    NOT_NEEDED = "not_needed"
    """The loss never left the band above its baseline: there was nothing to recover from."""
    RECOVERED = "recovered"
    """After the peak, two marks running were back in the band."""
    NOT_RECOVERED = "not_recovered"
    """No two marks running were back in the band up to the last mark."""


@dataclass(frozen=True)
class GapFigures:
    """The gap of one validation set in one run. A figure that the records do not hold is None, never 0."""

    missing: str | None
    """Why there are no figures; None where there are."""
    marks: int
    """Evaluations of the set, the baseline included."""
    baseline: float | None = None
    """Loss before the first update."""
    depth: float | None = None
    """Largest rise above the baseline; 0 where the loss never was above it."""
    depth_tokens: int | None = None
    """Tokens at the largest rise."""
    depth_standard_error: float | None = None
    """Paired standard error of the change at that mark (evaluation noise)."""
    final: float | None = None
    """Last loss minus baseline: the forgetting that stays. Negative where the loss improved."""
    final_tokens: int | None = None
    """Tokens at the last mark."""
    final_standard_error: float | None = None
    """Paired standard error of `final`."""
    improvement: float | None = None
    """Baseline minus last loss: on a domain set, the domain gain."""
    transient: float | None = None
    """depth - max(final, 0): what of the rise came back, the stability gap proper."""
    recovery: Recovery | None = None
    """Whether the rise came back."""
    recovery_tokens: int | None = None
    """Tokens at the first of two marks running, after the peak, that are within max(0.01 nat, 2 standard
    errors) of the baseline or below it. None unless `recovery` is `recovered`."""
    first_rise: float | None = None
    """Height of the first rise that came back, which a later drift may top: `transient` does not see it then. None: no
    rise came back."""
    first_rise_tokens: int | None = None
    """Tokens at its peak."""
    first_rise_recovery_tokens: int | None = None
    """Tokens at the first of two marks running behind it that are back in the band."""
    area: float | None = None
    """Trapezoid of the positive rise over tokens, to the last mark: nats per token times tokens."""
    p_value: float | None = None
    """Family-wise p value of a rise at any mark (significance.py); None without losses per sequence."""
    significant: bool | None = None
    """p_value <= 5 %; None where it cannot be tested."""
    changed_tokens: int | None = None
    """Tokens at the first mark on other sequences or labels, which all these figures leave out. None: there is none."""


def rises(curve: LossCurve) -> np.ndarray:
    """Loss minus baseline at each mark, float64 [marks]. The curve must have a baseline."""
    return curve.losses - curve.losses[0]


def rise_standard_errors(curve: LossCurve) -> np.ndarray:
    """Paired standard error of each rise, float64 [marks]; NaN where the records cannot give one."""
    if curve.sequence_nats is None or curve.sequence_tokens is None:
        return np.full(len(curve.losses), np.nan)
    return paired_standard_error(curve.sequence_nats - curve.sequence_nats[0], curve.sequence_tokens)


def bands(standard_errors: np.ndarray) -> np.ndarray:
    """How far above its baseline a loss counts as being at it: max(0.01 nat, 2 standard errors)."""
    return np.fmax(BAND, 2 * standard_errors)


def gap_figures(curve: LossCurve) -> GapFigures:
    """All gap figures of a curve."""
    missing = _missing(curve)
    changed = None if curve.later is None else int(curve.later.tokens[0])
    if missing is not None:
        return GapFigures(missing=missing, marks=len(curve.steps), changed_tokens=changed)
    rise, errors = rises(curve), rise_standard_errors(curve)
    peak = int(np.argmax(rise))
    depth, final = float(rise[peak]), float(rise[-1])
    recovery, recovery_mark = find_recovery(rise, bands(errors))
    first = first_recovered_rise(rise, bands(errors))
    p_value = _p_value(curve)
    return GapFigures(
        missing=None,
        marks=len(rise),
        baseline=float(curve.losses[0]),
        depth=depth,
        depth_tokens=int(curve.tokens[peak]),
        depth_standard_error=_number(errors[peak]) if peak > 0 else None,
        final=final,
        final_tokens=int(curve.tokens[-1]),
        final_standard_error=_number(errors[-1]),
        improvement=-final,
        transient=depth - max(final, 0.0),
        recovery=recovery,
        recovery_tokens=None if recovery_mark is None else int(curve.tokens[recovery_mark]),
        first_rise=None if first is None else float(rise[first[0]]),
        first_rise_tokens=None if first is None else int(curve.tokens[first[0]]),
        first_rise_recovery_tokens=None if first is None else int(curve.tokens[first[1]]),
        area=float(np.trapezoid(np.maximum(rise, 0), curve.tokens)),
        p_value=p_value,
        significant=None if p_value is None else p_value <= FAMILY_WISE_LEVEL,
        changed_tokens=changed,
    )


def find_recovery(rise: np.ndarray, band: np.ndarray) -> tuple[Recovery, int | None]:
    """Whether a rise came back, and the mark at which it did.

    `rise`, `band` [marks] in nats per token. The mark is the first after the peak from which two marks
    running are within the band or below the baseline; one mark alone, even the last, is no recovery.
    """
    peak = int(np.argmax(rise))
    if not (rise > band).any():
        return Recovery.NOT_NEEDED, None
    inside = rise <= band
    for mark in range(peak + 1, len(rise) - 1):
        if inside[mark] and inside[mark + 1]:
            return Recovery.RECOVERED, mark
    return Recovery.NOT_RECOVERED, None


def first_recovered_rise(rise: np.ndarray, band: np.ndarray) -> tuple[int, int] | None:
    """Marks of the peak and of the end of the first rise that came back; None where none did.

    It begins with the first mark above the band and ends with the first of two marks running within it.
    """
    inside = rise <= band
    if inside.all():
        return None
    begin = int(np.argmin(inside))
    for mark in range(begin + 1, len(rise) - 1):
        if inside[mark] and inside[mark + 1]:
            return begin + int(np.argmax(rise[begin:mark])), mark
    return None


def _missing(curve: LossCurve) -> str | None:
    if not curve.has_baseline:
        return "not evaluated before the first update on these sequences, so there is no baseline"
    if len(curve.steps) < 2:
        return "not evaluated since the first update"
    if not np.isfinite(curve.losses).all():
        return "a loss is not finite"
    return None


def _p_value(curve: LossCurve) -> float | None:
    if curve.sequence_nats is None or curve.sequence_tokens is None:
        return None
    return family_wise_p_value(curve.sequence_nats[1:] - curve.sequence_nats[0], curve.sequence_tokens)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
