"""Tables of final losses over mixture, tokens and model size: from run folders, or a CSV file.

A CSV file has a row a run: `loss:SET` of each validation set, and where known `start:SET` (its loss before the first
update), `tokens`, `model_size` (parameters without embeddings), `replay_ratio`, or `share:SOURCE` of each source. A
missing value is missing, never 0.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.runs.records import read_records
from megatron_cpt.scaling_law.points import domain_share, first_step, read_object, read_run, sets_of

LOSS, START, SHARE = "loss:", "start:", "share:"
NUMBERS = ("tokens", "model_size", "replay_ratio")
"""Columns beside those with a name in them."""


@dataclass(frozen=True)
class Table:
    """Losses of one validation set, a row a run (or a mark of a run)."""

    name: str
    """Of the validation set."""
    losses: np.ndarray
    """float64 [rows]: nats per token; NaN where a row is to be predicted."""
    starts: np.ndarray
    """float64 [rows]: before the first update; NaN where it was not measured."""
    columns: dict[str, np.ndarray]
    """float64 [rows] of `tokens`, `model_size`, `replay_ratio`, `share:SOURCE`: those that are known of every row."""
    rows: tuple[str, ...]
    """Names of the rows."""

    def column(self, name: str) -> np.ndarray:
        """A column. Raises BadInput where it is not known of every row."""
        if name not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise BadInput(Fault(name, "is not known of every row.", f"Known are {known}: add the column."))
        return self.columns[name]

    def only(self, rows: np.ndarray) -> "Table":
        """Some of the rows, by number."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        names = tuple(self.rows[row] for row in rows)
        return Table(self.name, self.losses[rows], self.starts[rows], columns, names)

    @property
    def shares(self) -> dict[str, np.ndarray]:
        """The share of each source: float64 [rows], by name; domain and replay where only the ratio is known."""
        named = {name.removeprefix(SHARE): column for name, column in self.columns.items() if name.startswith(SHARE)}
        if named:
            return named
        replay = self.column("replay_ratio")
        return {"domain": 1 - replay, "replay": replay}


def read_table(path: str | Path, sets: Sequence[str] | None = None) -> dict[str, Table]:
    """A CSV file's tables by validation set, of those asked for also where it has no losses of them.

    Raises BadInput for what cannot be read or cannot be.
    """
    path = Path(path)
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names, cells = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(Fault(str(path), f"cannot be read: {error}.", "Give a CSV file of final losses.")) from error
    unknown = [n for n in names if n not in (*NUMBERS, "run") and not n.startswith((LOSS, START, SHARE))]
    remedy = f"Columns are run, {', '.join(NUMBERS)}, {LOSS}SET, {START}SET, {SHARE}SOURCE."
    refuse([Fault(f"{path}: {name}", "is no column of a table of losses.", remedy) for name in unknown])
    sets = sets or [name.removeprefix(LOSS) for name in names if name.startswith(LOSS)]
    if not sets or not cells:
        rule = f"has no column {LOSS}SET." if cells else "has no rows."
        raise BadInput(Fault(str(path), rule, "Give one row a run, and a loss:SET column a validation set."))
    read = {name: _column(path, name, cells) for name in names if name != "run"}
    refuse([fault for _, faults in read.values() for fault in faults][:5])
    numbers = {name: np.array(values) for name, (values, _) in read.items()}
    rows = tuple(row.get("run") or f"row {number}" for number, row in enumerate(cells, 1))
    return _tables(sets, numbers, rows)


def tables_of_runs(paths: Sequence[str], along_from: int | None = None) -> dict[str, Table]:
    """The tables of the validation sets that run folders share: a row a run, or a row a mark from a step on.

    Raises BadInput for runs without a set in common.
    """
    shared = [name for name in sets_of(paths[0]) if all(name in sets_of(path) for path in paths)]
    if not shared:
        raise BadInput(Fault(", ".join(paths[:3]), "have no validation set in common.", "Give runs that share one."))
    columns: dict[str, list[float]] = {}
    rows: list[str] = []
    for path in paths:
        curves = {name: read_run(path, name) for name in shared}
        plan = read_object(RunFolder(path).plan)
        first, before = first_step(plan), plan.get("start", {}).get("tokens", 0)
        tokens = {
            r["step"] - first: None if r.get("tokens") is None else r["tokens"] - before
            for r in read_records(RunFolder(path).records)
            if r["kind"] == "train"
        }
        steps = set.intersection(*({int(step) for step in curve.steps} for curve in curves.values()))
        last = sorted(steps)[-1:]
        for step in last if along_from is None else sorted(step for step in steps if step >= along_from) or last:
            values: dict[str, float | None] = {
                "tokens": tokens.get(step),
                "model_size": plan.get("model", {}).get("non_embedding_parameters"),
                "replay_ratio": 1 - domain_share(plan),
            }
            values |= {SHARE + source["name"]: source["share"] for source in plan.get("blend", {}).get("sources", [])}
            for name, curve in curves.items():
                values[LOSS + name] = float(curve.losses[curve.steps == step][0])
                values[START + name] = curve.start_loss
            for name in columns.keys() | values.keys():
                value = values.get(name)
                columns.setdefault(name, [0.0 if name.startswith(SHARE) else math.nan] * len(rows)).append(
                    (0.0 if name.startswith(SHARE) else math.nan) if value is None else float(value)
                )
            rows.append(Path(path).name + ("" if along_from is None else f" at {step}"))
    return _tables(shared, {name: np.array(column) for name, column in columns.items()}, tuple(rows))


def _tables(sets: Sequence[str], numbers: Mapping[str, np.ndarray], rows: tuple[str, ...]) -> dict[str, Table]:
    columns = {
        name: column
        for name, column in numbers.items()
        if not name.startswith((LOSS, START)) and np.all(np.isfinite(column))
    }
    nothing = np.full(len(rows), np.nan)
    return {
        name: Table(name, numbers.get(LOSS + name, nothing), numbers.get(START + name, nothing), columns, rows)
        for name in sets
    }


def _column(path: Path, name: str, cells: Sequence[Mapping[str, str]]) -> tuple[list[float], list[Fault]]:
    """The numbers of a column, NaN where one is missing, and what is wrong with it."""
    values, faults = [], []
    is_share = name.startswith(SHARE) or name == "replay_ratio"
    for line, row in enumerate(cells, start=2):
        try:
            value = float(row[name] or "nan")
        except (TypeError, ValueError):
            faults.append(Fault(f"{path}, line {line}: {name} = {row[name]}", "is no number.", "Mend the line."))
            continue
        if np.isinf(value) or value < 0 or (is_share and value > 1) or (value == 0 and not is_share):
            faults.append(Fault(f"{path}, line {line}: {name} = {value:g}", "cannot be.", "Mend the line."))
        values.append(value)
    return values, faults
