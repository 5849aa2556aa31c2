"""Loss curves from what other systems leave: CSV files and TensorBoard folders.

Such logs hold one loss a mark and no losses per sequence, so a curve of theirs has no standard errors
and no test; and they do not say which sequences were scored, so no two of them count as the same set.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.gap.curves import NATS, WRONG, LossCurve

ACCURACY = re.compile(r"(?<![a-z])acc(uracy)?(?![a-z])", re.IGNORECASE)
"""Names of columns and tags that hold accuracies: `acc`, `val_accuracy`, `acc,none`."""

MOST_NAMES = 30
"""Columns or tags that an error lists."""

Marks = dict[int, float]
"""Loss by step (or by tokens); a mark that was logged twice, as after a restart, is the later one."""


@dataclass(frozen=True)
class MappedSet:
    """What a user says of a column or tag."""

    name: str
    """The set's name in the report."""
    role: str
    """domain or replay."""
    column: str
    """The column of a CSV file, or the tag of a TensorBoard folder."""
    accuracy: bool = False
    """Whether it holds accuracies, 0 to 1, and not losses."""


@dataclass(frozen=True)
class ForeignSettings:
    """How logs of other systems are read."""

    sets: Sequence[MappedSet] = ()
    """The sets; none given: the column `loss` of a CSV file is the general set."""
    tokens_per_step: int | None = None
    """Tokens of one step; needed where a log counts steps alone."""
    start_step: int = 0
    """The step at which continual pretraining began: the baseline. Earlier marks are passed over."""


def is_foreign(path: Path) -> bool:
    """Whether a path is a CSV file or a TensorBoard folder, and no run folder of ours."""
    if path.is_dir():
        return not (path / "records.jsonl").exists() and any(path.glob("events.out.tfevents*"))
    return path.suffix.lower() == ".csv" and path.is_file()


def foreign_curves(path: Path, settings: ForeignSettings) -> list[LossCurve]:
    """The curves of a log, general sets first.

    Raises BadInput for a column or tag that the log does not have, for a log that counts steps where
    `tokens_per_step` is not given, and for what is not a number.
    """
    sets = sorted(settings.sets, key=lambda chosen: chosen.role == "domain")
    remedy = "Map it with --map-accuracy, or --map-domain-accuracy."
    rule = "holds accuracies, by its name: a fall of them is a loss of ability, not a gain."
    refuse(
        [
            Fault(f"{path}: {chosen.column}", rule, remedy)
            for chosen in sets
            if not chosen.accuracy and ACCURACY.search(chosen.column)
        ]
    )
    if path.is_dir():
        return [_tensorboard_curve(path, chosen, settings) for chosen in _asked(path, sets)]
    return [_csv_curve(path, chosen, settings) for chosen in sets or [MappedSet("general", "replay", "loss")]]


def _asked(path: Path, sets: Sequence[MappedSet]) -> Sequence[MappedSet]:
    if sets:
        return sets
    rule = f"a TensorBoard folder does not say which tag is which set. It has: {_listed(_scalars(path))}."
    raise BadInput(Fault(str(path), rule, "Map one: --map general=TAG (and --map-domain NAME=TAG)."))


def _tensorboard_curve(path: Path, chosen: MappedSet, settings: ForeignSettings) -> LossCurve:
    scalars = _scalars(path)
    if chosen.column not in scalars:
        raise BadInput(_absent(path, chosen, "tag", scalars))
    return _curve_of_steps(path, chosen, scalars[chosen.column], settings)


def _scalars(path: Path) -> dict[str, Marks]:
    """Every scalar of a folder by tag; 0 is TensorBoard's word for keeping all events."""
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def _csv_curve(path: Path, chosen: MappedSet, settings: ForeignSettings) -> LossCurve:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns, rows = reader.fieldnames or [], list(reader)
    if chosen.column not in columns:
        raise BadInput(_absent(path, chosen, "column", columns))
    axis = next((name for name in ("tokens", "step") if name in columns), None)
    if axis is None:
        rule = f"has neither a column `tokens` nor `step`; it has: {_listed(columns)}."
        raise BadInput(Fault(str(path), rule, "Name one of them so."))
    # A cell is empty where the set was not evaluated at that step.
    filled = [(line, row) for line, row in enumerate(rows, start=2) if (row[chosen.column] or "").strip()]
    cells = [(_number(path, line, row, axis), _number(path, line, row, chosen.column)) for line, row in filled]
    if not all(math.isfinite(place) for place, _ in cells):
        raise BadInput(Fault(f"{path}: column {axis}", "holds what is not a number.", "Mend the file."))
    marks = {round(place): loss for place, loss in cells}
    if axis == "step":
        return _curve_of_steps(path, chosen, marks, settings)
    return _curve(path, chosen, marks, marks, 1)


def _number(path: Path, line: int, row: Mapping[str, str | None], column: str) -> float:
    try:
        return float(row[column] or "")
    except ValueError as error:
        value = f"{path}, line {line}: {column} = {row[column]!r}"
        raise BadInput(Fault(value, "is not a number.", "Mend the line.")) from error


def _curve_of_steps(path: Path, chosen: MappedSet, marks: Marks, settings: ForeignSettings) -> LossCurve:
    if settings.tokens_per_step is None:
        remedy = "Give --tokens-per-step, the global batch size times the sequence length."
        raise BadInput(Fault(f"{path}: {chosen.column}", "is logged by steps, and gaps are in tokens.", remedy))
    kept = {step - settings.start_step: loss for step, loss in marks.items() if step >= settings.start_step}
    return _curve(path, chosen, kept, marks, settings.tokens_per_step)


def _curve(path: Path, chosen: MappedSet, marks: Marks, found: Marks, tokens_per_mark: int) -> LossCurve:
    if not marks:
        rule = "holds no loss." if not found else f"ends at step {max(found)}, before --start-step."
        raise BadInput(Fault(f"{path}: {chosen.column}", rule, "Check what is mapped."))
    steps = np.array(sorted(marks), dtype=np.int64)
    losses = np.array([marks[step] for step in steps.tolist()], dtype=np.float64)
    if chosen.accuracy:
        wrong = losses[(losses < 0) | (losses > 1)]
        if wrong.size:
            rule = f"holds {wrong[0]:g}, which is no accuracy from 0 to 1."
            raise BadInput(Fault(f"{path}: {chosen.column}", rule, "Divide percentages by 100."))
        losses = 1 - losses
    return LossCurve(
        name=chosen.name,
        role=chosen.role,
        identity=f"unknown: {chosen.column} of {path}",
        steps=steps,
        tokens=steps * tokens_per_mark,
        losses=np.where(np.isfinite(losses), losses, np.nan),
        unit=WRONG if chosen.accuracy else NATS,
    )


def _absent(path: Path, chosen: MappedSet, kind: str, names: Sequence[str] | Mapping[str, Marks]) -> Fault:
    return Fault(f"{path}: {chosen.column}", f"is no {kind} of it; it has: {_listed(names)}.", "Map one of those.")


def _listed(names: Sequence[str] | Mapping[str, Marks]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return (", ".join(sorted(names)[:MOST_NAMES]) or "nothing") + more
