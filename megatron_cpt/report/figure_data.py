"""What a figure draws, as CSV, and the names by which its parts are found in the page.

A figure's lines are the columns of its CSV. The page links to it and reads it (page.js) to show values at the pointer
and to draw steps or time in place of tokens; `--figures` writes it beside the pictures.
"""

import csv
import io
import re
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron_cpt.report.read import ReportedRun
from megatron_cpt.scaling_law.curves import Curve


def line_of(run: int, column: str) -> str:
    """The gid of a line: its points are a column of the CSV. `run`: index among the runs of the figure."""
    return f"line {run} {column}"


def area_of(run: int, column: str) -> str:
    """The gid of an area in the colour of a column."""
    return f"area {run} {column}"


def part_of(run: int) -> str:
    """The gid of whatever else is drawn of a run, and moves with its tokens."""
    return f"part {run}"


def add_column(axes: Axes, run: int, column: str, tokens: np.ndarray, values: np.ndarray) -> None:
    """A column of the CSV that is not drawn as a line of its own. Shapes [points]."""
    axes.add_artist(Line2D(tokens, values, visible=False, gid=line_of(run, column)))


def group_attributes(gid: str, runs: Sequence[ReportedRun] | Sequence[Curve]) -> str:
    """The attributes of an SVG group by its gid, as the svg escaped it: run and column, or that it is the x axis."""
    if gid == "matplotlib.axis_1":
        return ' data-axis="x"'
    found = re.fullmatch(r"(?:line|area|part) (\d+)(?: (.*))?", gid, flags=re.DOTALL)
    if found is None or not runs:
        return ""
    column = f' data-column="{found[2]}"' if found[2] else ""
    return f' data-run="{escape(runs[int(found[1])].name)}"{column}'


def figure_csv(figure: Figure, runs: Sequence[ReportedRun] | Sequence[Curve]) -> str:
    """The points of a figure's lines: a row for each run and count of tokens, a column for each line.

    Step and time are of the run; the time is that of its updates and evaluations. What is not known is empty. A long
    line has the points that are drawn, each the mean of a stretch of steps. "" where no line has a name. Curves of the
    laws are drawn over updates: their rows have the step alone.
    """
    columns: dict[str, None] = {}
    rows: dict[tuple[int, int], dict[str, float]] = {}
    for line in figure.axes[0].lines:
        found = re.fullmatch(r"line (\d+) (.*)", line.get_gid() or "", flags=re.DOTALL)
        if found is None:
            continue
        columns[found[2]] = None
        tokens, values = (np.asarray(one, dtype=np.float64) for one in line.get_data())
        for at, value in zip(tokens.tolist(), values.tolist(), strict=True):
            if np.isfinite(value):
                rows.setdefault((int(found[1]), round(at)), {})[found[2]] = value
    if not rows:
        return ""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    over_tokens = isinstance(runs[0], ReportedRun)
    writer.writerow(["run", *(("tokens", "step", "seconds") if over_tokens else ("step",)), *columns])
    for (index, at), values_of in sorted(rows.items()):
        run = runs[index]
        step, seconds = run.clock.get(at, (None, None)) if isinstance(run, ReportedRun) else (None, None)
        place = [at, step, _written(seconds)] if over_tokens else [at]
        writer.writerow([run.name, *place, *(_written(values_of.get(column)) for column in columns)])
    return written.getvalue()


def _written(number: float | None) -> str:
    """Counts in full, other numbers with six digits."""
    if number is None:
        return ""
    return f"{number:.0f}" if number.is_integer() else f"{number:.6g}"


def csv_link(title: str, content: str) -> str:
    """A link of the page that holds a CSV file, as HTML; nothing where it is empty."""
    if not content:
        return ""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    data = quote(content, safe=",.-+:/()")
    return f' <a class="csv" download="{name}.csv" href="data:text/csv;charset=utf-8,{data}">CSV</a>'
