"""What a run remembers of its past: the losses by which spikes are judged, and the sequences that were left out."""

import math
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

from megatron_cpt.checkpoint.position import Position
from megatron_cpt.config.schema import TrainingSettings


@dataclass(frozen=True)
class History:
    """What of a run's past its next step depends on, beside weights, optimizer and random states."""

    losses: tuple[float, ...] = ()
    """Losses of the last updates, nats per token, oldest first."""
    left_out: tuple[tuple[int, int], ...] = ()
    """Ranges of the order, [first sequence, end), that no update was made of."""
    in_a_row: int = 0
    """Steps left out since the last update."""

    @classmethod
    def of(cls, position: Position) -> "History":
        """The history that a checkpoint keeps."""
        return cls(
            tuple(position.recent_losses),
            tuple((first, end) for first, end in position.left_out),
            position.left_out_in_a_row,
        )

    def loss_limit(self, settings: TrainingSettings) -> float:
        """The loss above which the next step is a spike; infinite while there is too little to judge by.

        Mean plus a number of standard deviations of the last updates, as in OLMo-core's SkipStepOptimizer.
        """
        if settings.on_spike == "go_on" or len(self.losses) < max(2, settings.spike_window // 2):
            return math.inf
        return fmean(self.losses) + settings.spike_deviations * pstdev(self.losses)

    def with_update(self, loss: float, settings: TrainingSettings) -> "History":
        """The history after an update."""
        if math.isnan(loss):  # no label counted
            return replace(self, in_a_row=0)
        losses = () if settings.on_spike == "go_on" else (*self.losses, loss)[-settings.spike_window :]
        return replace(self, losses=losses, in_a_row=0)

    def without(self, first_sequence: int, end: int, in_a_row: int) -> "History":
        """The history after steps that no update was made of; a range that touches the last joins it."""
        ranges = self.left_out
        if ranges and ranges[-1][1] >= first_sequence:
            first_sequence, ranges = ranges[-1][0], ranges[:-1]
        return replace(self, left_out=(*ranges, (first_sequence, end)), in_a_row=in_a_row)
