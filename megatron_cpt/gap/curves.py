"""Loss curves from the validation and task records of a run.

A curve is one validation set at its marks. Marks are comparable only on the same sequences, so where
a set was changed during a run (another identity), the marks after are a curve of their own (`later`), and
all figures are of the sequences that it began with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_cpt.config.errors import IntegrityFault

NATS = "nats per token"
WRONG = "share of questions answered wrongly"
"""Units of a loss. An accuracy is turned around, so that a rise is a loss of ability with both."""


@dataclass(frozen=True)
class LossCurve:
    """Loss of one validation set at the marks of one run, in order of steps."""

    name: str
    """The set's name, as the user gave it."""
    role: str
    """`domain` (what is learnt) or `replay` (what the model knew; general)."""
    identity: str
    """Hash of the set's sequences and settings: equal identities are comparable between runs."""
    steps: np.ndarray
    """int64 [marks]: optimizer steps done since the baseline; 0 is before the first update."""
    tokens: np.ndarray
    """int64 [marks]: tokens trained since the baseline."""
    losses: np.ndarray
    """float64 [marks]: nats per token. NaN where the recorded loss was not finite."""
    sequence_nats: np.ndarray | None = None
    """float64 [marks, sequences]: summed nats of each sequence, or 0 and 1 of each question; None: not recorded."""
    sequence_tokens: np.ndarray | None = None
    """int64 [sequences]: scored tokens of each sequence, the same at every mark."""
    unit: str = NATS
    """Of the losses: NATS or WRONG."""
    later: "LossCurve | None" = None
    """The marks on other sequences, or with other labels, since the set was changed. None: it was not."""

    @property
    def has_baseline(self) -> bool:
        """Whether the set was evaluated before the first update."""
        return bool(self.steps[0] == 0)


def loss_curves(records: Sequence[Mapping[str, Any]]) -> list[LossCurve]:
    """The curves of a run: general sets first, then domain sets, each in the order of first appearance.

    Records of other kinds are passed over. Raises IntegrityFault for a validation record without one of
    its fields, and for sequences whose token counts change between marks.
    """
    return _curves([record for record in records if record["kind"] == "validation"])


def task_curves(records: Sequence[Mapping[str, Any]]) -> list[LossCurve]:
    """The curves of the downstream tasks of a run, in the order of `loss_curves`, and with its errors."""
    try:
        marks = [
            dict(record)
            | {"set": record["task"], "sequence_nats": record["item_losses"], "sequence_tokens": record["item_weights"]}
            for record in records
            if record["kind"] == "task"
        ]
    except KeyError as error:
        raise IntegrityFault(f"records.jsonl: a task record has no field {error}") from error
    return _curves(marks)


def _curves(records: Sequence[Mapping[str, Any]]) -> list[LossCurve]:
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    try:
        for record in records:
            by_set.setdefault(record["set"], []).append(record)
        curves = [_curve(name, marks) for name, marks in by_set.items()]
    except KeyError as error:
        raise IntegrityFault(f"records.jsonl: a validation record has no field {error}") from error
    return sorted(curves, key=lambda curve: curve.role == "domain")


def _curve(name: str, records: Sequence[Mapping[str, Any]], beginning: Mapping[str, Any] | None = None) -> LossCurve:
    """The curve of a set's records; `beginning`: the mark that steps and tokens count from, None: the baseline."""
    first, latest = records[0], records[-1]
    same = {record["step"]: record for record in records if record["identity"] == first["identity"]}
    others = [record for record in records if record["identity"] != first["identity"]]
    marks = [same[step] for step in sorted(same)]
    losses = [np.nan if mark["loss"] is None else mark["loss"] for mark in marks]
    sequence_nats, sequence_tokens = _sequences(name, marks)
    # A run that goes on counting another's steps (`start.data: kept`) says which mark was before its first update.
    start = beginning or next((mark for mark in marks if mark.get("baseline")), {"step": 0, "tokens": 0})
    return LossCurve(
        name=name,
        role=latest["role"],
        identity=first["identity"],
        steps=np.array([mark["step"] - start["step"] for mark in marks], dtype=np.int64),
        tokens=np.array([mark["tokens"] - start["tokens"] for mark in marks], dtype=np.int64),
        losses=np.array(losses, dtype=np.float64),
        unit=WRONG if str(latest.get("metric", "")).endswith("accuracy") else NATS,
        sequence_nats=sequence_nats,
        sequence_tokens=sequence_tokens,
        later=_curve(name, others, start) if others else None,
    )


def _sequences(name: str, marks: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Per-sequence nats [marks, sequences] and tokens [sequences], or two Nones where a mark has none."""
    counts = [mark.get("sequence_tokens") for mark in marks]
    if not all(counts) or not all(mark.get("sequence_nats") for mark in marks):
        return None, None
    if any(count != counts[0] for count in counts):
        raise IntegrityFault(
            f"records.jsonl: the sequences of validation set {name!r} have other token counts at some marks, "
            "though the set's identity is the same"
        )
    if any(len(mark["sequence_nats"]) != len(counts[0] or []) for mark in marks):
        raise IntegrityFault(f"records.jsonl: validation set {name!r} has a mark with sequences missing")
    nats = np.array([mark["sequence_nats"] for mark in marks], dtype=np.float64)
    return nats, np.array(counts[0], dtype=np.int64)
