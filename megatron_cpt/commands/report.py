"""`megatron-cpt report RUN_FOLDER_OR_LOG...`: one page and the gap figures, from what the runs recorded."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.config.errors import BadInput, Fault, printable, refuse
from megatron_cpt.config.units import parse_count
from megatron_cpt.gap.curves import ForeignSettings, MappedSet, is_foreign
from megatron_cpt.gap.summary import MeasuredFolder, gap_document, summary_line
from megatron_cpt.report.figures import write_headline
from megatron_cpt.report.notes import forecast_notes, report_notes, split_line
from megatron_cpt.report.page import export_figures, report_page
from megatron_cpt.report.read import ReportedRun, compare, goes_on, read_runs, refuse_control, without_records_yet
from megatron_cpt.report.sections import forecast_line, forecasts_of
from megatron_cpt.runs.folder import ExitCode, refuse_to_replace, write_durably, write_json
from megatron_cpt.scaling_law.choose import read_laws


def main(arguments: list[str]) -> int:
    """Writes report.html and gap.json, and prints where they are and what they show; once, or until the runs end.

    Raises BadInput for a folder without records, a log that cannot be read as asked, an output folder that cannot be
    made, a control without another run, or one that can split no set of any run.
    """
    options = parser().parse_intermixed_args(arguments)
    foreign = _foreign(options)
    if options.control is not None and {Path(run).resolve() for run in options.runs} == {
        Path(options.control).resolve()
    }:
        rule = "is the run that is reported: a run is no control of itself."
        raise BadInput(
            Fault(f"--control {options.control}", rule, "Name another run, of the same schedule on old text.")
        )
    _refuse_to_replace(options)
    if options.samples is not None:
        _write_samples(options)
    if options.watch is not None:
        _wait_for_records(options)
    is_first = True
    while _write_report(options, foreign, is_first):
        is_first = False
        time.sleep(options.watch)
    return ExitCode.DONE


def _refuse_to_replace(args: argparse.Namespace) -> None:
    """Raises BadInput where a report of other runs would be replaced. One of the same runs is written anew as they go
    on, and so is the one in a run's own folder."""
    runs = [Path(path).resolve() for path in [*args.runs, *([args.control] if args.control else [])]]
    if len(runs) == 1 and runs[0].is_dir() and args.output is None:
        return
    output = Path(args.output or "")
    try:
        before = {run["folder"] for run in orjson.loads((output / "gap.json").read_bytes())["runs"]}
    except (OSError, ValueError, KeyError, TypeError):
        before = None
    if before is not None and before <= set(map(str, runs)):
        return
    figures = [args.figures] if args.figures is not None and any(args.figures.glob("*.png")) else []
    refuse_to_replace([output / name for name in ("report.html", "gap.json")] + figures)


def _write_samples(args: argparse.Namespace) -> None:
    """Writes samples.json of each run that has a folder of its own. Raises BadInput where none has, or with --watch."""
    paths = map(Path, [*args.runs, *([args.control] if args.control else [])])
    runs = [path for path in paths if not is_foreign(path)]
    if not runs or args.watch is not None:
        what = "--samples --watch" if args.watch is not None else "--samples"
        rule = "samples are made from run folders, at the end of their runs."
        raise BadInput(Fault(what, rule, "Name run folders, and leave --watch out."))
    # Imported here: no other report needs torch and transformers.
    from megatron_cpt.evaluate.samples import PROMPTS, read_prompts, sample_runs  # noqa: PLC0415

    sample_runs(runs, PROMPTS if args.samples == Path() else read_prompts(args.samples))


def _wait_for_records(args: argparse.Namespace) -> None:
    """Returns once each run that is being trained has a record, which a start and a first evaluation precede."""
    runs = [*args.runs, *([args.control] if args.control else [])]
    said = False
    while waiting := without_records_yet(runs):
        if not said:
            print(f"waiting for the first record of {', '.join(map(str, waiting))}", flush=True)
            said = True
        time.sleep(args.watch)


def _write_report(args: argparse.Namespace, foreign: ForeignSettings, is_first: bool) -> bool:
    """Writes the report as the runs stand. Returns whether they are watched and one still goes on.

    The first report refuses a control that splits nothing; one that turns out so later is told in a note.
    """
    control_path = None if args.control is None else Path(args.control).resolve()
    runs = read_runs([*args.runs, *([control_path] if control_path else [])], foreign)
    watched = args.watch is not None and any(goes_on(run.folder) for run in runs)
    control = next((run for run in runs if run.folder == control_path), None)
    comparison = compare(runs, control)
    if control is not None and is_first:
        refuse_control(runs, control, comparison.splits)
    output = _output_folder(args.output, runs)
    laws = read_laws(Path(args.law)).fits if args.law else {}
    forecasts = forecasts_of(runs, laws)
    page = report_page(runs, comparison, args.watch if watched else None, forecasts)
    write_durably(output / "report.html", page)
    measured = [MeasuredFolder(run.name, str(run.folder), run.validation, run.tasks) for run in runs]
    write_json(
        output / "gap.json",
        gap_document(measured, comparison.arms, comparison.differences, comparison.control, comparison.splits),
    )
    if args.png:
        write_headline(runs, output / "report.png")
    if args.figures is not None:
        print(f"figures: {len(export_figures(runs, args.figures))} in {args.figures}")
    print(f"report: {output / 'report.html'}", flush=True)
    for run in runs:
        sets = {curve.name: (curve.role, gap) for curve, gap in run.validation}
        print(summary_line(run.name, sets, run.ended), flush=True)
        for name, split in comparison.splits.get(run.name, {}).items():
            if split.missing is None:
                print(f"  beside control {comparison.control}: {split_line(name, split)}", flush=True)
        for curve, forecast in forecasts.get(run.name, []):
            print(f"  forecast of {forecast_line(curve, forecast)}", flush=True)
    for note in [*report_notes(runs, comparison), *(forecast_notes(runs, forecasts, laws) if args.law else [])]:
        print(printable(f"note: {note}"), flush=True)
    return watched


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "report",
        __doc__,
        "megatron-cpt report runs/medicine",
    )
    top.add_argument(
        "runs", nargs="+", metavar="RUN_FOLDER_OR_LOG", help="run folders, CSV files, TensorBoard folders; compared"
    )
    top.add_argument("--output", help="folder to write into (default: the run folder; of several runs, here)")
    top.add_argument("--png", action="store_true", help="write the first figure as report.png too")
    top.add_argument("--figures", type=Path, metavar="DIR", help="write every figure into DIR, as SVG, PNG and CSV")
    top.add_argument(
        "--samples",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="PROMPTS.txt",
        help="have each run's model, before and after, continue prompts, one a line (default: eight of ours); later "
        "reports show the texts again",
    )
    top.add_argument(
        "--watch",
        type=int,
        nargs="?",
        const=30,
        metavar="SECONDS",
        help="write the report every so many seconds while a run goes on (default 30); the page reloads itself",
    )
    top.add_argument(
        "--control",
        metavar="RUN",
        help="run with the same schedule on general text: divides rises into re-warming and shift",
    )
    top.add_argument(
        "--law",
        metavar="LAW.json",
        help="a law fitted on other runs (`megatron-cpt law fit`), for the forecast of a run that goes on",
    )
    logs = top.add_argument_group("logs of other systems (CSV columns: step or tokens, and losses)")
    logs.add_argument(
        "--map", action="append", default=[], metavar="NAME=COLUMN", help="a general set, and its column or tag"
    )
    logs.add_argument(
        "--map-domain", action="append", default=[], metavar="NAME=COLUMN", help="a domain set, and its column or tag"
    )
    logs.add_argument(
        "--map-accuracy", action="append", default=[], metavar="NAME=COLUMN", help="a general task: accuracies, 0 to 1"
    )
    logs.add_argument(
        "--map-domain-accuracy", action="append", default=[], metavar="NAME=COLUMN", help="a task of the domain"
    )
    logs.add_argument("--tokens-per-step", metavar="COUNT", help="where a log counts steps, such as 4M")
    logs.add_argument(
        "--start-step", type=int, default=0, metavar="N", help="step at which continual pretraining began (default 0)"
    )
    return top


def _foreign(args: argparse.Namespace) -> ForeignSettings:
    """How logs are to be read. Raises BadInput with every word that does not say."""
    given = {
        ("general", False): args.map,
        ("domain", False): args.map_domain,
        ("general", True): args.map_accuracy,
        ("domain", True): args.map_domain_accuracy,
    }
    words = [(word, role, accuracy) for (role, accuracy), those in given.items() for word in those]
    refuse(
        [
            Fault(f"--map {word}", "is not NAME=COLUMN.", "Write it as, for example, --map general=loss_general.")
            for word, _, _ in words
            if not all(word.partition("="))
        ]
    )
    sets = [MappedSet(word.partition("=")[0], role, word.partition("=")[2], accuracy) for word, role, accuracy in words]
    tokens_per_step = None
    if args.tokens_per_step is not None:
        try:
            tokens_per_step = parse_count(args.tokens_per_step)
        except ValueError as error:
            raise BadInput(Fault("--tokens-per-step", f"{error}.", "For example: --tokens-per-step 4M.")) from error
    return ForeignSettings(sets, tokens_per_step, args.start_step)


def _output_folder(asked: str | None, runs: Sequence[ReportedRun]) -> Path:
    alone = len(runs) == 1 and runs[0].folder.is_dir()
    output = Path(asked) if asked is not None else runs[0].folder if alone else Path()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = Fault(f"--output {output}", f"cannot be made: {error.strerror}.", "Give a folder you may write in.")
        raise BadInput(fault) from error
    return output
