"""The actions of `megatron-cpt law` on laws of final losses."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_cpt.commands.law_arguments import (
    OF_A_SCHEDULE,
    bounds_of,
    count,
    refuse_missing,
    unused_faults,
    weights_of,
)
from megatron_cpt.commands.law_output import NO_BANDS, cells_text, errors_text, fit_text, loss_text
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.runs.folder import (
    ExitCode,
    RunFolder,
    read_json_object,
    refuse_to_replace,
    write_checked_json,
    write_durably,
    write_json,
)
from megatron_cpt.scaling_law.curves import read_run, sets_of
from megatron_cpt.scaling_law.fit import errors_on
from megatron_cpt.scaling_law.table_choice import MixtureOutcome, ranked_mixtures
from megatron_cpt.scaling_law.tables import (
    CRITICAL,
    D_CPT,
    MIXING,
    SHARE,
    TABLE_LAWS,
    TOLERANCE,
    Table,
    TableFits,
    critical_shares,
    fitted_tables,
    left_out_rows,
    read_table,
    read_table_fits,
    table_document,
    tables_of_runs,
)
from megatron_cpt.scaling_law.uncertainty import band

TABLE_LAW_NAMES = (*TABLE_LAWS, CRITICAL)
"""Laws of tables, as users type them."""
_OF_EVERY_EVALUATION = (CRITICAL, D_CPT)
"""Laws that take every evaluation of a run from the first point on; the others take the last."""


_ALIKE = 1.1
"""Ratio of errors below which two fits are as good."""


def fit_tables(args: argparse.Namespace) -> int:
    """Fits one law to the final losses of runs, or of a table; law.json."""
    refuse(_unused_by_fit(args))
    refuse_to_replace([Path(args.output)])
    tables = _tables(args)
    if args.law == CRITICAL:
        tolerance = TOLERANCE if args.tolerance is None else args.tolerance
        tables = {name: critical_shares(table, tolerance) for name, table in tables.items()}
    _warn_of_annealing(args)
    _warn_of_batches(args)
    fits = fitted_tables(args.law, tables, args.draws)
    for name, fit in fits.fits.items():
        print(f"{name}\n{fit_text(fit)}\n  on the fitted rows: {errors_text(errors_on(fit, tables[name]))}")
        if name in fits.second:
            own, other = ("replay", "new text")[:: 1 if fits.own_is_replay[name] else -1]
            mae = errors_on(fits.second[name], tables[name]).mae
            print(f"  taken for a set like the {own}; as one like the {other} it would have mae {mae:.5f}")
            if mae < _ALIKE * errors_on(fit, tables[name]).mae:
                print("  WARNING: these rows hardly tell which: what another replay ratio does is not known")
        if len(tables[name].losses) > len(fit.standard_errors) + 1:
            left = np.abs(left_out_rows(fit.law, tables[name]))
            print(f"  rows left out and predicted from the rest: mae {left.mean():.5f}, largest {left.max():.5f}")
        else:
            print("  too few rows to leave one out: the error of the law is unknown")
    write_checked_json(Path(args.output), table_document(fits))
    print(f"written: {args.output}")
    return ExitCode.DONE


def _unused_by_fit(args: argparse.Namespace) -> list[Fault]:
    """Options that the laws of final losses do not take."""
    rule = f"has no effect on the {args.law} law."
    names = ["fix", "free", "combine", "profile", "cross_validate", "html", "warmup", "loss_tag", "rate_tag"]
    names += [] if args.law == CRITICAL else ["tolerance"]
    runs = any(Path(path).is_dir() for path in args.curves)
    names += [] if runs and args.law in _OF_EVERY_EVALUATION else ["from_step"]
    return unused_faults(args, rule, *names)


def _warn_of_annealing(args: argparse.Namespace) -> None:
    """A line where runs whose rate falls are given to a law that reads their losses before the end."""
    if args.law != D_CPT:
        return
    runs = [path for path in args.curves if Path(path).is_dir()]
    falling = sum(bool(np.any(np.diff(read_run(path, sets_of(path)[0]).rates) < 0)) for path in runs)
    if falling:
        print(
            f"WARNING: the learning rate falls in {falling} of {len(runs)} runs. {D_CPT} is of tokens alone: it takes "
            "what annealing gives for what more tokens would give, and what it says of other lengths and schedules is "
            "not to be trusted. The continual law (--law continual) has a term for annealing."
        )


def _warn_of_batches(args: argparse.Namespace) -> None:
    """A line where runs have several batch sizes: laws of final losses are of tokens, whatever the updates."""
    runs = [path for path in args.curves if Path(path).is_dir()]
    plans = [read_json_object(RunFolder(path).plan) or {} for path in runs]
    sizes = sorted({plan["tokens_per_step"] for plan in plans if "tokens_per_step" in plan})
    if len(sizes) > 1:
        print(
            f"WARNING: the runs have {', '.join(f'{size:,}' for size in sizes)} tokens a step. {args.law} knows tokens "
            "alone: it takes what another batch size does for an effect of tokens or mixture."
        )


def predict_tables(args: argparse.Namespace) -> int:
    """The losses of the rows of tables, or of one mixture, from a fitted law of tables."""
    refuse_to_replace([Path(args.output)] if args.output else [])
    fits = read_table_fits(Path(args.law))
    names = [*OF_A_SCHEDULE, "html", "warmup", "from_step", "loss_tag", "rate_tag"]
    names += ["replay"] if fits.law == CRITICAL else []
    faults = unused_faults(args, f"has no effect on the {fits.law} law.", *names)
    rule = "has no effect on a table, whose rows have it."
    refuse(faults + (unused_faults(args, rule, "tokens", "model_size", "replay") if args.curves else []))
    if args.curves:
        tables = [read_table(path, args.sets or list(fits.fits)) for path in args.curves]
    else:
        given = _given(args, fits) | ({} if fits.law == CRITICAL else {"replay_ratio": args.replay or 0.0})
        columns = {name: np.array([value]) for name, value in given.items()}
        unknown = np.full(1, np.nan)
        tables = [{name: Table(name, unknown, unknown, columns, ("asked",)) for name in args.sets or fits.fits}]
        for words in fits.beyond(given):
            print(f"outside the fitted range: {words}")
    refuse([Fault(name, "is no set of this law.", f"It has {', '.join(fits.fits)}.") for name in tables[0]
            if name not in fits.fits])  # fmt: skip
    lines = ["row,set,loss,predicted,low,high"]
    for name, table in ((name, table) for by_set in tables for name, table in by_set.items()):
        predicted = band(fits.fits[name], table)
        for number, row in enumerate(table.rows):
            loss = table.losses[number]
            values = [predicted.middle[number], predicted.low[number], predicted.high[number]]
            measured = f"; measured {loss:.4f}" if np.isfinite(loss) else ""
            print(f"{name}, {row}: {loss_text(*values)}{measured}")
            lines.append(f'"{row}",{name},{cells_text([loss, *values])}')
        if len(table.losses) > 1 and np.isfinite(table.losses).all():
            print(f"{name}: {errors_text(errors_on(fits.fits[name], table))}")
    if args.output:
        write_durably(Path(args.output), "\n".join(lines) + "\n")
    return ExitCode.DONE


def choose_tables(args: argparse.Namespace) -> int:
    """The best mixtures for a weighted sum of losses, under bounds; choice.json."""
    refuse_to_replace([Path(args.output)])
    fits = read_table_fits(Path(args.law))
    names = [*OF_A_SCHEDULE, "replay", "tokens_per_step", "html"]
    names += ["domain_tokens"] if any(SHARE + name in fits.fitted for name in fits.sources) else []
    refuse(unused_faults(args, f"has no effect on the {fits.law} law.", *names))
    weights, bounds = weights_of(args.minimise), bounds_of(args.bound)
    _refuse_unknown(fits, weights, bounds)
    given = _given(args, fits)
    if fits.law != MIXING and "tokens" not in given:
        raise BadInput(Fault("--tokens", "is missing.", f"The {fits.law} law is of tokens: say how many are trained."))
    unique = count("--domain-tokens", args.domain_tokens)
    if unique is not None and "tokens" not in given:
        raise BadInput(Fault("--domain-tokens", "says nothing without --tokens.", "Give both."))
    outcomes = ranked_mixtures(fits, given, weights, bounds, unique)
    for outcome in outcomes[: args.show]:
        print(_line(outcome))
    best = outcomes[0]
    if not all(fit.has_bands for fit in fits.fits.values()):
        print(NO_BANDS)
    for name in best.broken:
        print(f"WARNING: no mixture keeps {name} within its bound; the nearest is shown")
    for name in best.unsure:
        print(f"WARNING: the upper end of the band breaks the bound on {name}")
    for words in fits.beyond(best.columns):
        print(f"WARNING: extrapolates: {words}")
    if unique is not None and "tokens" in given and "replay_ratio" in best.columns:
        epochs = given["tokens"] * (1 - best.columns["replay_ratio"]) / unique
        print(f"the new text is read {epochs:.2g} times; repeated text counts as less (arXiv:2305.16264)")
    write_json(Path(args.output), {"choice": asdict(best), "others": [asdict(other) for other in outcomes[1:20]]})
    print(f"written: {args.output}")
    return ExitCode.DONE


def _tables(args: argparse.Namespace) -> dict[str, Table]:
    """By validation set. Raises BadInput for a mixture of run folders and files, and for a set that is not there."""
    refuse_missing(args.curves)
    runs = [path for path in args.curves if Path(path).is_dir()]
    if runs and len(runs) < len(args.curves):
        other = next(path for path in args.curves if path not in runs)
        raise BadInput(Fault(other, "is no run folder, and others are.", "Give run folders, or one table."))
    if not runs and len(args.curves) > 1:
        raise BadInput(Fault(args.curves[1], "is a second table.", "Put all rows into one file."))
    every = args.law in _OF_EVERY_EVALUATION
    tables = tables_of_runs(runs, every, args.from_step, args.sets) if runs else read_table(args.curves[0])
    names = args.sets or list(tables)
    refuse([Fault(name, "is no set of these runs.", f"They share {', '.join(tables)}.") for name in names
            if name not in tables])  # fmt: skip
    return {name: tables[name] for name in names}


def _given(args: argparse.Namespace, fits: TableFits) -> dict[str, float]:
    """What was said of tokens and size; the size that was fitted where there is one. Raises BadInput where there are
    several and none was said."""
    found = {"tokens": count("--tokens", args.tokens), "model_size": count("--model-size", args.model_size)}
    if found["model_size"] is None and "model_size" in fits.fitted:
        least, most = fits.fitted["model_size"]
        if least < most:
            rule = f"is missing: the law was fitted to models of {least:.3g} to {most:.3g} parameters."
            raise BadInput(Fault("--model-size", rule, "Say which is meant."))
        found["model_size"] = least
    return {name: value for name, value in found.items() if value is not None}


def _refuse_unknown(fits: TableFits, weights: Mapping[str, float], bounds: Mapping[str, float]) -> None:
    if fits.law == CRITICAL:
        remedy = "Ask `law predict` for the critical share at --tokens."
        raise BadInput(Fault(CRITICAL, "is a law of shares, not of losses: there is no loss to minimise.", remedy))
    faults = [Fault(name, "is no set of this law.", f"It has {', '.join(fits.fits)}.") for name in [*weights, *bounds]
              if name not in fits.fits]  # fmt: skip
    faults += [Fault(f"--bound {name}", "has no measured start.", f"Give a start:{name} column.") for name in bounds
               if name in fits.fits and fits.starts[name] is None]  # fmt: skip
    refuse(faults)


def _line(outcome: MixtureOutcome) -> str:
    shares = [f"{name.removeprefix(SHARE)} {value:.4g}" for name, value in outcome.columns.items()
              if name.startswith(SHARE) or name == "replay_ratio"]  # fmt: skip
    losses = [f"{name} {loss_text(*values)}" for name, values in outcome.losses.items()]
    return f"{', '.join(shares)}: {'; '.join(losses)}"
