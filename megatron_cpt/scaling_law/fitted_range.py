"""What curves laws were fitted on, and in what another curve lies outside of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.laws import annealing_areas

_ROOM = 1.01
"""Factor by which a peak, S1 and S2 may be outside: schedules of some hundred steps have them to a percent."""


@dataclass(frozen=True)
class Fitted:
    """What laws were fitted on."""

    replay_ratio: tuple[float, float]
    """Lowest and highest."""
    peak: tuple[float, float]
    """Lowest and highest."""
    steps: int
    """Of the longest curve."""
    forward_area: float
    """S1 of the curve that has most."""
    kinds: tuple[str, ...] = ()
    """Kinds of schedule; empty where the curves do not say."""
    first_step: int = 1
    """Of the first point that was fitted."""
    annealing_area: float = np.inf
    """S2 after the highest rate, of the curve that has most; infinite in a law.json that does not say."""
    tokens_per_step: int | None = None
    """Of an update; None where the curves do not say."""

    def beyond(self, curve: Curve) -> tuple[str, ...]:
        """In what a curve lies outside, in words."""
        found = []
        ratio, peak, steps = 1 - curve.domain_share, float(curve.rates.max()), int(curve.steps[-1])
        (least, most), (low, high) = self.replay_ratio, self.peak
        if not least * (1 - 1e-9) <= ratio <= most * (1 + 1e-9):
            one = f"{least:g} alone: what another does is not known"
            found.append(f"replay ratio {ratio:g} (fitted {one if least == most else f'{least:g} to {most:g}'})")
        if not low / _ROOM <= peak <= high * _ROOM:
            found.append(f"peak rate {peak:g} (fitted {low:g} to {high:g})")
        if steps > self.steps:
            found.append(f"{steps} steps (fitted up to {self.steps})")
        if steps < self.first_step:
            found.append(f"{steps} steps (fitted from step {self.first_step} on)")
        forward, annealing = float(np.sum(curve.rates[:steps])), _annealing_area(curve)
        if forward > self.forward_area * _ROOM:
            found.append(f"S1 of {forward:.3g} (fitted up to {self.forward_area:.3g})")
        if annealing > self.annealing_area * _ROOM:
            found.append(
                f"S2 of {annealing:.3g} (fitted up to {self.annealing_area:.3g})"
                if self.annealing_area > 0
                else "a learning rate that falls (fitted none: what annealing brings is not known)"
            )
        if self.kinds and curve.kind is not None and curve.kind not in self.kinds:
            found.append(f"schedule {curve.kind} (fitted {', '.join(self.kinds)})")
        if None not in (self.tokens_per_step, curve.tokens_per_step) and curve.tokens_per_step != self.tokens_per_step:
            found.append(f"{curve.tokens_per_step:,} tokens a step (fitted {self.tokens_per_step:,})")
        return tuple(found)


def range_of(curves: Sequence[Curve]) -> Fitted:
    """What these curves have."""
    ratios = [1 - curve.domain_share for curve in curves]
    peaks = [float(curve.rates.max()) for curve in curves]
    return Fitted(
        replay_ratio=(min(ratios), max(ratios)),
        peak=(min(peaks), max(peaks)),
        steps=max(int(curve.steps[-1]) for curve in curves),
        forward_area=max(float(curve.rates.sum()) for curve in curves),
        kinds=tuple(sorted({curve.kind for curve in curves if curve.kind is not None})),
        first_step=min(int(curve.steps[0]) for curve in curves),
        annealing_area=max(_annealing_area(curve) for curve in curves),
        tokens_per_step=next((curve.tokens_per_step for curve in curves if curve.tokens_per_step is not None), None),
    )


def _annealing_area(curve: Curve) -> float:
    """S2 from the highest rate on, which a warm-up has no part in; 0 where the rate does not fall."""
    rates = curve.rates[: int(curve.steps[-1])]
    return float(annealing_areas(rates[int(np.argmax(rates)) :])[-1])
