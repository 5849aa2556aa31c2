"""`megatron-cpt report RUN_FOLDER...`: one page and the gap figures, from what the runs recorded."""

import argparse
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.gap.summary import gap_document, summary_line
from megatron_cpt.report.figures import write_headline
from megatron_cpt.report.page import report_page
from megatron_cpt.report.runs import ReportedRun, read_runs
from megatron_cpt.runs.durable import write_durably, write_json
from megatron_cpt.runs.status import ExitCode


def main(arguments: list[str]) -> int:
    """Writes report.html and gap.json, and prints where they are and what they show.

    Raises BadInput for a folder without records or an output folder that cannot be made.
    """
    parser = argparse.ArgumentParser(prog="megatron-cpt report", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER", help="run folders, compared side by side")
    parser.add_argument("--output", help="folder to write into (default: the run folder; of several runs, here)")
    parser.add_argument("--png", action="store_true", help="write the first figure as report.png too")
    options = parser.parse_args(arguments)
    runs = read_runs(options.folders)
    output = _output_folder(options.output, runs)
    write_durably(output / "report.html", report_page(runs))
    write_json(output / "gap.json", gap_document([(run.name, str(run.folder), run.validation) for run in runs]))
    if options.png:
        write_headline(runs, output / "report.png")
    print(f"report: {output / 'report.html'}")
    for run in runs:
        print(summary_line(run.name, {curve.name: (curve.role, gap) for curve, gap in run.validation}))
    return ExitCode.DONE


def _output_folder(asked: str | None, runs: list[ReportedRun]) -> Path:
    output = Path(asked) if asked is not None else runs[0].folder if len(runs) == 1 else Path()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = Fault(f"--output {output}", f"cannot be made: {error.strerror}.", "Give a folder you may write in.")
        raise BadInput(fault) from error
    return output
