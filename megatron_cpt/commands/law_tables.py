"""The actions of `megatron-cpt law` on tables of final losses: the laws of mixtures and of forgetting."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_cpt.commands.law_text import errors_text, fit_text
from megatron_cpt.commands.law_words import count, named
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.runs.durable import refuse_to_replace, write_durably, write_json
from megatron_cpt.runs.status import ExitCode
from megatron_cpt.scaling_law.critical import CRITICAL, critical_shares
from megatron_cpt.scaling_law.heldout import errors_on
from megatron_cpt.scaling_law.intervals import band
from megatron_cpt.scaling_law.table import SHARE, Table, read_table, tables_of_runs
from megatron_cpt.scaling_law.table_choice import MixtureOutcome, ranked_mixtures
from megatron_cpt.scaling_law.table_fits import (
    TableFits,
    fitted_tables,
    left_out_rows,
    read_table_fits,
    table_document,
)
from megatron_cpt.scaling_law.table_laws import D_CPT, MIXING, TABLE_LAWS

NAMES = (*TABLE_LAWS, CRITICAL)
"""Laws of tables, as users type them."""


def fit_tables(options: argparse.Namespace) -> int:
    """Fits one law to the final losses of runs, or of a table; law.json."""
    refuse_to_replace([Path(options.output)], options.overwrite)
    tables = _tables(options)
    if options.law == CRITICAL:
        tables = {name: critical_shares(table, options.tolerance) for name, table in tables.items()}
    fits = fitted_tables(options.law, tables, options.draws)
    for name, fit in fits.fits.items():
        print(f"{name}\n{fit_text(fit)}\n  on the fitted rows: {errors_text(errors_on(fit, tables[name]))}")
        if len(tables[name].losses) > len(fit.standard_errors) + 1:
            left = np.abs(left_out_rows(options.law, tables[name]))
            print(f"  rows left out and predicted from the rest: mae {left.mean():.5f}, largest {left.max():.5f}")
        else:
            print("  too few rows to leave one out: nothing tells how good the law is")
    write_json(Path(options.output), table_document(fits))
    print(f"written: {options.output}")
    return ExitCode.DONE


def predict_tables(options: argparse.Namespace) -> int:
    """The losses of the rows of tables, or of one mixture, from a fitted law of tables."""
    refuse_to_replace([Path(options.output)] if options.output else [], options.overwrite)
    fits = read_table_fits(Path(options.law))
    if options.curves:
        tables = [read_table(path, options.sets or list(fits.fits)) for path in options.curves]
    else:
        given = _given(options) | ({} if fits.law == CRITICAL else {"replay_ratio": options.replay})
        columns = {name: np.array([value]) for name, value in given.items()}
        unknown = np.full(1, np.nan)
        tables = [{name: Table(name, unknown, unknown, columns, ("asked",)) for name in options.sets or fits.fits}]
        for words in fits.beyond(given):
            print(f"outside of what was fitted: {words}")
    refuse([Fault(name, "is no set of this law.", f"It has {', '.join(fits.fits)}.") for name in tables[0]
            if name not in fits.fits])  # fmt: skip
    lines = ["row,set,loss,predicted,low,high"]
    for name, table in ((name, table) for by_set in tables for name, table in by_set.items()):
        predicted = band(fits.fits[name], table)
        for number, row in enumerate(table.rows):
            loss = table.losses[number]
            values = [predicted.middle[number], predicted.low[number], predicted.high[number]]
            measured = f"; measured {loss:.4f}" if np.isfinite(loss) else ""
            print(f"{name}, {row}: {values[0]:.4f} [{values[1]:.4f}, {values[2]:.4f}]{measured}")
            told = f"{loss:.6g}" if np.isfinite(loss) else ""
            lines.append(f'"{row}",{name},{told},' + ",".join(f"{value:.6g}" for value in values))
        if len(table.losses) > 1 and np.isfinite(table.losses).all():
            print(f"{name}: {errors_text(errors_on(fits.fits[name], table))}")
    if options.output:
        write_durably(Path(options.output), "\n".join(lines) + "\n")
    return ExitCode.DONE


def choose_tables(options: argparse.Namespace) -> int:
    """The best mixtures for a weighted sum of losses, under bounds; choice.json."""
    refuse_to_replace([Path(options.output)], options.overwrite)
    fits = read_table_fits(Path(options.law))
    weights, bounds = named(options.minimise, 1.0), named(options.bound, None)
    _refuse_unknown(fits, weights, bounds)
    given = _given(options)
    if fits.law != MIXING and "tokens" not in given:
        raise BadInput(Fault("--tokens", "is missing.", f"The {fits.law} law is of tokens: say how many are trained."))
    unique = count("--domain-tokens", options.domain_tokens)
    outcomes = ranked_mixtures(fits, given, weights, bounds, unique)
    for outcome in outcomes[: options.show]:
        print(_line(outcome))
    best = outcomes[0]
    for name in best.broken:
        print(f"WARNING: no mixture keeps {name} within its bound; the nearest is shown")
    for name in best.unsure:
        print(f"WARNING: the upper end of the band breaks the bound on {name}")
    for words in fits.beyond(best.columns):
        print(f"WARNING: extrapolates: {words}")
    if unique is not None and "tokens" in given and "replay_ratio" in best.columns:
        epochs = given["tokens"] * (1 - best.columns["replay_ratio"]) / unique
        print(f"the new text is read {epochs:.2g} times; repeated text counts as less (arXiv:2305.16264)")
    write_json(Path(options.output), {"choice": asdict(best), "others": [asdict(other) for other in outcomes[1:20]]})
    print(f"written: {options.output}")
    return ExitCode.DONE


def _tables(options: argparse.Namespace) -> dict[str, Table]:
    """By validation set. Raises BadInput for a mixture of run folders and files, and for a set that is not there."""
    runs = [path for path in options.curves if Path(path).is_dir()]
    if runs and len(runs) < len(options.curves):
        other = next(path for path in options.curves if path not in runs)
        raise BadInput(Fault(other, "is no run folder, and others are.", "Give run folders, or one table."))
    if not runs and len(options.curves) > 1:
        raise BadInput(Fault(options.curves[1], "is a second table.", "Put all rows into one file."))
    along_from = options.from_step if options.law in (CRITICAL, D_CPT) else None
    tables = tables_of_runs(runs, along_from) if runs else read_table(options.curves[0])
    wanted = options.sets or list(tables)
    refuse([Fault(name, "is no set of these runs.", f"They share {', '.join(tables)}.") for name in wanted
            if name not in tables])  # fmt: skip
    return {name: tables[name] for name in wanted}


def _given(options: argparse.Namespace) -> dict[str, float]:
    """What was said of tokens and size."""
    found = {"tokens": count("--tokens", options.tokens), "model_size": count("--model-size", options.model_size)}
    return {name: value for name, value in found.items() if value is not None}


def _refuse_unknown(fits: TableFits, weights: Mapping[str, float], bounds: Mapping[str, float]) -> None:
    if fits.law == CRITICAL:
        remedy = "Ask `law predict` for the critical share at --tokens."
        raise BadInput(Fault(CRITICAL, "is a law of shares, not of losses: nothing to make small.", remedy))
    faults = [Fault(name, "is no set of this law.", f"It has {', '.join(fits.fits)}.") for name in [*weights, *bounds]
              if name not in fits.fits]  # fmt: skip
    faults += [Fault(f"--bound {name}", "has no measured start.", f"Give a start:{name} column.") for name in bounds
               if name in fits.fits and fits.starts[name] is None]  # fmt: skip
    refuse(faults)


def _line(outcome: MixtureOutcome) -> str:
    shares = [f"{name.removeprefix(SHARE)} {value:.4g}" for name, value in outcome.columns.items()
              if name.startswith(SHARE) or name == "replay_ratio"]  # fmt: skip
    losses = [f"{name} {loss:.4f} [{low:.4f}, {high:.4f}]" for name, (loss, low, high) in outcome.losses.items()]
    return f"{', '.join(shares)}: {'; '.join(losses)}"
