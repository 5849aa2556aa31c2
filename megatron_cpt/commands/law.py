"""`megatron-cpt law compare|fit|predict|choose|sweep`: laws of the loss, from arguments to files, tables and pages."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import orjson

from megatron_cpt.commands.law_arguments import (
    OF_A_SCHEDULE,
    below_faults,
    bounds_of,
    combinations_of,
    count,
    curves_of,
    fixed,
    length_faults,
    numbers,
    rate_faults,
    share,
    shares,
    unused_faults,
    weights_of,
    wholes,
)
from megatron_cpt.commands.law_output import (
    calibration_text,
    cells_text,
    choice_text,
    combination_text,
    errors_text,
    fit_text,
    held_out_text,
    loss_text,
    outcome_document,
    repetition_text,
    shape_text,
)
from megatron_cpt.commands.law_tables import TABLE_LAW_NAMES, choose_tables, fit_tables, predict_tables
from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.commands.sweep import sweep_text
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.load import load_config
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.mixture.phases import source_of
from megatron_cpt.planning.inputs import open_sources
from megatron_cpt.report.law_page import choice_page, fit_page, prediction_page
from megatron_cpt.runs.folder import ExitCode, refuse_to_replace, write_checked_json, write_durably, write_json
from megatron_cpt.scaling_law.choose import (
    Kind,
    Laws,
    Recipe,
    critical_point,
    laws_of,
    ranked,
    read_laws,
    recipes,
    to_document,
    turning_length,
)
from megatron_cpt.scaling_law.comparable import base_faults, batch_faults, sequence_faults, unlike_faults
from megatron_cpt.scaling_law.continual import CONTINUAL, LAWS
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import (
    best_method,
    candidates,
    end_error,
    errors_on,
    fit_law,
    mean_errors,
    parameter_faults,
    point_faults,
)
from megatron_cpt.scaling_law.laws import Law
from megatron_cpt.scaling_law.problem import Method
from megatron_cpt.scaling_law.sweep import (
    Sweep,
    decay_is_fitted,
    matched_epochs,
    pilot_sweep,
    repeat_faults,
    write_sweep,
)
from megatron_cpt.scaling_law.tables import CRITICAL, TOLERANCE, is_table_document
from megatron_cpt.scaling_law.uncertainty import band, bootstrap, calibrated, profiled

KINDS = ("constant", "linear", "cosine", "wsd")


def main(arguments: list[str]) -> int:
    """Runs one of the actions. Raises BadInput for curves that cannot be read or are too short for the law."""
    args = parser().parse_args(arguments)
    return int(args.action(args))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "law",
        __doc__,
        "megatron-cpt law fit curves/*.csv",
        "megatron-cpt law predict law.json --schedule wsd --peak-lr 3e-4 --steps 20000",
    )
    actions = top.add_subparsers(required=True, metavar="compare|fit|predict|choose|sweep")
    _add_compare(actions.add_parser("compare", help="fit every pretraining law on some curves, score it on others"))
    _add_fit(actions.add_parser("fit", help="fit one law; of run folders the law of continual pretraining"))
    _add_predict(actions.add_parser("predict", help="the loss of other curves or of a schedule, from a fitted law"))
    _add_choose(actions.add_parser("choose", help="peak rate, replay ratio, steps and schedule, from a fitted law"))
    _add_sweep(actions.add_parser("sweep", help="write the pilot runs that a law is fitted to"))
    return top


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--csv", action="extend", nargs="+", required=True, metavar="FIT.csv", help="curves to fit: step,lr,loss"
    )
    parser.add_argument(
        "--predict", action="extend", nargs="+", required=True, metavar="OTHER.csv", help="curves to predict"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_reading(parser)
    parser.set_defaults(action=compare)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("curves", nargs="+", metavar="RUN_OR_LOG", help="run folders, CSV files, TensorBoard folders")
    parser.add_argument(
        "--law",
        choices=[*sorted(LAWS), *TABLE_LAW_NAMES],
        help="default: continual for run folders, else annealing; the last four are of final losses: of run folders, "
        "or of one CSV table (columns tokens, replay_ratio or share:SOURCE, model_size, loss:SET, start:SET)",
    )
    parser.add_argument("--set", action="append", dest="sets", help="validation set (default: all that the runs share)")
    parser.add_argument(
        "--fix", action="append", default=[], metavar="NAME=VALUE", help="a parameter with a fixed value"
    )
    parser.add_argument(
        "--free", action="append", default=[], metavar="NAME", help="fit this parameter, which is fixed by default"
    )
    parser.add_argument(
        "--draws", type=int, default=40, metavar="N", help="refits of the bootstrap (default 40; 0: no bands)"
    )
    parser.add_argument(
        "--combine", action="append", default=[], metavar="SET=OLD,NEW", help="the loss on SET as a sum of two others"
    )
    parser.add_argument("--profile", action="store_true", help="profile intervals of weakly identified parameters")
    parser.add_argument(
        "--cross-validate", action="store_true", help="choose delta and prior by leaving out each curve in turn"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="NATS",
        help=f"critical-ratio: most that the loss may end above its start (default {TOLERANCE})",
    )
    parser.add_argument("--output", default="law.json", help="file to write (default law.json)")
    parser.add_argument("--html", help="page to write (default law.html; laws of final losses have none)")
    _add_reading(parser)
    parser.set_defaults(action=fit)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("law", metavar="LAW.json", help="written by `megatron-cpt law fit`")
    parser.add_argument("curves", nargs="*", metavar="RUN_OR_LOG", help="measured curves, to be scored")
    parser.add_argument("--set", action="append", dest="sets", help="validation set (default: all of the law)")
    parser.add_argument("--schedule", choices=KINDS, help="instead of curves: the shape of the learning rate")
    parser.add_argument("--peak-lr", type=float, metavar="RATE")
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--replay", type=share, metavar="RATIO", help="replay ratio (default 0)")
    parser.add_argument("--base", metavar="RUN", help="begin where this fitted run began (where there were several)")
    _add_shape(parser)
    _add_sizes(parser)
    parser.add_argument("--output", metavar="FILE.csv", help="write curve,set,step,loss,predicted,low,high here")
    parser.add_argument("--html", metavar="FILE.html", help="write a page with the curves here")
    _add_reading(parser)
    parser.set_defaults(action=predict)


def _add_choose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("law", metavar="LAW.json", help="written by `megatron-cpt law fit`, of all sets named here")
    parser.add_argument(
        "--minimise",
        action="extend",
        nargs="+",
        required=True,
        metavar="SET[=WEIGHT]",
        help="weighted sum of final losses",
    )
    parser.add_argument(
        "--bound",
        action="extend",
        nargs="*",
        default=[],
        metavar="SET=NATS",
        help="most that a set may rise above its start",
    )
    parser.add_argument("--replay", metavar="RATIOS", help="such as 0,0.01,0.05 (default: 41 over the fitted range)")
    parser.add_argument("--peak-lr", metavar="RATES", help="default: 9 over the fitted range")
    parser.add_argument("--steps", metavar="STEPS", help="default: that of the longest fitted curve")
    parser.add_argument("--schedule", metavar="KINDS", help=f"of {', '.join(KINDS)} (default cosine,wsd)")
    parser.add_argument(
        "--base",
        action="append",
        dest="bases",
        metavar="RUN",
        help="begin where this fitted run began, such as before the base's decay (default: all bases are compared)",
    )
    _add_shape(parser)
    _add_sizes(parser)
    parser.add_argument(
        "--domain-tokens", metavar="COUNT", help="unique tokens of new text: repeated ones count as less"
    )
    parser.add_argument(
        "--tokens-per-step", metavar="COUNT", help="for --domain-tokens (default: that of the fitted run folders)"
    )
    parser.add_argument("--show", type=int, default=5, metavar="N", help="recipes to print (default 5)")
    parser.add_argument("--output", default="choice.json", help="file to write (default choice.json)")
    parser.add_argument("--html", help="page to write (default choice.html; laws of final losses have none)")
    parser.set_defaults(action=choose)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="RUN.yaml", help="the run that the law is for")
    parser.add_argument("--replay", metavar="RATIOS", help="such as 0,0.01,0.05,0.2,0.5")
    parser.add_argument("--peak-lr", metavar="RATES", help="such as 1e-4,3e-4")
    parser.add_argument(
        "--schedule", metavar="KINDS", help="such as cosine,constant,wsd: two or more to identify the annealing"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each arm (default 1)")
    parser.add_argument("--fit-steps", type=int, required=True, metavar="N", help="length of each run")
    parser.add_argument(
        "--match-epochs",
        action="store_true",
        help="read a part of each source that makes a pilot repeat it as often as the whole run will",
    )
    parser.add_argument("--nproc", type=int, default=1, metavar="N", help="processes of one run (default 1)")
    parser.add_argument("--output", default="sweep", metavar="FOLDER", help="folder to write into (default sweep)")
    parser.set_defaults(action=sweep)


_SHAPE = {"warmup": Recipe.warmup, "final": Recipe.final, "decay": Recipe.decay}
"""What `Recipe` has of a schedule's shape."""


def _add_shape(parser: argparse.ArgumentParser) -> None:
    """The shape of a schedule, whatever its peak and its length."""
    for name, words in (
        ("warmup", "warm-up from 0, as a share of the steps"),
        ("final", "last learning rate, as a share of the peak; constant has none"),
        ("decay", "of wsd: the final decay, as a share of the steps"),
    ):
        parser.add_argument(f"--{name}-share", type=share, metavar="SHARE", help=f"{words} (default {_SHAPE[name]:g})")


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", metavar="COUNT", help="laws of tables: tokens trained, such as 5B")
    parser.add_argument("--model-size", metavar="COUNT", help="laws of tables: parameters without embeddings")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--warmup", type=int, metavar="STEPS", help="of logs (default: up to the first row)")
    parser.add_argument(
        "--from-step",
        type=int,
        metavar="STEP",
        help="leave earlier points out (default: run folders, three warm-ups or a tenth of the run, whichever is more;"
        " logs, 1)",
    )
    parser.add_argument("--loss-tag", help="TensorBoard: tag of the loss (default loss)")
    parser.add_argument("--rate-tag", help="TensorBoard: tag of the learning rate (default lr)")


_TURNING_SEARCH = 20
"""Times the fitted length up to which a turning length is looked for."""

_ROUNDING = 1e-6
"""Relative difference below which two peak rates are one."""


def compare(args: argparse.Namespace) -> int:
    """Fits every law of pretraining on some curves and scores it on others."""
    refuse(below_faults(args, from_step=0, warmup=0))
    fitted = [curve for found in curves_of(args.csv, None, args).values() for curve in found]
    others = [curve for found in curves_of(args.predict, None, args).values() for curve in found]
    rows = []
    for law in LAWS.values():
        if law is CONTINUAL:  # a law of curves that begin from a base
            continue
        fitting = fit_law(law, fitted)
        rows.append((fitting, {curve.name: (errors_on(fitting, curve), end_error(fitting, curve)) for curve in others}))
    if args.json:
        laws = [
            {
                "law": row.law.name,
                "parameters": row.parameters,
                "heldout": asdict(mean_errors([errors for errors, _ in of_curves.values()])),
                "curves": {name: asdict(errors) | {"end": end} for name, (errors, end) in of_curves.items()},
            }
            for row, of_curves in rows
        ]
        print(orjson.dumps({"laws": laws}, option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n\n".join(f"{fit_text(row)}\n{held_out_text(of_curves)}" for row, of_curves in rows))
    return ExitCode.DONE


def fit(args: argparse.Namespace) -> int:
    """Fits one law to each validation set; law.json and a page."""
    refuse(below_faults(args, draws=0, from_step=0, warmup=0))
    if args.draws == 1:
        raise BadInput(Fault("--draws 1", "has no spread, and so gives no band.", "Give 0 for no bands, or more."))
    if args.law in TABLE_LAW_NAMES:
        return fit_tables(args)
    refuse(unused_faults(args, f"is of the {CRITICAL} law.", "tolerance"))
    page = Path(args.html or "law.html")
    refuse_to_replace([Path(args.output), page])
    curves = curves_of(args.curves, args.sets, args)
    refuse([*sequence_faults(curves), *batch_faults(next(iter(curves.values()))), *base_faults(curves)])
    default = CONTINUAL.name if Path(args.curves[0]).is_dir() and "loss" not in curves else "annealing"
    law = LAWS[args.law or default]
    combinations = combinations_of(args.combine, curves)
    fixes = fixed(args.fix)
    to_fit = {name: found for name, found in curves.items() if name not in combinations}
    refuse(parameter_faults(law, [curve for found in to_fit.values() for curve in found], fixes, args.free))
    few = [point_faults(law, found, fixes, args.free, f"{name}: ") for name, found in to_fit.items()]
    refuse([fault for of_set in few for fault in of_set])
    fits = {}
    for name, found in to_fit.items():
        method = _method(law, found, args)
        fitting = fit_law(law, found, fixes, args.free, method=method)
        drawn = bootstrap(fitting, found, args.draws) if args.draws > 0 else fitting
        drawn = profiled(drawn, found, drawn.weak) if args.profile else drawn
        fits[name] = calibrated(drawn, found, args.free) if args.draws > 0 else drawn
        print(f"{name}\n{fit_text(fits[name])}")
        print(f"  on the fitted curves: {errors_text(mean_errors([errors_on(fitting, curve) for curve in found]))}")
        print(calibration_text(fits[name]))
    for name, combined in combinations.items():
        print(combination_text(name, combined))
    laws = laws_of(fits, curves, combinations)
    write_checked_json(Path(args.output), to_document(laws))
    write_durably(page, fit_page(laws, to_fit))
    print(f"written: {args.output}, {page}")
    return ExitCode.DONE


def _method(law: Law, curves: Sequence[Curve], args: argparse.Namespace) -> Method:
    """The default method, or the one that predicts curves left out best."""
    if not args.cross_validate:
        return Method()
    method, errors = best_method(law, curves, candidates(law), args.free, fixed(args.fix))
    for candidate, error in errors.items():
        chosen = " (chosen)" if candidate == method else ""
        words = f"delta {candidate.huber_delta:g}, priors worth {candidate.prior_points} points"
        print(f"curves left out, {words}: mae {error:.5f}{chosen}")
    return method


def predict(args: argparse.Namespace) -> int:
    """Scores a fitted law on measured curves, or tells the loss of a schedule that nobody has run."""
    refuse(below_faults(args, from_step=0, warmup=0, steps=1))
    if is_table_document(Path(args.law)):
        return predict_tables(args)
    refuse_to_replace(Path(path) for path in (args.output, args.html) if path)
    laws = read_laws(Path(args.law))
    faults = unused_faults(args, "is of laws of final losses.", "tokens", "model_size")
    if args.curves:
        rule = "has no effect on curves that were measured."
        refuse(faults + unused_faults(args, rule, *OF_A_SCHEDULE, "replay"))
        curves = curves_of(args.curves, args.sets or list(laws.fits), args)
    else:
        rule = "is of measured curves, and none is given."
        refuse(faults + unused_faults(args, rule, "warmup", "from_step", "loss_tag", "rate_tag"))
        recipe = _recipe(args)
        planned = recipe.curve(laws.start_of(recipe).base)
        curves = {name: [planned] for name in args.sets or laws.fits}
    unknown = [name for name in curves if name not in laws.fits]
    refuse([Fault(name, "is no set of this law.", f"It has {', '.join(laws.fits)}.") for name in unknown])
    refuse(unlike_faults(laws, curves))
    if not args.curves:
        print(shape_text([recipe]))
        of_end = laws.outcome(recipe, {}).sets
        for name in laws.combinations:
            print(f"{name}: {loss_text(of_end[name].loss, of_end[name].low, of_end[name].high)} at the end")
    several = len({curve.name for found in curves.values() for curve in found}) > 1
    outside = [(f"{curve.name}: " if several else "") + words
               for found in curves.values() for curve in found for words in laws.fitted.beyond(curve)]  # fmt: skip
    print(*(f"outside what was fitted: {line}" for line in dict.fromkeys(outside)), sep="\n", end="\n" * bool(outside))
    lines = ["curve,set,step,loss,predicted,low,high"]
    for name, found in curves.items():
        for curve in found:
            predicted = band(laws.fits[name], curve)
            ends = loss_text(predicted.middle[-1], predicted.low[-1], predicted.high[-1])
            scored = np.isfinite(curve.losses).all()
            errors = f"; {errors_text(errors_on(laws.fits[name], curve))}" if scored else ""
            print(f"{name}, {curve.name}: {ends} at step {curve.steps[-1]}{errors}")
            cells = zip(curve.steps, curve.losses, predicted.middle, predicted.low, predicted.high, strict=True)
            for step, loss, *values in cells:
                lines.append(f'"{curve.name}",{name},{step},{cells_text([loss, *values])}')
    if args.output:
        write_durably(Path(args.output), "\n".join(lines) + "\n")
    if args.html:
        write_durably(Path(args.html), prediction_page(laws, curves))
    return ExitCode.DONE


def choose(args: argparse.Namespace) -> int:
    """The best recipes for a weighted sum of losses, under bounds; choice.json and a page."""
    refuse(below_faults(args, show=1))
    if is_table_document(Path(args.law)):
        return choose_tables(args)
    refuse(unused_faults(args, "is of laws of final losses.", "tokens", "model_size"))
    page = Path(args.html or "choice.html")
    refuse_to_replace([Path(args.output), page])
    laws = read_laws(Path(args.law))
    weights, bounds = weights_of(args.minimise), bounds_of(args.bound)
    unique, size = _repeated(args, laws)
    sets = [*weights, *bounds]
    refuse([Fault(name, "is no set of this law.", f"It has {', '.join(laws.sets)}.") for name in sets
            if name not in laws.sets])  # fmt: skip
    unmeasured = [name for name in bounds for start in laws.starts.values() if start.losses[name] is None]
    refuse(
        [
            Fault(f"--bound {name}", "has no measured start.", "Fit runs with an evaluation at step 0.")
            for name in unmeasured
        ]
    )
    outcomes = ranked(laws, _tried(args, laws), weights, bounds)
    best = outcomes[0]
    print(shape_text([outcome.recipe for outcome in outcomes]))
    longest = _TURNING_SEARCH * laws.fitted.steps
    length = turning_length(laws, weights, best.recipe, longest)
    points = {name: critical_point(fit) for name, fit in laws.fits.items() if "shift_size" in fit.parameters}
    print(choice_text(outcomes, args.show, weights, laws, length, longest, points))
    if unique and size:
        print(repetition_text(best.recipe, unique, size))
    content = {
        "choice": outcome_document(best),
        "turning_length": length,
        "critical_points": {name: None if point is None else asdict(point) for name, point in points.items()},
        "loss_potential": laws.start_of(best.recipe).base.loss_potential,
        "others": [outcome_document(other) for other in outcomes[1:20]],
    }
    write_json(Path(args.output), content)
    same = [o for o in outcomes if replace(o.recipe, replay_ratio=0) == replace(best.recipe, replay_ratio=0)]
    same.sort(key=lambda outcome: outcome.recipe.replay_ratio)
    write_durably(page, choice_page(laws, best, same))
    print(f"written: {args.output}, {page}")
    return ExitCode.DONE


def _repeated(args: argparse.Namespace, laws: Laws) -> tuple[float | None, float | None]:
    """Unique tokens of new text and tokens of a step. Raises BadInput for one without the other."""
    unique, size = count("--domain-tokens", args.domain_tokens), count("--tokens-per-step", args.tokens_per_step)
    if unique is None and size is not None:
        raise BadInput(Fault("--tokens-per-step", "says nothing without --domain-tokens.", "Give both."))
    size = size or laws.fitted.tokens_per_step
    if unique is not None and size is None:
        rule = "says nothing without --tokens-per-step, which the fitted curves do not say."
        raise BadInput(Fault("--domain-tokens", rule, "Give both."))
    return unique, size


def sweep(args: argparse.Namespace) -> int:
    """Writes the pilot runs of a law."""
    grid = {
        "data.replay_ratio": shares(args.replay, "--replay"),
        "schedule.peak_lr": numbers(args.peak_lr, "--peak-lr"),
        "schedule.kind": args.schedule.split(",") if args.schedule else None,
    }
    varied = {key: values for key, values in grid.items() if values}
    faults = below_faults(args, seeds=1, fit_steps=1, nproc=1)
    faults += [
        fault
        for name, key in (
            ("replay", "data.replay_ratio"),
            ("peak-lr", "schedule.peak_lr"),
            ("schedule", "schedule.kind"),
        )
        for fault in repeat_faults(f"--{name} {getattr(args, name.replace('-', '_'))}", grid[key] or [])
    ]
    refuse(faults)
    settings = _matched(Path(args.config), args.fit_steps) if args.match_epochs else None
    pilot = pilot_sweep(Path(args.config), Path(args.output), varied, args.seeds, args.fit_steps, args.nproc, settings)
    print(sweep_text(pilot, _written(pilot)))
    if decay_is_fitted(args.fit_steps):
        print("Runs below 2,000 steps do not show a decay of 0.999 an update: it will be fitted with the rest.")
    print(f"then: megatron-cpt law fit {args.output}/runs/*")
    return ExitCode.DONE


def _written(pilot: Sweep) -> dict[Path, RunConfig]:
    """Writes the pilots. Raises BadInput, which says where settings of a kind of schedule can be given."""
    try:
        return write_sweep(pilot)
    except BadInput as error:
        kinds = {"infinite", "piecewise"} & {arm.get("schedule.kind") for arm in pilot.arms}
        if not any("schedule." in fault.value for fault in error.faults) or not kinds:
            raise
        rule = "sets `schedule.kind` alone, and this kind has settings that others do not know."
        remedy = "List the pilots in an ARMS.yaml, each with its schedule, for `megatron-cpt sweep`."
        raise BadInput(
            *error.faults, *(Fault(f"--schedule {kind}", rule, remedy) for kind in sorted(map(str, kinds)))
        ) from error


def _matched(path: Path, fit_steps: int) -> dict[str, Any]:
    """Settings of pilots that repeat their sources as the whole run does, and a line that says so."""
    config = load_config(path)
    faults: list[Fault] = []
    streams, _ = open_sources(config, faults)
    refuse(faults)
    tokens = dict.fromkeys(config.data.sources, 0)
    for name, stream in streams.items():
        tokens[source_of(name)] += stream.tokens
    settings = matched_epochs(config, tokens, fit_steps)
    part = fit_steps * config.tokens_per_step / config.total_tokens
    print(f"each pilot reads {part:.2%} of every source, as it has {part:.2%} of the run's tokens")
    return settings


def _tried(args: argparse.Namespace, laws: Laws) -> list[Recipe]:
    """The recipes to choose from: what was said, or what lies within the range of the fit."""
    kinds: list[Any] = (args.schedule or "cosine,wsd").split(",")
    ratios = shares(args.replay, "--replay")
    peaks, lengths = numbers(args.peak_lr, "--peak-lr"), wholes(args.steps, "--steps")
    refuse([Fault(f"--schedule {kind}", "is not a schedule of this command.", f"Use {', '.join(get_args(Kind))}.")
            for kind in kinds if kind not in get_args(Kind)]
           + [Fault(f"--replay {ratio:g}", "is no share.", "Give ratios from 0 to 1.") for ratio in ratios
              if not 0 <= ratio <= 1]
           + [fault for peak in peaks for fault in rate_faults(peak)]
           + [fault for length in lengths for fault in length_faults(length)])  # fmt: skip
    low, high = laws.fitted.replay_ratio
    slow, fast = laws.fitted.peak
    return recipes(
        kinds,
        peaks or (np.geomspace(slow, fast, 9).tolist() if fast > slow * (1 + _ROUNDING) else [slow]),
        lengths or [laws.fitted.steps],
        ratios or np.unique(np.linspace(low, high, 41)).tolist(),
        args.bases or list(laws.starts),
        _shape(args, kinds),
    )


def _recipe(args: argparse.Namespace) -> Recipe:
    missing = [name for name in ("schedule", "peak_lr", "steps") if getattr(args, name) is None]
    if missing:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise BadInput(Fault(words, "missing: there is nothing to predict.", "Give curves, or a schedule with these."))
    refuse([*rate_faults(args.peak_lr), *length_faults(args.steps)])
    return Recipe(
        args.schedule,
        args.peak_lr,
        args.steps,
        args.replay or 0.0,
        **_shape(args, [args.schedule]),
        start=args.base or "",
    )


def _shape(args: argparse.Namespace, kinds: Sequence[str]) -> dict[str, float]:
    """The settings of a schedule's shape, as Recipe has them.

    Raises BadInput for what none of these kinds has, and where warm-up and decay overlap.
    """
    has = f"is no setting of {' or '.join(kinds)}."
    refuse(
        ([] if "wsd" in kinds else unused_faults(args, has, "decay_share"))
        + ([] if set(kinds) - {"constant"} else unused_faults(args, has, "final_share"))
    )
    given = {"warmup": args.warmup_share, "final": args.final_share, "decay": args.decay_share}
    shape = _SHAPE | {name: value for name, value in given.items() if value is not None}
    if "wsd" in kinds and shape["warmup"] + shape["decay"] > 1:
        value = f"--warmup-share {shape['warmup']:g} --decay-share {shape['decay']:g}"
        raise BadInput(Fault(value, "are more than the whole run.", "Give two shares of at most 1 together."))
    return shape
