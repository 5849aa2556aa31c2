"""`megatron-cpt law compare|fit|predict`: laws of the loss along a learning-rate schedule, from curves."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.runs.durable import write_json
from megatron_cpt.runs.status import ExitCode
from megatron_cpt.scaling_law.candidates import LAWS
from megatron_cpt.scaling_law.continual import CONTINUAL
from megatron_cpt.scaling_law.fit import Fit, fit_law
from megatron_cpt.scaling_law.foreign import read_csv
from megatron_cpt.scaling_law.heldout import Errors, errors_on, mean_errors
from megatron_cpt.scaling_law.points import Curve, read_run


def main(arguments: list[str]) -> int:
    """Runs one of the actions. Raises BadInput for curves that cannot be read or are too short for the law."""
    options = _parser().parse_args(arguments)
    return int(options.action(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="megatron-cpt law", description=__doc__)
    actions = parser.add_subparsers(required=True, metavar="compare|fit|predict")

    compare = actions.add_parser("compare", help="fit every pretraining law on some curves, score it on others")
    compare.add_argument("--csv", nargs="+", required=True, metavar="FIT.csv", help="curves to fit: step,lr,loss")
    compare.add_argument("--predict", nargs="+", required=True, metavar="OTHER.csv", help="curves to predict")
    compare.add_argument("--json", action="store_true", help="print one JSON object")
    _add_choices(compare)
    compare.set_defaults(action=_compare)

    fit = actions.add_parser("fit", help="fit one law; of run folders the law of continual pretraining")
    fit.add_argument("curves", nargs="+", metavar="RUN_OR_CSV", help="run folders, or CSV files: step,lr,loss")
    fit.add_argument("--law", choices=sorted(LAWS), help="default: continual for run folders, else annealing")
    fit.add_argument("--set", help="validation set of the run folders")
    fit.add_argument("--fix", nargs="*", default=[], metavar="NAME=VALUE", help="parameters not to be fitted")
    fit.add_argument("--output", default="law.json", help="file to write (default law.json)")
    _add_choices(fit)
    fit.set_defaults(action=_fit)

    predict = actions.add_parser("predict", help="the loss of other curves, from a fitted law")
    predict.add_argument("law", metavar="LAW.json", help="written by `megatron-cpt law fit`")
    predict.add_argument("curves", nargs="+", metavar="RUN_OR_CSV", help="run folders, or CSV files: step,lr,loss")
    predict.add_argument("--set", help="validation set of the run folders")
    predict.add_argument("--output", metavar="FILE.csv", help="write curve,step,loss,predicted here")
    _add_choices(predict)
    predict.set_defaults(action=_predict)
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--warmup", type=int, metavar="STEPS", help="of CSV curves (default: up to the first row)")
    parser.add_argument("--from-step", type=int, default=1, metavar="STEP", help="leave earlier points out (default 1)")


def _compare(options: argparse.Namespace) -> int:
    fitted = _curves(options.csv, options)
    others = _curves(options.predict, options)
    rows = []
    for law in LAWS.values():
        if law is CONTINUAL:  # a law of curves that begin from a base
            continue
        fit = fit_law(law, fitted)
        rows.append((fit, mean_errors([errors_on(fit, curve) for curve in others])))
    if options.json:
        print(orjson.dumps({"laws": [_row(*row) for row in rows]}, option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n\n".join(f"{fit_text(fit)}\n  held out: {errors_text(errors)}" for fit, errors in rows))
    return ExitCode.DONE


def _fit(options: argparse.Namespace) -> int:
    curves = _curves(options.curves, options)
    default = CONTINUAL.name if Path(options.curves[0]).is_dir() else "annealing"
    law = LAWS[options.law or default]
    fit = fit_law(law, curves, _fixed(options.fix))
    write_json(Path(options.output), document(fit))
    print(fit_text(fit))
    print(f"  on the fitted curves: {errors_text(mean_errors([errors_on(fit, curve) for curve in curves]))}")
    print(f"  written: {options.output}")
    return ExitCode.DONE


def _predict(options: argparse.Namespace) -> int:
    fit = read_fit(Path(options.law))
    lines = ["curve,step,loss,predicted"]
    for curve in _curves(options.curves, options):
        predicted = fit.predict(curve)
        print(f"{curve.name}: {predicted[-1]:.4f} at step {curve.steps[-1]}; {errors_text(errors_on(fit, curve))}")
        cells = zip(curve.steps, curve.losses, predicted, strict=True)
        lines += [f"{curve.name},{step},{loss:.6g},{value:.6g}" for step, loss, value in cells]
    if options.output:
        Path(options.output).write_text("\n".join(lines) + "\n")
    return ExitCode.DONE


def document(fit: Fit) -> dict[str, Any]:
    """The content of law.json."""
    errors = {name: error if np.isfinite(error) else None for name, error in fit.standard_errors.items()}
    return {
        "law": fit.law.name,
        "parameters": fit.parameters,
        "standard_errors": errors,
        "weakly_identified": list(fit.weak),
        "objective": fit.objective,
        "points": fit.points,
    }


def read_fit(path: Path) -> Fit:
    """A fitted law from law.json. Raises BadInput for a file that is none."""
    try:
        content = orjson.loads(path.read_bytes())
        law = LAWS[content["law"]]
        values = {parameter.name: float(content["parameters"][parameter.name]) for parameter in law.parameters}
        return Fit(law, values, float(content["objective"]), int(content["points"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = Fault(str(path), "is no fitted law.", "Give a law.json written by `megatron-cpt law fit`.")
        raise BadInput(fault) from error


def fit_text(fit: Fit) -> str:
    """A fit as lines of text, weakly identified parameters marked."""
    lines = [f"{fit.law.name}: {fit.points} points, objective {fit.objective:.3g}"]
    for name, value in fit.parameters.items():
        error = fit.standard_errors.get(name)
        told = "fixed" if error is None else f"+- {error:.2g}" + (", weakly identified" if name in fit.weak else "")
        lines.append(f"  {name:<20} {value:>12.6g}  {told}")
    return "\n".join(lines)


def errors_text(errors: Errors) -> str:
    """Errors as one line."""
    return ", ".join(f"{name} {value:.5f}" for name, value in asdict(errors).items())


def _row(fit: Fit, errors: Errors) -> dict[str, Any]:
    return {"law": fit.law.name, "parameters": fit.parameters, "heldout": asdict(errors)}


def _curves(paths: Sequence[str], options: argparse.Namespace) -> list[Curve]:
    curves = []
    for path in paths:
        if Path(path).is_dir():
            if not options.set:
                raise BadInput(Fault(path, "is a run folder with sets of its own.", "Name one: --set NAME."))
            curve = read_run(path, options.set)
        else:
            curve = read_csv(path, options.warmup)
        curve = curve.after(options.from_step)
        if not len(curve.steps):
            raise BadInput(Fault(path, "has no loss to use.", "Give a curve with losses, or a lower --from-step."))
        curves.append(curve)
    return curves


def _fixed(words: Sequence[str]) -> dict[str, float]:
    fixed = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            fixed[name] = float(value)
        except ValueError as error:
            raise BadInput(Fault(f"--fix {word}", "is not NAME=NUMBER.", "Write, say, decay=0.99.")) from error
    return fixed
