"""The rise of a loss beside a control run, split in two: re-warming and shift.

The control has the same schedule on general data, from the same start. Its rise is what the new
learning rate alone does (re-warming: Ibrahim et al., arXiv:2403.08763); what the run rose beyond it is
the shift of the text.
"""

from dataclasses import dataclass

import numpy as np

from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.figures import FAMILY_WISE_LEVEL, rises
from megatron_cpt.gap.significance import family_wise_p_value, paired_standard_error

SAME_START = 1e-3
"""Nats per token: baselines further apart are of different models. Layouts of ranks differ by less."""


@dataclass(frozen=True)
class SplitRise:
    """A rise at one mark, in nats per token."""

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
    """One set of one run beside its control. Only marks that both have are used."""

    missing: str | None
    """Why there is no split; None where there is."""
    marks: int = 0
    """Marks that both have, the baseline included."""
    depth: SplitRise | None = None
    """At the largest rise."""
    final: SplitRise | None = None
    """At the last mark."""
    largest_shift: SplitRise | None = None
    """Where the shift is largest."""
    p_value: float | None = None
    """Family-wise p value of a shift above 0 at any mark (significance.py)."""
    significant: bool | None = None
    """p_value <= 5 %; None where it cannot be tested."""


def control_split(curve: LossCurve, control: LossCurve | None) -> ControlSplit:
    """The split of a run's rise on one set; `control` is the control's curve of the same set."""
    missing = _missing(curve, control)
    if missing is not None or control is None:
        return ControlSplit(missing)
    _, ours, theirs = np.intersect1d(curve.tokens, control.tokens, return_indices=True)
    if len(ours) < 2:
        return ControlSplit("the control has no mark at the same tokens")
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

    def at(mark: int) -> SplitRise:
        error = float(errors[mark]) if np.isfinite(errors[mark]) else None
        tokens = int(curve.tokens[ours[mark]])
        return SplitRise(tokens, float(rise[mark]), float(rewarming[mark]), float(shift[mark]), error)

    return ControlSplit(
        missing=None,
        marks=len(ours),
        depth=at(int(np.argmax(rise))),
        final=at(-1),
        largest_shift=at(int(np.argmax(shift))),
        p_value=p_value,
        significant=None if p_value is None else p_value <= FAMILY_WISE_LEVEL,
    )


def _missing(curve: LossCurve, control: LossCurve | None) -> str | None:
    if control is None:
        return "not evaluated in the control"
    if curve.identity != control.identity:
        return "other sequences in the control"
    if not curve.has_baseline or not control.has_baseline:
        return "not evaluated before the first update, so there is no baseline"
    if not (np.isfinite(curve.losses).all() and np.isfinite(control.losses).all()):
        return "a loss is not finite"
    if abs(curve.losses[0] - control.losses[0]) > SAME_START:
        return "the control started from another model: its loss before the first update is another"
    return None


def _paired(curve: LossCurve, control: LossCurve) -> bool:
    """Whether both have the losses of the same sequences."""
    tokens = curve.sequence_tokens, control.sequence_tokens
    return tokens[0] is not None and tokens[1] is not None and np.array_equal(tokens[0], tokens[1])
