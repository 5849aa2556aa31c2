"""Tables of final losses over mixture, tokens and model size: read, fitted, and the critical mixture ratio.

Tables come from run folders or a CSV file. The critical mixture ratio is that of arXiv:2407.17467.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.units import counted
from megatron_cpt.runs.folder import RunFolder, proved, read_json_object
from megatron_cpt.runs.foreign_logs import read_csv_rows
from megatron_cpt.runs.records import read_records
from megatron_cpt.scaling_law.choose import fit_of_document, fit_to_document
from megatron_cpt.scaling_law.comparable import base_faults, sequence_faults
from megatron_cpt.scaling_law.curves import Curve, domain_share, first_step, read_run, sets_of
from megatron_cpt.scaling_law.fit import Fit, fit_law
from megatron_cpt.scaling_law.laws import (
    FLOOR,
    Law,
    Model,
    Parameter,
    critical_mixture_share,
    domain_pretraining_law,
    forgetting_law,
    mixing_law,
    one_by_one,
)
from megatron_cpt.scaling_law.uncertainty import bootstrap

LOSS, START, SHARE = "loss:", "start:", "share:"
_NUMBERS = ("tokens", "model_size", "replay_ratio")
"""Columns beside those with a name in them."""


@dataclass(frozen=True)
class Table:
    """Losses of one validation set, a row a run (or an evaluation of a run)."""

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
    names, cells = read_csv_rows(path, "Give a CSV file of final losses.")
    unknown = [n for n in names if n not in (*_NUMBERS, "run") and not n.startswith((LOSS, START, SHARE))]
    remedy = f"Columns are run, {', '.join(_NUMBERS)}, {LOSS}SET, {START}SET, {SHARE}SOURCE."
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


def tables_of_runs(
    paths: Sequence[str],
    of_every_evaluation: bool = False,
    from_step: int | None = None,
    sets: Sequence[str] | None = None,
) -> dict[str, Table]:
    """The tables of the validation sets that run folders share.

    Args:
        paths: run folders.
        of_every_evaluation: a row an evaluation in place of a row a run, at steps at which all sets were evaluated.
        from_step: the first step of these; None for those after each run's start (`Curve.transient`).
        sets: validation sets; None for all that are shared.
    Raises:
        BadInput: runs without a set in common, one that is asked for and not shared, or runs that cannot be compared.
    """
    found = [set(sets_of(path)) for path in paths]
    shared = [name for name in sets_of(paths[0]) if all(name in each for each in found)]
    rule, known = "is no set of these runs.", f"They share {', '.join(shared)}."
    refuse([Fault(name, rule, known) for name in sets or () if name not in shared])
    shared = [name for name in shared if sets is None or name in sets]
    if not shared:
        raise BadInput(Fault(", ".join(paths[:3]), "have no validation set in common.", "Give runs that share one."))
    columns: dict[str, list[float]] = {}
    rows: list[str] = []
    read: dict[str, list[Curve]] = {name: [read_run(path, name) for path in paths] for name in shared}
    refuse([*sequence_faults(read), *base_faults(read)])
    for number, path in enumerate(paths):
        curves = {name: read[name][number] for name in shared}
        plan = read_json_object(RunFolder(path).plan) or {}
        first, before = first_step(plan), plan.get("start", {}).get("tokens", 0)
        tokens = {
            r["step"] - first: None if r.get("tokens") is None else r["tokens"] - before
            for r in read_records(RunFolder(path).records)
            if r["kind"] == "train"
        }
        steps = set.intersection(*({int(step) for step in curve.steps} for curve in curves.values()))
        last = sorted(steps)[-1:]
        transient = max(curve.transient for curve in curves.values())
        first_used = transient if from_step is None else from_step
        for step in (sorted(step for step in steps if step >= first_used) if of_every_evaluation else []) or last:
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
            rows.append(Path(path).name + (f" at {step}" if of_every_evaluation else ""))
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


STARTS = 64
"""Of each fit."""
_FOLDS = 10
"""Into which rows are put to be left out."""


@dataclass(frozen=True)
class TableFits:
    """One law, fitted to the validation sets of one table."""

    law: str
    """As users type it."""
    fits: dict[str, Fit]
    """By validation set."""
    starts: dict[str, float | None]
    """Loss before the first update, by set: the mean over rows."""
    sources: tuple[str, ...]
    """Of the mixtures, in the order of the mixing law."""
    own_is_replay: dict[str, bool]
    """Of the D-CPT law, by set: whether the set is like the replay, not like the new text."""
    fitted: dict[str, tuple[float, float]]
    """Range of each column."""
    second: dict[str, Fit] = field(default_factory=dict)
    """The D-CPT law fitted with the other of the two, by set; not kept in law.json."""

    def beyond(self, columns: Mapping[str, float]) -> tuple[str, ...]:
        """In what a row lies outside of what was fitted, in words."""
        return tuple(
            f"{name} {columns[name]:g} (fitted {low:g} to {high:g})"
            for name, (low, high) in self.fitted.items()
            if name in columns and not low * (1 - 1e-9) <= columns[name] <= high * (1 + 1e-9)
        )


def fitted_tables(name: str, tables: Mapping[str, Table], draws: int) -> TableFits:
    """The law of that name fitted to each table, with so many bootstrap draws."""
    found = {key: fits_of_table(name, table) for key, table in tables.items()}
    fits = {key: bootstrap(best, [tables[key]], draws) if draws else best for key, (best, *_) in found.items()}
    first = next(iter(tables.values()))
    return TableFits(
        law=name,
        fits=fits,
        starts={
            key: float(np.nanmean(table.starts)) if np.isfinite(table.starts).any() else None
            for key, table in tables.items()
        },
        sources=tuple(first.shares) if name == MIXING else (),
        own_is_replay={key: fit.law is _D_CPT_OF_REPLAY for key, fit in fits.items()},
        fitted={column: (float(values.min()), float(values.max())) for column, values in first.columns.items()},
        second={key: others[0] for key, (_, *others) in found.items() if others},
    )


def fits_of_table(name: str, table: Table) -> list[Fit[Table]]:
    """The law of that name fitted to a table; of the D-CPT law two, the better first.

    Its share is that of a set's own data. Whether that is the replay or the new text shows in which fits: a general
    set's loss falls with replay at equal tokens. Raises BadInput where the table lacks what the law is of.
    """
    fits = [fit_law(law, [table], starts=STARTS) for law in _laws_for(name, table)]
    return sorted(fits, key=lambda fit: fit.objective)


def _law_named(name: str, own_is_replay: bool, sources: Sequence[str]) -> Law[Table]:
    """A law as it was fitted."""
    if name == CRITICAL:
        return CRITICAL_RATIO
    if name == MIXING:
        return mixing(tuple(sources))
    if name == D_CPT:
        return _D_CPT_OF_REPLAY if own_is_replay else _D_CPT_OF_NEW_TEXT
    return forgetting(None)


def left_out_rows(law: Law[Table], table: Table) -> np.ndarray:
    """Predicted minus measured of each row by the law fitted without its fold: float64 [rows], nats."""
    count = len(table.losses)
    errors = np.empty(count)
    for part in np.array_split(np.arange(count), min(count, _FOLDS)):
        kept = np.setdiff1d(np.arange(count), part)
        fit = fit_law(law, [table.only(kept)], starts=STARTS)
        errors[part] = fit.predict(table.only(part)) - table.losses[part]
    return errors


def table_document(fits: TableFits) -> dict[str, Any]:
    """The content of law.json."""
    sets = {
        name: fit_to_document(fit) | {"start_loss": fits.starts[name], "own_is_replay": fits.own_is_replay[name]}
        for name, fit in fits.fits.items()
    }
    return {"table_law": fits.law, "sources": list(fits.sources), "fitted": fits.fitted, "sets": sets}


def is_table_document(path: Path) -> bool:
    """Whether a law.json is of a table, not of curves."""
    try:
        return "table_law" in orjson.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def read_table_fits(path: Path) -> TableFits:
    """The fits of a law.json of tables. Raises BadInput for a file that is none."""
    try:
        content = proved(path, orjson.loads(path.read_bytes()))
        name, sources, sets = content["table_law"], tuple(content["sources"]), content["sets"]
        return TableFits(
            law=name,
            fits={
                key: fit_of_document(part, _law_named(name, part["own_is_replay"], sources))
                for key, part in sets.items()
            },
            starts={key: part["start_loss"] for key, part in sets.items()},
            sources=sources,
            own_is_replay={key: part["own_is_replay"] for key, part in sets.items()},
            fitted={column: (float(low), float(high)) for column, (low, high) in content["fitted"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = Fault(str(path), "is no fitted law of tables.", "Give a law.json written by `megatron-cpt law fit`.")
        raise BadInput(fault) from error


BILLION = 1e9
_HELD_EXPONENT = 0.3
"""Of tokens or sizes that a table does not vary."""
_SHARE_TOLERANCE = 2e-3
"""By which shares may fail to add up to 1: they are printed rounded."""
D_CPT, _FORGETTING, MIXING = "d-cpt", "forgetting", "mixing"
TABLE_LAWS = (D_CPT, _FORGETTING, MIXING)
"""As users type them."""


def _laws_for(name: str, table: Table) -> list[Law[Table]]:
    """The law of that name for a table. Raises BadInput where the table lacks what the law is of, or a loss."""
    if name == CRITICAL:
        return [CRITICAL_RATIO]
    if not np.isfinite(table.losses).all():
        raise BadInput(Fault(f"loss:{table.name}", "is missing in some rows.", "Leave these rows out."))
    if name == MIXING:
        return [mixing(tuple(table.shares))]
    table.column("replay_ratio")
    table.column("tokens")
    if name == _FORGETTING:
        return [forgetting(float(np.nanmean(table.starts)) if np.isfinite(table.starts).any() else None)]
    return [_D_CPT_OF_NEW_TEXT, _D_CPT_OF_REPLAY]


def _domain_pretraining(own_is_replay: bool) -> Law[Table]:
    """The D-CPT law (arXiv:2406.01375); its share is that of a set's own data, replay or new text."""

    def model(rows: Table) -> Model:
        replay = rows.column("replay_ratio")
        share = replay if own_is_replay else 1 - replay
        tokens, size = rows.column("tokens") / BILLION, _size(rows)
        return lambda values: domain_pretraining_law(size, tokens, share, *values)

    def held(tables: Sequence[Table]) -> dict[str, float]:
        sizes = {} if _varies(tables, "model_size") else {"size_amplitude": 0.0, "size_exponent": _HELD_EXPONENT}
        return sizes if _varies(tables, "tokens") else sizes | {"token_exponent": _HELD_EXPONENT}

    parameters = (
        FLOOR,
        Parameter("size_amplitude", 0.0, 1e4, linear=True),
        Parameter("size_exponent", 0.01, 2.0, (0.1, 1.0), scale="log"),
        Parameter("token_amplitude", 0.0, 1e4, linear=True),
        Parameter("share_power", 0.0, 5.0, (0.0, 1.0)),
        Parameter("token_exponent", 0.01, 2.0, (0.1, 1.0), scale="log"),
        Parameter("share_amplitude", 0.0, 1e3, linear=True),
        Parameter("share_offset", 1e-4, 2.0, (1e-3, 1.0), scale="log"),
        Parameter("share_exponent", 0.01, 5.0, (0.1, 2.0), scale="log"),
    )
    return Law(D_CPT, parameters, model, one_by_one(model), held)


def forgetting(start: float | None) -> Law[Table]:
    """Forgetting with injection (arXiv:2502.06042): the loss on the old data; D is the tokens of the new data.

    `start` is L0, the loss before the first update, nats; None: it is fitted.
    """

    def model(rows: Table) -> Model:
        replay = rows.column("replay_ratio")
        tokens, size = rows.column("tokens") * (1 - replay) / BILLION, _size(rows)
        return lambda values: forgetting_law(size, tokens, replay, *values)

    parameters = (
        Parameter("start", 0.0, 20.0, linear=True),
        Parameter("amplitude", 0.0, 1e4, linear=True),
        Parameter("exponent", 0.0, 2.0, (0.05, 1.0)),
        Parameter("injection_gain", 1e-2, 1e6, (1.0, 1e4), scale="log"),
        Parameter("size_exponent", 0.01, 3.0, (0.05, 1.0), scale="log"),
    )
    return Law(_FORGETTING, parameters, model, one_by_one(model), lambda _: {} if start is None else {"start": start})


def mixing(sources: tuple[str, ...]) -> Law[Table]:
    """The data mixing law (arXiv:2403.16952); shares add up to 1, so the first source's slope is 0."""
    if len(sources) < 2:
        raise BadInput(Fault(", ".join(sources) or "the table", "is no mixture.", "Give rows of two sources or more."))

    def model(rows: Table) -> Model:
        shares = np.stack([rows.shares.get(name, np.zeros(len(rows.losses))) for name in sources], axis=1)
        if np.any(np.abs(shares.sum(axis=1) - 1) > _SHARE_TOLERANCE):
            row = rows.rows[int(np.argmax(np.abs(shares.sum(axis=1) - 1)))]
            rule = f"gives shares of {', '.join(sources)} that do not add up to 1."
            raise BadInput(Fault(f"{rows.name}, {row}", rule, "Give a share:SOURCE column of each."))
        return lambda values: mixing_law(shares, values[0], values[1], np.append(0.0, values[2:]))

    slopes = (Parameter(f"slope:{name}", -200.0, 200.0, (-8.0, 8.0)) for name in sources[1:])
    parameters = (FLOOR, Parameter("scale", -20.0, 20.0, linear=True), *slopes)
    return Law(MIXING, parameters, model, one_by_one(model), lambda _: {})


def _size(rows: Table) -> np.ndarray:
    return rows.columns.get("model_size", np.full(len(rows.losses), BILLION)) / BILLION


def _varies(tables: Sequence[Table], name: str) -> bool:
    return len(np.unique(np.concatenate([table.columns.get(name, np.ones(1)) for table in tables]))) > 1


_D_CPT_OF_NEW_TEXT, _D_CPT_OF_REPLAY = _domain_pretraining(False), _domain_pretraining(True)

CRITICAL = "critical-ratio"
"""As users type it."""
TOLERANCE = 0.05
"""Nats that the general loss may end above its start (epsilon of arXiv:2407.17467)."""
_TOKENS_UNIT = 0.2e9
"""Tokens in one unit of T, as the printed constants have it."""


def critical_shares(table: Table, tolerance: float = TOLERANCE) -> Table:
    """For each number of tokens, the largest share of new data with a loss of at most start + tolerance.

    A straight line between the two measured shares about it. Numbers of tokens at which all or no shares hold the bound
    are left out: there the critical share lies outside of what was run. The losses of the table returned are shares.

    Raises BadInput where no start was measured, or fewer than three numbers of tokens are left.
    """
    replay, tokens = table.column("replay_ratio"), table.column("tokens")
    if not np.isfinite(table.starts).all():
        raise BadInput(Fault(f"start:{table.name}", "is not known.", "Give the loss before the first update."))
    excess = table.losses - table.starts - tolerance
    found = []
    for count in np.unique(tokens):
        rows = np.flatnonzero(tokens == count)
        shares, over = _means(1 - replay[rows], excess[rows])
        crossing = np.flatnonzero((over[:-1] <= 0) & (over[1:] > 0))
        if len(crossing):
            last = crossing[-1]
            found.append((count, float(np.interp(0.0, over[last : last + 2], shares[last : last + 2]))))
    if len(found) < 3:
        rule = f"a critical share between those that were run is there for {counted(len(found), 'number')} of tokens."
        raise BadInput(Fault(table.name, rule, "Run lengths and ratios about it: three numbers of tokens are needed."))
    lengths, critical = np.array(found).T
    return Table(table.name, critical, np.full(len(found), np.nan), {"tokens": lengths},
                 tuple(f"{count:g} tokens" for count in lengths))  # fmt: skip


def _means(shares: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares in order, each once, and the mean of their values."""
    unique = np.unique(shares)
    return unique, np.array([values[shares == share].mean() for share in unique])


def _unclipped(rows: Table) -> Model:
    length = rows.column("tokens") / _TOKENS_UNIT
    return lambda values: values[0] * length ** values[1] + values[2]


def _clipped(rows: Table) -> Model:
    length = rows.column("tokens") / _TOKENS_UNIT
    return lambda values: critical_mixture_share(length, *np.real(values))


def _held(_: Sequence[Table]) -> dict[str, float]:
    return {}


CRITICAL_RATIO: Law[Table] = Law(
    CRITICAL,
    (
        Parameter("amplitude", -1e6, 1e6, linear=True),
        Parameter("exponent", -3.0, 3.0, (-1.0, 1.0)),
        Parameter("offset", -1e3, 1e3, linear=True),
    ),
    exact=_clipped,
    quick=one_by_one(_unclipped),
    held=_held,
)
