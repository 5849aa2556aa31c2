"""Loss curves from the records of a run, and from logs of other systems.

These are CSV files (also as TensorBoard and Weights & Biases export them), TensorBoard folders, Hugging Face's
trainer_state.json and its folders, and the text that Megatron-LM prints.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault, IntegrityFault, refuse
from megatron_cpt.config.units import short_count
from megatron_cpt.runs.foreign_logs import read_csv_rows, read_scalars

NATS = "nats per token"
WRONG = "share of questions answered wrongly"
"""Units of a loss. An accuracy is turned around, so that a rise is a loss of ability with both."""


@dataclass(frozen=True)
class LossCurve:
    """Loss of one validation set at the evaluations of one run, in order of steps."""

    name: str
    """The set's name, as the user gave it."""
    role: str
    """`domain` (what is learnt) or `general` (what the model knew)."""
    identity: str
    """Hash of the set's sequences and settings: equal identities are comparable between runs."""
    steps: np.ndarray
    """int64 [evaluations]: optimizer steps done since the baseline; 0 is before the first update."""
    tokens: np.ndarray
    """int64 [evaluations]: tokens trained since the baseline."""
    losses: np.ndarray
    """float64 [evaluations]: nats per token. NaN where the recorded loss was not finite."""
    sequence_nats: np.ndarray | None = None
    """float64 [evaluations, sequences]: summed nats of a sequence, or 0 and 1 of a question. None: not recorded."""
    sequence_tokens: np.ndarray | None = None
    """int64 [sequences]: scored tokens of each sequence, the same at every evaluation."""
    unit: str = NATS
    """Of the losses: NATS or WRONG."""
    later: "LossCurve | None" = None
    """The evaluations on other sequences, or with other labels, since the set was changed. None: it was not."""
    first_step: int = 0
    """The step of the baseline as the records or the log count it; `steps` is counted from it."""

    @property
    def has_baseline(self) -> bool:
        """Whether the set was evaluated before the first update."""
        return bool(self.steps[0] == 0)

    @property
    def is_finite(self) -> np.ndarray:
        """bool [evaluations]: whether the loss is finite."""
        return np.isfinite(self.losses)

    def finite(self) -> "LossCurve":
        """The evaluations whose loss is finite."""
        kept = self.is_finite
        nats = None if self.sequence_nats is None else self.sequence_nats[kept]
        return replace(
            self, steps=self.steps[kept], tokens=self.tokens[kept], losses=self.losses[kept], sequence_nats=nats
        )

    def places(self, chosen: np.ndarray) -> str:
        """Where some evaluations were, in words: `steps 10 and 20`, or `5K tokens` of a log that counts no steps.

        `chosen`: bool [evaluations], one of them at least true.
        """
        if np.array_equal(self.steps, self.tokens) and self.tokens[-1] > 0:
            return f"{_listed_counts([short_count(count, zeros=False) for count in self.tokens[chosen]])} tokens"
        steps = [f"{step + self.first_step:,}" for step in self.steps[chosen].tolist()]
        return f"{'step' if len(steps) == 1 else 'steps'} {_listed_counts(steps)}"


def loss_curves(records: Sequence[Mapping[str, Any]]) -> list[LossCurve]:
    """The curves of a run: general sets first, then domain sets, each in the order of first appearance.

    Records of other kinds are passed over. Raises IntegrityFault for a validation record without one of
    its fields, and for sequences whose token counts change between evaluations.
    """
    return _curves([record for record in records if record["kind"] == "validation"])


def task_curves(records: Sequence[Mapping[str, Any]]) -> list[LossCurve]:
    """The curves of the downstream tasks of a run, in the order of `loss_curves`, and with its errors."""
    try:
        evaluations = [
            dict(record)
            | {"set": record["task"], "sequence_nats": record["item_losses"], "sequence_tokens": record["item_weights"]}
            for record in records
            if record["kind"] == "task"
        ]
    except KeyError as error:
        raise IntegrityFault(f"records.jsonl: a task record has no field {error}") from error
    return _curves(evaluations)


def _curves(records: Sequence[Mapping[str, Any]]) -> list[LossCurve]:
    by_set: dict[str, list[Mapping[str, Any]]] = {}
    try:
        for record in records:
            by_set.setdefault(record["set"], []).append(record)
        curves = [_curve(name, evaluations) for name, evaluations in by_set.items()]
    except KeyError as error:
        raise IntegrityFault(f"records.jsonl: a validation record has no field {error}") from error
    return sorted(curves, key=lambda curve: curve.role == "domain")


def _curve(name: str, records: Sequence[Mapping[str, Any]], beginning: Mapping[str, Any] | None = None) -> LossCurve:
    """The curve of a set's records. Steps and tokens count from `beginning`, or from the baseline (None)."""
    first, latest = records[0], records[-1]
    same = {record["step"]: record for record in records if record["identity"] == first["identity"]}
    others = [record for record in records if record["identity"] != first["identity"]]
    evaluations = [same[step] for step in sorted(same)]
    losses = [np.nan if evaluation["loss"] is None else evaluation["loss"] for evaluation in evaluations]
    sequence_nats, sequence_tokens = _sequences(name, evaluations)
    # A run that goes on counting another's steps (`init_from.load_data_position: true`) says which evaluation was
    # before its first update.
    start = beginning or next((one for one in evaluations if one.get("baseline")), {"step": 0, "tokens": 0})
    return LossCurve(
        name=name,
        role=latest["role"],
        identity=first["identity"],
        steps=np.array([evaluation["step"] - start["step"] for evaluation in evaluations], dtype=np.int64),
        tokens=np.array([evaluation["tokens"] - start["tokens"] for evaluation in evaluations], dtype=np.int64),
        losses=np.array(losses, dtype=np.float64),
        unit=WRONG if str(latest.get("metric", "")).endswith("accuracy") else NATS,
        sequence_nats=sequence_nats,
        sequence_tokens=sequence_tokens,
        later=_curve(name, others, start) if others else None,
        first_step=start["step"],
    )


def _listed_counts(counts: Sequence[str]) -> str:
    """`1`, `1 and 2`, `1, 2 and 3`; of more than six the first and the last, with their number."""
    if len(counts) > _MOST_PLACES:
        return f"{counts[0]} to {counts[-1]} ({len(counts)} evaluations)"
    return " and ".join([", ".join(counts[:-1]), counts[-1]] if len(counts) > 1 else counts)


def _sequences(name: str, evaluations: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Per-sequence nats [evaluations, sequences] and tokens [sequences], or two Nones where an evaluation has none."""
    counts = [evaluation.get("sequence_tokens") for evaluation in evaluations]
    if not all(counts) or not all(evaluation.get("sequence_nats") for evaluation in evaluations):
        return None, None
    if any(count != counts[0] for count in counts):
        raise IntegrityFault(
            f"records.jsonl: the sequences of validation set {name!r} have other token counts at some evaluations, "
            "though the set's identity is the same"
        )
    if any(len(evaluation["sequence_nats"]) != len(counts[0] or []) for evaluation in evaluations):
        raise IntegrityFault(f"records.jsonl: validation set {name!r} has an evaluation with sequences missing")
    nats = np.array([evaluation["sequence_nats"] for evaluation in evaluations], dtype=np.float64)
    return nats, np.array(counts[0], dtype=np.int64)


_MOST_PLACES = 6
"""Evaluations that are named one by one."""

_ACCURACY = re.compile(r"(?<![a-z])acc(uracy)?(?![a-z])", re.IGNORECASE)
"""Names of columns and tags that hold accuracies: `acc`, `val_accuracy`, `acc,none`."""

_AXES = ("tokens", "step", "_step", "global_step", "trainer/global_step", "iteration")
"""Names of columns, in any case, that say where a loss was logged."""
_MOST_NAMES = 30
"""Columns or tags that an error lists."""

LossBySteps = dict[int, float]
"""Loss by step (or by tokens); an evaluation that was logged twice, as after a restart, is the later one."""


@dataclass(frozen=True)
class MappedSet:
    """What a user says of a column or tag."""

    name: str
    """The set's name in the report."""
    role: str
    """domain or replay."""
    column: str
    """The column of a CSV file, or the tag of another log; empty: the one column of losses."""
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
    """The step at which continual pretraining began: the baseline. Earlier evaluations are passed over."""


_UNKNOWN = "unknown: "
"""How the identity begins of sequences that no record describes."""


def is_unknown(curve: LossCurve) -> bool:
    """Whether nothing is known of a curve's sequences: it is of a log of another system."""
    return curve.identity.startswith(_UNKNOWN)


def is_foreign(path: Path) -> bool:
    """Whether a path is a log of another system, and no run folder of ours."""
    if path.is_dir():
        return not (path / "records.jsonl").exists() and bool(_logs_in(path))
    if not path.is_file():
        return False
    return path.suffix.lower() == ".csv" or path.name == _TRAINER_STATE or _is_megatron_log(path)


_TRAINER_STATE = "trainer_state.json"
"""Hugging Face's Trainer keeps what it logged there."""
_TRAINING_LINE = re.compile(r"\biteration +(\d+)/ *\d+ \|.*\| lm loss: ([-+.0-9naifE]+) \|")
_VALIDATION_LINE = re.compile(r"validation(\S*) loss at iteration (\d+)(?: on validation set)? \|(.*)")
_VALUE = re.compile(r"\s*([^|]+?) value: ([-+.0-9naifE]+)\s*\|")
"""As Megatron-LM prints them (megatron/training/training.py)."""
_LOOKED_AT = 1 << 20
"""Bytes of a text that tell whether it is Megatron-LM's."""


def _logs_in(folder: Path) -> list[Path]:
    """The logs of a folder: its own events, or in Hugging Face's the state of the trainer, or one folder a start."""
    if any(folder.glob("events.out.tfevents*")):
        return [folder]
    if (folder / _TRAINER_STATE).is_file():
        return [folder / _TRAINER_STATE]
    return sorted({events.parent for events in folder.glob("runs/*/events.out.tfevents*")})


def _is_megatron_log(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT).decode(errors="replace")
    return bool(_TRAINING_LINE.search(head) or _VALIDATION_LINE.search(head))


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
            if not chosen.accuracy and _ACCURACY.search(chosen.column)
        ]
    )
    if path.suffix.lower() == ".csv":
        return [_csv_curve(path, chosen, settings) for chosen in sets or [MappedSet("general", "general", "")]]
    scalars = _scalars(path)
    return [_curve_of_scalars(path, chosen, scalars, settings) for chosen in _asked(path, sets, scalars)]


def _asked(path: Path, sets: Sequence[MappedSet], scalars: Mapping[str, LossBySteps]) -> Sequence[MappedSet]:
    if sets:
        return sets
    rule = f"it does not say which tag is which set. It has: {_listed(scalars)}."
    raise BadInput(Fault(str(path), rule, "Map one: --map general=TAG (and --map-domain NAME=TAG)."))


def _curve_of_scalars(
    path: Path, chosen: MappedSet, scalars: Mapping[str, LossBySteps], settings: ForeignSettings
) -> LossCurve:
    if chosen.column not in scalars:
        raise BadInput(_absent(path, chosen, "tag", scalars))
    return _curve_of_steps(path, chosen, scalars[chosen.column], settings)


def _scalars(path: Path) -> dict[str, LossBySteps]:
    """Every scalar of a log by tag."""
    logs = _logs_in(path) if path.is_dir() else [path]
    if len(logs) > 1:
        names = ", ".join(str(log.relative_to(path)) for log in logs)
        raise BadInput(Fault(str(path), f"holds several logs: {names}.", "Give the one that is meant."))
    [log] = logs
    if log.is_dir():
        return read_scalars(log)
    return _trainer_state(log) if log.name == _TRAINER_STATE else _megatron_log(log)


def _trainer_state(path: Path) -> dict[str, LossBySteps]:
    try:
        history = json.loads(path.read_text())["log_history"]
        scalars: dict[str, LossBySteps] = {}
        for entry in history:
            for name, value in entry.items():
                if name != "step" and isinstance(value, int | float):
                    scalars.setdefault(name, {})[int(entry["step"])] = float(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"is not what Hugging Face's Trainer writes ({error})."
        raise BadInput(Fault(str(path), rule, "Copy it again.")) from error
    return scalars


def _megatron_log(path: Path) -> dict[str, LossBySteps]:
    """Losses by the tags that Megatron-LM gives them in TensorBoard."""
    scalars: dict[str, LossBySteps] = {}
    with path.open(errors="replace") as file:
        for line in file:
            if match := _TRAINING_LINE.search(line):
                scalars.setdefault("lm loss", {})[int(match[1])] = float(match[2])
            elif match := _VALIDATION_LINE.search(line):
                for name, value in _VALUE.findall(match[3]):
                    scalars.setdefault(f"{name} validation{match[1]}", {})[int(match[2])] = float(value)
    return scalars


def _csv_curve(path: Path, chosen: MappedSet, settings: ForeignSettings) -> LossCurve:
    columns, rows = read_csv_rows(path, "Give a CSV file with a column `tokens` or `step`.")
    by_name = {name.lower(): name for name in reversed(columns)}
    if not chosen.column:
        # TensorBoard's export has one column of values.
        chosen = replace(chosen, column=by_name.get("loss", by_name.get("value", "loss")))
    if chosen.column not in columns:
        raise BadInput(_absent(path, chosen, "column", columns))
    axis = next((by_name[name] for name in _AXES if name in by_name), None)
    if axis is None:
        rule = f"has neither a column `tokens` nor `step`; it has: {_listed(columns)}."
        raise BadInput(Fault(str(path), rule, "Name one of them so."))
    # A cell is empty where the set was not evaluated at that step.
    filled = [(line, row) for line, row in enumerate(rows, start=2) if (row[chosen.column] or "").strip()]
    cells = [(_number(path, line, row, axis), _number(path, line, row, chosen.column)) for line, row in filled]
    if not all(math.isfinite(place) for place, _ in cells):
        raise BadInput(Fault(f"{path}: column {axis}", "holds what is not a number.", "Mend the file."))
    evaluations = {round(place): loss for place, loss in cells}
    if axis.lower() != "tokens":
        return _curve_of_steps(path, chosen, evaluations, settings)
    return _mapped_curve(path, chosen, evaluations, evaluations, 1)


def _number(path: Path, line: int, row: Mapping[str, str | None], column: str) -> float:
    try:
        return float(row[column] or "")
    except ValueError as error:
        value = f"{path}, line {line}: {column} = {row[column]!r}"
        raise BadInput(Fault(value, "is not a number.", "Mend the line.")) from error


def _curve_of_steps(path: Path, chosen: MappedSet, evaluations: LossBySteps, settings: ForeignSettings) -> LossCurve:
    if settings.tokens_per_step is None:
        remedy = "Give --tokens-per-step, the global batch size times the sequence length."
        raise BadInput(Fault(f"{path}: {chosen.column}", "is logged by steps, and gaps are in tokens.", remedy))
    kept = {step - settings.start_step: loss for step, loss in evaluations.items() if step >= settings.start_step}
    curve = _mapped_curve(path, chosen, kept, evaluations, settings.tokens_per_step)
    return replace(curve, first_step=settings.start_step)


def _mapped_curve(
    path: Path, chosen: MappedSet, evaluations: LossBySteps, found: LossBySteps, tokens_per_step: int
) -> LossCurve:
    if not evaluations:
        rule = "holds no loss." if not found else f"ends at step {max(found)}, before --start-step."
        raise BadInput(Fault(f"{path}: {chosen.column}", rule, "Check what is mapped."))
    steps = np.array(sorted(evaluations), dtype=np.int64)
    losses = np.array([evaluations[step] for step in steps.tolist()], dtype=np.float64)
    if chosen.accuracy:
        wrong = losses[(losses < 0) | (losses > 1)]
        if wrong.size:
            rule = f"holds {wrong[0]:g}, which is no accuracy from 0 to 1."
            raise BadInput(Fault(f"{path}: {chosen.column}", rule, "Divide percentages by 100."))
        losses = 1 - losses
    return LossCurve(
        name=chosen.name,
        role=chosen.role,
        identity=f"{_UNKNOWN}{chosen.column} of {path}",
        steps=steps,
        tokens=steps * tokens_per_step,
        losses=np.where(np.isfinite(losses), losses, np.nan),
        unit=WRONG if chosen.accuracy else NATS,
    )


def _absent(path: Path, chosen: MappedSet, kind: str, names: Sequence[str] | Mapping[str, LossBySteps]) -> Fault:
    return Fault(f"{path}: {chosen.column}", f"is no {kind} of it; it has: {_listed(names)}.", "Map one of those.")


def _listed(names: Sequence[str] | Mapping[str, LossBySteps]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(sorted(names)[:_MOST_NAMES]) or "nothing") + more
