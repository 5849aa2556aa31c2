"""The actions of `megatron-cpt law`: words to library calls to files, tables and pages."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np
import orjson

from megatron_cpt.commands.law_tables import NAMES, choose_tables, fit_tables, predict_tables
from megatron_cpt.commands.law_text import (
    choice_text,
    combination_text,
    errors_text,
    fit_text,
    outcome_document,
    repetition_text,
)
from megatron_cpt.commands.law_words import combinations_of, count, curves_of, fixed, named, numbers, shares, wholes
from megatron_cpt.commands.sweep import sweep_text
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.report.law_page import choice_page, fit_page, prediction_page
from megatron_cpt.runs.durable import refuse_to_replace, write_durably, write_json
from megatron_cpt.runs.status import ExitCode
from megatron_cpt.scaling_law.candidates import LAWS
from megatron_cpt.scaling_law.choose import Kind, Laws, Recipe, critical_point, ranked, recipes, turning_length
from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.cross_validation import best_method, candidates
from megatron_cpt.scaling_law.document import laws_of, read_laws, to_document
from megatron_cpt.scaling_law.fit import fit_law
from megatron_cpt.scaling_law.heldout import errors_on, mean_errors
from megatron_cpt.scaling_law.intervals import band, bootstrap
from megatron_cpt.scaling_law.method import Method
from megatron_cpt.scaling_law.parameters import Law
from megatron_cpt.scaling_law.points import Curve
from megatron_cpt.scaling_law.profile import profiled
from megatron_cpt.scaling_law.sweep import decay_is_fitted, pilot_sweep, write_sweep
from megatron_cpt.scaling_law.table_fits import is_table_document

TURNING_SEARCH = 20
"""Times the fitted length up to which a turning length is looked for."""

ROUNDING = 1e-6
"""Relative difference below which two peak rates are one."""


def compare(options: argparse.Namespace) -> int:
    """Fits every law of pretraining on some curves and scores it on others."""
    fitted = [curve for found in curves_of(options.csv, None, options).values() for curve in found]
    others = [curve for found in curves_of(options.predict, None, options).values() for curve in found]
    rows = []
    for law in LAWS.values():
        if law is CONTINUAL:  # a law of curves that begin from a base
            continue
        fitting = fit_law(law, fitted)
        rows.append((fitting, mean_errors([errors_on(fitting, curve) for curve in others])))
    if options.json:
        laws = [{"law": row.law.name, "parameters": row.parameters, "heldout": asdict(errors)} for row, errors in rows]
        print(orjson.dumps({"laws": laws}, option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n\n".join(f"{fit_text(row)}\n  held out: {errors_text(errors)}" for row, errors in rows))
    return ExitCode.DONE


def fit(options: argparse.Namespace) -> int:
    """Fits one law to each validation set; law.json and a page."""
    if options.law in NAMES:
        return fit_tables(options)
    _refuse_to_replace(options)
    curves = curves_of(options.curves, options.sets, options)
    default = CONTINUAL.name if Path(options.curves[0]).is_dir() and "loss" not in curves else "annealing"
    law = LAWS[options.law or default]
    combinations = combinations_of(options.combine, curves)
    fits = {}
    for name, found in curves.items():
        if name in combinations:
            continue
        method = _method(law, found, options)
        fitting = fit_law(law, found, fixed(options.fix), options.free, method=method)
        drawn = bootstrap(fitting, found, options.draws) if options.draws > 0 else fitting
        fits[name] = profiled(drawn, found, drawn.weak) if options.profile else drawn
        print(f"{name}\n{fit_text(fits[name])}")
        print(f"  on the fitted curves: {errors_text(mean_errors([errors_on(fitting, curve) for curve in found]))}")
    for name, combined in combinations.items():
        print(combination_text(name, combined))
    laws = laws_of(fits, curves, combinations)
    write_json(Path(options.output), to_document(laws))
    write_durably(Path(options.html), fit_page(laws, {name: curves[name] for name in fits}))
    print(f"written: {options.output}, {options.html}")
    return ExitCode.DONE


def _refuse_to_replace(options: argparse.Namespace) -> None:
    refuse_to_replace([Path(path) for path in (options.output, options.html) if path], options.overwrite)


def _method(law: Law, curves: Sequence[Curve], options: argparse.Namespace) -> Method:
    """The default method, or the one that predicts curves left out best."""
    if not options.cross_validate:
        return Method()
    method, errors = best_method(law, curves, candidates(law), options.free)
    for candidate, error in errors.items():
        chosen = " (chosen)" if candidate == method else ""
        words = f"delta {candidate.huber_delta:g}, priors worth {candidate.prior_points} points"
        print(f"curves left out, {words}: mae {error:.5f}{chosen}")
    return method


def predict(options: argparse.Namespace) -> int:
    """Scores a fitted law on measured curves, or tells the loss of a schedule that nobody has run."""
    if is_table_document(Path(options.law)):
        return predict_tables(options)
    _refuse_to_replace(options)
    laws = read_laws(Path(options.law))
    if options.curves:
        curves = curves_of(options.curves, options.sets or list(laws.fits), options)
    else:
        recipe = _recipe(options)
        planned = recipe.curve(laws.base)
        curves = {name: [planned] for name in options.sets or laws.fits}
        for words in laws.fitted.beyond(recipe):
            print(f"outside of what was fitted: {words}")
        of_end = laws.outcome(recipe, {}).sets
        for name in laws.combinations:
            print(f"{name}: {of_end[name].loss:.4f} [{of_end[name].low:.4f}, {of_end[name].high:.4f}] at the end")
    unknown = [name for name in curves if name not in laws.fits]
    refuse([Fault(name, "is no set of this law.", f"It has {', '.join(laws.fits)}.") for name in unknown])
    lines = ["curve,set,step,loss,predicted,low,high"]
    for name, found in curves.items():
        for curve in found:
            predicted = band(laws.fits[name], curve)
            ends = f"{predicted.middle[-1]:.4f} [{predicted.low[-1]:.4f}, {predicted.high[-1]:.4f}]"
            scored = np.isfinite(curve.losses).all()
            told = f"; {errors_text(errors_on(laws.fits[name], curve))}" if scored else ""
            print(f"{name}, {curve.name}: {ends} at step {curve.steps[-1]}{told}")
            cells = zip(curve.steps, curve.losses, predicted.middle, predicted.low, predicted.high, strict=True)
            for step, loss, *values in cells:
                measured = f"{loss:.6g}" if np.isfinite(loss) else ""
                numbers_text = ",".join(f"{value:.6g}" for value in values)
                lines.append(f'"{curve.name}",{name},{step},{measured},{numbers_text}')
    if options.output:
        write_durably(Path(options.output), "\n".join(lines) + "\n")
    if options.html:
        write_durably(Path(options.html), prediction_page(laws, curves))
    return ExitCode.DONE


def choose(options: argparse.Namespace) -> int:
    """The best recipes for a weighted sum of losses, under bounds; choice.json and a page."""
    if is_table_document(Path(options.law)):
        return choose_tables(options)
    _refuse_to_replace(options)
    laws = read_laws(Path(options.law))
    weights, bounds = named(options.minimise, 1.0), named(options.bound, None)
    sets = [*weights, *bounds]
    refuse([Fault(name, "is no set of this law.", f"It has {', '.join(laws.sets)}.") for name in sets
            if name not in laws.sets])  # fmt: skip
    unmeasured = [name for name in bounds if laws.start_losses[name] is None]
    refuse([Fault(f"--bound {name}", "has no measured start.", "Fit runs with a mark at 0.") for name in unmeasured])
    outcomes = ranked(laws, _tried(options, laws), weights, bounds)
    best = outcomes[0]
    length = turning_length(laws, weights, best.recipe, TURNING_SEARCH * laws.fitted.steps)
    points = {name: critical_point(fit) for name, fit in laws.fits.items() if "shift_size" in fit.parameters}
    print(choice_text(outcomes[: options.show], laws, length, points))
    unique, size = count("--domain-tokens", options.domain_tokens), count("--tokens-per-step", options.tokens_per_step)
    if unique and size:
        print(repetition_text(best.recipe, unique, size))
    content = {
        "choice": outcome_document(best),
        "turning_length": length,
        "critical_points": points,
        "loss_potential": laws.base.loss_potential,
        "others": [outcome_document(other) for other in outcomes[1:20]],
    }
    write_json(Path(options.output), content)
    same = [o for o in outcomes if replace(o.recipe, replay_ratio=0) == replace(best.recipe, replay_ratio=0)]
    same.sort(key=lambda outcome: outcome.recipe.replay_ratio)
    write_durably(Path(options.html), choice_page(laws, best, same))
    print(f"written: {options.output}, {options.html}")
    return ExitCode.DONE


def sweep(options: argparse.Namespace) -> int:
    """Writes the pilot runs of a law."""
    grid = {
        "data.replay_ratio": shares(options.replay, "--replay"),
        "schedule.peak": numbers(options.peak_lr, "--peak-lr"),
        "schedule.kind": options.schedule.split(",") if options.schedule else None,
    }
    varied = {key: values for key, values in grid.items() if values}
    faults = [
        Fault(f"--{name} {value}", "is below 1.", "Give a whole number from 1 on.")
        for name, value in (("seeds", options.seeds), ("fit-steps", options.fit_steps), ("nproc", options.nproc))
        if value < 1
    ]
    refuse(faults)
    pilot = pilot_sweep(
        Path(options.config), Path(options.output), varied, options.seeds, options.fit_steps, options.nproc
    )
    print(sweep_text(pilot, write_sweep(pilot, options.overwrite)))
    if decay_is_fitted(options.fit_steps):
        print("Runs below 2,000 steps do not show a decay of 0.999 an update: it will be fitted with the rest.")
    print(f"then: megatron-cpt law fit {options.output}/runs/*")
    return ExitCode.DONE


def _tried(options: argparse.Namespace, laws: Laws) -> list[Recipe]:
    """The recipes to choose from: what was said, or what lies within the range of the fit."""
    kinds, ratios = options.schedule.split(","), shares(options.replay, "--replay")
    peaks = numbers(options.peak_lr, "--peak-lr")
    refuse([Fault(f"--schedule {kind}", "is not a schedule of this command.", f"Use {', '.join(get_args(Kind))}.")
            for kind in kinds if kind not in get_args(Kind)]
           + [Fault(f"--replay {ratio:g}", "is no share.", "Give ratios from 0 to 1.") for ratio in ratios
              if not 0 <= ratio <= 1]
           + [Fault(f"--peak-lr {peak:g}", "is not above 0.", "Give a learning rate.") for peak in peaks
              if not peak > 0])  # fmt: skip
    low, high = laws.fitted.replay_ratio
    slow, fast = laws.fitted.peak
    return recipes(
        kinds,
        peaks or (np.geomspace(slow, fast, 9).tolist() if fast > slow * (1 + ROUNDING) else [slow]),
        wholes(options.steps, "--steps") or [laws.fitted.steps],
        ratios or np.unique(np.linspace(low, high, 41)).tolist(),
    )


def _recipe(options: argparse.Namespace) -> Recipe:
    missing = [name for name in ("schedule", "peak_lr", "steps") if getattr(options, name) is None]
    if missing:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise BadInput(Fault(words, "missing: there is nothing to predict.", "Give curves, or a schedule with these."))
    if options.steps < 1 or not options.peak_lr > 0 or not 0 <= options.replay <= 1:
        rule = "is no run that can be."
        raise BadInput(Fault("--steps, --peak-lr or --replay", rule, "Give steps >= 1, a rate > 0, a ratio in [0, 1]."))
    return Recipe(options.schedule, options.peak_lr, options.steps, options.replay)
