"""The section on tasks and validation sets that the training sources overlap."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from megatron_cpt.report.elements import missing_section, run_heading, section
from megatron_cpt.report.runs import ReportedRun
from megatron_cpt.report.tables import number, table

NOT_COMPARED = "<span class='missing'>not compared</span>"


def contamination_section(runs: Sequence[ReportedRun]) -> str:
    """What the plan of each run says of it."""
    rows_of = [_rows(run.plan) for run in runs]
    if not any(rows_of):
        return missing_section("Contamination", "Nothing is known of it (prepare --decontaminate).")
    headers = (
        "<th class='words'>Source</th><th class='words'>Evaluation</th><th>Items overlapped</th>"
        "<th>Documents read<small>that overlap</small></th><th>Documents left out<small>by prepare</small></th>"
    )
    parts = [
        run_heading(index, run.name) + table(headers, [_row(row) for row in rows])
        for index, (run, rows) in enumerate(zip(runs, rows_of, strict=True))
        if rows
    ]
    return section(
        "Contamination",
        "Documents of a training source that share 13 words running with a task's question and choice, or with a "
        "validation set, as prepare --decontaminate counted them.",
        _named(runs, rows_of) + "".join(parts),
    )


def _rows(plan: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    rows = (plan or {}).get("contamination")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _named(runs: Sequence[ReportedRun], rows_of: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """A warning that names what a run has read of its own evaluation."""
    warnings = []
    for run, rows in zip(runs, rows_of, strict=True):
        names = dict.fromkeys(str(row.get("name")) for row in rows if row.get("documents_kept"))
        if names:
            words = escape(f"{run.name} trains on documents that overlap {', '.join(names)}.")
            warnings.append(f'<p class="warning">{words}</p>')
    return "".join(warnings)


def _row(row: Mapping[str, Any]) -> str:
    names = f"<td class='words'>{escape(str(row.get('source')))}</td>"
    names += f"<td class='words'>{escape(str(row.get('kind')))} {escape(str(row.get('name')))}</td>"
    compared, datasets = row.get("compared"), row.get("datasets")
    if not compared:
        return f"<tr>{names}<td colspan='3' class='words'>{NOT_COMPARED}</td></tr>"
    part = "" if compared == datasets else f"<small>{compared} of {datasets} datasets compared</small>"
    cells = [
        f"{number(row.get('items_kept'), '{:,}')} of {number(row.get('items'), '{:,}')}{part}",
        number(row.get("documents_kept"), "{:,}"),
        number(row.get("documents_left_out"), "{:,}"),
    ]
    return f"<tr>{names}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
