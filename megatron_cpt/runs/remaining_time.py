"""The time that a run still takes, by the pace of what it has done."""

from collections.abc import Mapping

KEPT = 0.8
"""Weight of earlier work beside that which was done last: the first step and the first save take longer than others."""


class RemainingTime:
    """Work of several kinds: how long it took, and how long what is left of it will take."""

    def __init__(self) -> None:
        self._done: dict[str, tuple[float, float]] = {}

    def add(self, kind: str, amount: float, seconds: float) -> None:
        """Takes note of work that was done, in the unit of its kind."""
        before, their_seconds = self._done.get(kind, (0.0, 0.0))
        self._done[kind] = (KEPT * before + amount, KEPT * their_seconds + seconds)

    def seconds(self, left: Mapping[str, float]) -> float:
        """Seconds of the work that is left, by kind. A kind of which nothing was done yet counts as nothing."""
        known = {kind: self._done[kind] for kind in left if kind in self._done}
        return sum(left[kind] * seconds / amount for kind, (amount, seconds) in known.items())
