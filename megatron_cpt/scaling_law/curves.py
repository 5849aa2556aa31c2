"""What the laws are fitted to: loss curves with the learning rate of every update.

They come from run folders, or from logs of other systems (CSV files of step, lr, loss; TensorBoard folders).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.runs.folder import RunFolder, read_json_object
from megatron_cpt.runs.foreign_logs import read_csv_rows, read_scalars
from megatron_cpt.runs.records import read_records


@dataclass(frozen=True)
class Curve:
    """The loss of one set along one run."""

    name: str
    """Of the run."""
    rates: np.ndarray
    """float64 [updates]: the learning rate of every update, from the first to at least the last step below."""
    steps: np.ndarray
    """int64 [points]: updates done where the loss was measured; at least 1, rising."""
    losses: np.ndarray
    """float64 [points]: nats per token."""
    base_forward_area: float | None = None
    """S1 of the base's pretraining; None where its history is not known."""
    base_annealing_area: float | None = None
    """S2 of the base's pretraining; None where its history is not known."""
    base_peak_rate: float | None = None
    """Highest learning rate of the base's pretraining; None where its history is not known."""
    base_final_rate: float | None = None
    """Last learning rate of the base's pretraining; None where its history is not known."""
    domain_share: float = 1.0
    """Share of new data among the training tokens: 1 - replay ratio."""
    start_loss: float | None = None
    """Loss before the first update, nats per token; None where it was not measured."""
    model_size: float | None = None
    """Parameters without embeddings; None where it is not known."""
    kind: str | None = None
    """Of the schedule; None where it is not known."""
    identity: str | None = None
    """Hash of the sequences that the losses are of; None where it is not known."""
    tokens_per_step: int | None = None
    """Of an update, after a ramp; None where it is not known."""

    @property
    def transient(self) -> int:
        """Updates at the start that no law describes: three warm-ups, or a tenth of the curve if that is more.

        Re-warming, fresh moments of Adam and the first adaptation are one fast process. A law fitted to it takes it
        for the response to the learning rate, and finds a decay that is far too fast.
        """
        rises = int(np.argmin(np.append(np.diff(self.rates) > 0, False)))
        warmup = rises + 1 if rises else 0
        last = int(self.steps[-1]) if len(self.steps) else 0
        return max(3 * warmup, math.ceil(last / 10))

    def after(self, step: int) -> "Curve":
        """The curve without its points before a step; the rates stay."""
        kept = self.steps >= step
        return replace(self, steps=self.steps[kept], losses=self.losses[kept])

    def until(self, step: int) -> "Curve":
        """The curve without its points after a step; the rates stay."""
        kept = self.steps <= step
        return replace(self, steps=self.steps[kept], losses=self.losses[kept])


def sets_of(path: str | Path) -> list[str]:
    """The validation sets that a run folder has losses of, in the order of its records."""
    records = read_records(RunFolder(path).records)
    return list(dict.fromkeys(record["set"] for record in records if record.get("kind") == "validation"))


def read_run(path: str | Path, validation_set: str) -> Curve:
    """The curve of a validation set of a run folder, with the learning rates that were used.

    The base's areas are those of lineage.json, None where it has none.

    Raises:
        BadInput: the folder has no records, not that set, not the learning rate of every update, or a loss or a rate
            that cannot be.
        IntegrityFault: a damaged file.
    """
    folder = RunFolder(path)
    records = read_records(folder.records)
    lineage, plan = read_json_object(folder.lineage) or {}, read_json_object(folder.plan) or {}
    first = first_step(plan)
    rates = {r["step"] - first: r.get("learning_rate") for r in records if r.get("kind") == "train"}
    evaluations = [
        r | {"step": r["step"] - first}
        for r in records
        if r.get("kind") == "validation" and r.get("set") == validation_set
    ]
    refuse(_run_faults(path, records, rates, evaluations, validation_set))
    points = {
        one["step"]: one.get("loss") for one in evaluations if one.get("identity") == evaluations[-1].get("identity")
    }
    measured = sorted(step for step, loss in points.items() if step > 0 and loss is not None)
    refuse(_value_faults(path, validation_set, rates, points, first))
    return Curve(
        name=Path(path).name,
        rates=np.array([rates[step] for step in sorted(rates)], dtype=np.float64),
        steps=np.array(measured, dtype=np.int64),
        losses=np.array([points[step] for step in measured], dtype=np.float64),
        base_forward_area=lineage.get("parent_forward_area"),
        base_annealing_area=lineage.get("parent_annealing_area"),
        base_peak_rate=lineage.get("parent_peak_learning_rate"),
        base_final_rate=lineage.get("parent_final_learning_rate"),
        domain_share=domain_share(plan),
        start_loss=points.get(0),
        model_size=plan.get("model", {}).get("non_embedding_parameters"),
        kind=plan.get("learning_rate", {}).get("kind"),
        identity=evaluations[-1].get("identity"),
        tokens_per_step=plan.get("tokens_per_step"),
    )


def _run_faults(
    path: str | Path,
    records: Sequence[dict[str, Any]],
    rates: dict[int, float | None],
    evaluations: Sequence[dict[str, Any]],
    validation_set: str,
) -> list[Fault]:
    if not evaluations:
        names = sorted({record["set"] for record in records if record.get("kind") == "validation"})
        remedy = f"It has {', '.join(names) or 'none'}."
        return [Fault(f"{path}: {validation_set}", "is not a validation set of this run.", remedy)]
    last = max(evaluation["step"] for evaluation in evaluations)
    if any(rates.get(step) is None for step in range(1, last + 1)):
        remedy = "The laws need the rate of every update: give a run whose records are whole."
        return [Fault(str(path), "some updates have no recorded learning rate.", remedy)]
    return []


def _value_faults(
    path: str | Path,
    validation_set: str,
    rates: dict[int, float | None],
    points: dict[int, float | None],
    first: int,
) -> list[Fault]:
    """The first loss and the first learning rate that cannot be."""
    faults = []
    losses = [(step, loss) for step, loss in sorted(points.items()) if loss is not None and not loss > 0]
    for step, loss in losses[:1]:
        value, rule = f"{path}: {validation_set} at step {step + first}: loss {loss:g}", "is not above 0."
        faults.append(Fault(value, rule, "Laws are of the logarithm of a loss: mend the record, or leave the set out."))
    below = [(step, rate) for step, rate in sorted(rates.items()) if rate is not None and rate < 0]
    for step, rate in below[:1]:
        remedy = "Mend the record, or leave the run out."
        faults.append(Fault(f"{path}: learning rate {rate:g} at step {step + first}", "is below 0.", remedy))
    return faults


def first_step(plan: dict[str, Any]) -> int:
    """Steps of another run that a run goes on counting, by its plan.json: a curve's steps are those after them."""
    return int(plan.get("start", {}).get("step", 0))


def domain_share(plan: dict[str, Any]) -> float:
    """Tokens read from domain sources over all, of a plan.json; 1 where there is no plan."""
    sources = plan.get("blend", {}).get("sources", [])
    total = sum(source["sequences"] for source in sources)
    domain = sum(source["sequences"] for source in sources if source["role"] == "domain")
    return domain / total if total else 1.0


_COLUMNS = ("step", "lr", "loss")

Row = tuple[int, float, float]
"""Step, rate, loss; the loss is NaN where it is missing."""


def read_csv(path: str | Path, warmup_steps: int | None = None) -> Curve:
    """A curve from a CSV file of another system, with a heading that names step, lr and loss.

    Between rows the rate runs straight, save that a change between two level stretches is a jump at the later
    row. Before the first row it is taken to have risen from 0: to the first row, or in `warmup_steps` updates
    and level from there. `step` is the number of the update whose rate `lr` is, with the loss at it; rows at step 0
    and rows without a loss give a rate, no point.

    Raises:
        BadInput: the file cannot be read, a column is missing, a value is no number, steps do not rise or go beyond
            `MOST_UPDATES`, a loss or the rates cannot be.
    """
    return _curve(path, Path(path).stem, _rows(Path(path)), warmup_steps)


def read_tensorboard(path: str | Path, loss_tag: str, rate_tag: str, warmup_steps: int | None = None) -> Curve:
    """A curve from the scalars of a TensorBoard folder; its rates are filled in as in `read_csv`.

    Raises:
        BadInput: a tag is not there, a rate is no number or below 0, a loss is not above 0 or infinite, no rate is
            above 0, or steps go beyond `MOST_UPDATES`.
    """
    tags = read_scalars(path)
    remedy = f"It has {', '.join(sorted(tags)) or 'none'}: name them with --loss-tag and --rate-tag."
    refuse([Fault(f"{path}: {tag}", "is no scalar tag of it.", remedy) for tag in (loss_tag, rate_tag)
            if tag not in tags])  # fmt: skip
    losses, rates = tags[loss_tag], tags[rate_tag]
    if not any(rate > 0 for rate in rates.values()):
        raise BadInput(Fault(f"{path}: {rate_tag}", "is nowhere above 0.", "Give the tag of the learning rate."))
    if min(rates.values()) < 0 or not all(map(math.isfinite, rates.values())):
        raise BadInput(Fault(f"{path}: {rate_tag}", "is below 0 or no number.", "Give the tag of the learning rate."))
    if any(loss <= 0 or math.isinf(loss) for loss in losses.values()):
        rule = "is not above 0 everywhere, or infinite."
        raise BadInput(Fault(f"{path}: {loss_tag}", rule, "Give the tag of a loss."))
    known = np.array(sorted(rates))
    steps = sorted(rates.keys() | {step for step in losses if known[0] <= step <= known[-1]})
    filled = np.interp(steps, known, [rates[step] for step in known.tolist()])
    rows = [(step, rate, losses.get(step, math.nan)) for step, rate in zip(steps, filled.tolist(), strict=True)]
    return _curve(path, Path(path).name, rows, warmup_steps)


MOST_UPDATES = 10_000_000
"""Of a curve: the rate of each is kept. Longer than any run; a log that counts tokens or samples goes beyond."""


def _curve(path: str | Path, name: str, rows: Sequence[Row], warmup_steps: int | None) -> Curve:
    if rows[-1][0] > MOST_UPDATES:
        rule = f"is beyond the {MOST_UPDATES:,} updates that a law takes."
        raise BadInput(Fault(f"{path}: step {rows[-1][0]}", rule, "Give steps in updates, not in tokens or samples."))
    steps = np.array([row[0] for row in rows], dtype=np.int64)
    rates = np.array([row[1] for row in rows])
    losses = np.array([row[2] for row in rows])
    kept = np.isfinite(losses) & (steps > 0)
    return Curve(
        name=name,
        rates=rates_of_every_update(steps, rates, warmup_steps),
        steps=steps[kept],
        losses=losses[kept],
    )


def rates_of_every_update(steps: np.ndarray, rates: np.ndarray, warmup_steps: int | None = None) -> np.ndarray:
    """The rate of each update 1, 2, ..., steps[-1], from those logged at some (`read_csv` says how).

    Args:
        steps: int64 [rows], rising.
        rates: float64 [rows].
        warmup_steps: updates of the rise from 0 before the first row; None: up to the first row.
    """
    updates = np.arange(1, steps[-1] + 1)
    filled = np.interp(updates, steps, rates)
    level = np.diff(rates) == 0
    for row in np.flatnonzero(~level):
        from_level = row == 0 or level[row - 1]
        to_level = row + 1 == len(level) or level[row + 1]
        if from_level and to_level and len(level) > 2:
            filled[steps[row] : steps[row + 1] - 1] = rates[row]
    rise = max(1, steps[0] if warmup_steps is None else min(warmup_steps, steps[0]))
    early = updates < steps[0]
    filled[early] = rates[0] * np.minimum(1.0, updates[early] / rise)
    return filled


def _rows(path: Path) -> list[Row]:
    """(step, rate, loss) of each row, loss NaN where it is missing."""
    columns, table = read_csv_rows(path, "Give a CSV file of step, lr, loss.")
    missing = [name for name in _COLUMNS if name not in columns]
    if missing or not table:
        rule = f"has no column {', '.join(missing)}." if missing else "has no rows."
        raise BadInput(Fault(str(path), rule, "The first line names the columns: step,lr,loss."))
    rows: list[Row] = []
    faults = []
    for line, cells in enumerate(table, start=2):
        try:
            row = (_whole(cells["step"]), float(cells["lr"]), float(cells["loss"] or "nan"))
        except (TypeError, ValueError, OverflowError):
            faults.append(Fault(f"{path}, line {line}", "is not step, lr and loss as numbers.", "Mend the line."))
            continue
        if not (math.isfinite(row[1]) and row[1] >= 0) or row[2] <= 0 or math.isinf(row[2]) or row[0] < 0:
            faults.append(Fault(f"{path}, line {line}", "step, lr or loss is out of range.", "Mend the line."))
        elif rows and row[0] <= rows[-1][0]:
            faults.append(Fault(f"{path}, line {line}", "its step does not come after the one before.", "Sort them."))
        rows.append(row)
    refuse(faults[:5])
    if rows[-1][0] == 0 or not any(rate > 0 for _, rate, _ in rows):
        raise BadInput(Fault(str(path), "has no update with a learning rate above 0.", "Give a curve of training."))
    return rows


def _whole(text: str) -> int:
    number = float(text)
    if number != int(number):
        raise ValueError(text)
    return int(number)
