"""A law fitted to the tables of some validation sets: the fits, their errors on rows left out, and their file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.critical import CRITICAL, CRITICAL_RATIO
from megatron_cpt.scaling_law.document import fit_of_document, fit_to_document
from megatron_cpt.scaling_law.fit import Fit, fit_law
from megatron_cpt.scaling_law.intervals import bootstrap
from megatron_cpt.scaling_law.parameters import Law
from megatron_cpt.scaling_law.table import Table
from megatron_cpt.scaling_law.table_laws import (
    D_CPT,
    MIXING,
    domain_pretraining,
    falls_with_replay,
    forgetting,
    mixing,
    table_law,
)

STARTS = 64
"""Of each fit."""
FOLDS = 10
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
    """Of the D-CPT law, by set."""
    fitted: dict[str, tuple[float, float]]
    """Range of each column."""

    def beyond(self, columns: Mapping[str, float]) -> tuple[str, ...]:
        """In what a row lies outside of what was fitted, in words."""
        return tuple(
            f"{name} {columns[name]:g} (fitted {low:g} to {high:g})"
            for name, (low, high) in self.fitted.items()
            if name in columns and not low * (1 - 1e-9) <= columns[name] <= high * (1 + 1e-9)
        )


def fitted_tables(name: str, tables: Mapping[str, Table], draws: int) -> TableFits:
    """The law of that name fitted to each table, with so many bootstrap draws."""
    fits = {}
    for key, table in tables.items():
        fit = fit_law(_law_for(name, table), [table], starts=STARTS)
        fits[key] = bootstrap(fit, [table], draws) if draws else fit
    first = next(iter(tables.values()))
    return TableFits(
        law=name,
        fits=fits,
        starts={
            key: float(np.nanmean(table.starts)) if np.isfinite(table.starts).any() else None
            for key, table in tables.items()
        },
        sources=tuple(first.shares) if name == MIXING else (),
        own_is_replay={key: name == D_CPT and falls_with_replay(table) for key, table in tables.items()},
        fitted={column: (float(values.min()), float(values.max())) for column, values in first.columns.items()},
    )


def law_named(name: str, own_is_replay: bool, sources: Sequence[str]) -> Law[Table]:
    """A law as it was fitted."""
    if name == CRITICAL:
        return CRITICAL_RATIO
    if name == MIXING:
        return mixing(tuple(sources))
    return domain_pretraining(own_is_replay) if name == D_CPT else forgetting(None)


def left_out_rows(name: str, table: Table) -> np.ndarray:
    """Predicted minus measured of each row by the law fitted without its fold: float64 [rows], nats."""
    law, count = _law_for(name, table), len(table.losses)
    errors = np.empty(count)
    for part in np.array_split(np.arange(count), min(count, FOLDS)):
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
        content = orjson.loads(path.read_bytes())
        name, sources, sets = content["table_law"], tuple(content["sources"]), content["sets"]
        return TableFits(
            law=name,
            fits={
                key: fit_of_document(part, law_named(name, part["own_is_replay"], sources))
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


def _law_for(name: str, table: Table) -> Law[Table]:
    return CRITICAL_RATIO if name == CRITICAL else table_law(name, table)
