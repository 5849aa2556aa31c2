"""What a run recorded beside its losses: groups of tasks, weight updates, stability gradients, events, time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_cpt.runs.records import Record

MEASURES = ("mean_relative", "norm_ratio")
"""The two forms of the relative weight update (docs/gap.md)."""


@dataclass(frozen=True)
class Series:
    """One figure over a run."""

    tokens: np.ndarray
    """int64 [marks]: tokens trained."""
    values: np.ndarray
    """float64 [marks]; NaN where a record has no value."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run."""

    step: int | None
    """At which step."""
    tokens: int | None
    """Tokens trained."""
    name: str
    """What the record calls it."""
    details: dict[str, str]
    """Its other fields, as text."""


@dataclass(frozen=True)
class Signals:
    """What is drawn beside the losses. Empty where a run did not record it."""

    groups: dict[str, Series]
    """Mean accuracy of each group of tasks."""
    updates: dict[str, dict[str, Series]]
    """{measure: {bottom, top, bottom_over_top: series}}."""
    stability: dict[str, Series]
    """Gradient norm on held-out text, by validation set."""
    speed: Series
    """Tokens per second of each step."""
    seconds: dict[str, float]
    """Time of all records of a kind that have a time: train, validation, task, stability."""
    events: list[Event]
    """In the order of the records."""


def signals(records: Sequence[Record]) -> Signals:
    """Gathers the signals of a run."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(str(record.get("kind")), []).append(record)
    groups: dict[str, list[Record]] = {}
    for record in by_kind.get("task_group", []):
        groups.setdefault(str(record.get("group")), []).append(record)
    stability: dict[str, list[Record]] = {}
    for record in by_kind.get("stability", []):
        stability.setdefault(str(record.get("set")), []).append(record)
    weights = by_kind.get("weights", [])
    return Signals(
        groups={name: _series(lines, lambda line: line.get("score")) for name, lines in groups.items()},
        updates=_updates(weights) if weights else {},
        stability={name: _series(lines, lambda line: line.get("gradient_norm")) for name, lines in stability.items()},
        speed=_series(by_kind.get("train", []), lambda line: line.get("tokens_per_second")),
        seconds={
            kind: sum(line["seconds"] for line in lines if line.get("seconds") is not None)
            for kind, lines in by_kind.items()
            if any(line.get("seconds") is not None for line in lines)
        },
        events=[_event(record) for record in by_kind.get("event", [])],
    )


def _updates(records: Sequence[Record]) -> dict[str, dict[str, Series]]:
    def of(measure: str, end: str) -> Series:
        return _series(records, lambda line: (line.get(measure) or {}).get(end))

    return {measure: {end: of(measure, end) for end in ("bottom", "top", "bottom_over_top")} for measure in MEASURES}


def _series(records: Sequence[Record], value: Callable[[Record], float | None]) -> Series:
    tokens = [record.get("tokens", 0) for record in records]
    values = [value(record) for record in records]
    return Series(
        np.array(tokens, dtype=np.int64),
        np.array([np.nan if one is None else one for one in values], dtype=np.float64),
    )


def _event(record: Record) -> Event:
    known = ("kind", "event", "step", "tokens")
    details = {str(name): _text(value) for name, value in record.items() if name not in known and value is not None}
    return Event(record.get("step"), record.get("tokens"), str(record.get("event", "event")), details)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
