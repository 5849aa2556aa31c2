"""The loss of validation sets against tokens trained, with the gap visible; panels and colours of all figures."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.figures import BAND, GapFigures, rise_standard_errors, rises
from megatron_cpt.gap.summary import count_words, is_flat
from megatron_cpt.report.figure_data import add_column, group_attributes, line_of, part_of
from megatron_cpt.report.read import ReportedRun
from megatron_cpt.scaling_law.curves import Curve


@dataclass(frozen=True)
class RunCurve:
    """One validation set in one run."""

    index: int
    """Place of the run in the report: its colour."""
    curve: LossCurve
    """The losses."""
    gap: GapFigures
    """Their gap figures."""

    @property
    def colour(self) -> str:
        """The colour of the run, in light."""
        return LIGHT[run_series(self.index)]


CurvesBySet = dict[tuple[str, str], list[RunCurve]]


def curves_by_set(measured: Sequence[Sequence[tuple[LossCurve, GapFigures]]]) -> CurvesBySet:
    """The curves of all runs, by (role, name of the set or task); general ones first.

    `measured`: of each run, its validation sets or its tasks.
    """
    by_set: dict[tuple[str, str], list[RunCurve]] = {}
    for index, of_run in enumerate(measured):
        for curve, gap in of_run:
            by_set.setdefault((curve.role, curve.name), []).append(RunCurve(index, curve, gap))
    return dict(sorted(by_set.items(), key=lambda item: item[0][0] == "domain"))


def loss_figure(curves: Sequence[RunCurve]) -> Figure:
    """Loss of one set in all runs: baseline dashed, gap shaded, peak and recovery marked."""
    figure, axes = new_panel("loss, nats per token")
    _draw_losses(axes, curves)
    return figure


def change_figure(curves: Sequence[RunCurve]) -> Figure | None:
    """Change since the baseline on a log axis, with two paired standard errors; None without a baseline."""
    measured = [item for item in curves if item.gap.missing is None]
    if not measured:
        return None
    figure, axes = new_panel("loss minus baseline, nats per token")
    axes.axhspan(-BAND, BAND, color=LIGHT["axis"], alpha=0.16, linewidth=0)
    axes.axhline(0, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    for item in measured:
        tokens, change = item.curve.tokens[1:], rises(item.curve)[1:]
        errors = np.nan_to_num(rise_standard_errors(item.curve)[1:])
        axes.fill_between(tokens, change - 2 * errors, change + 2 * errors, color=item.colour, alpha=0.2, linewidth=0,
                          gid=part_of(item.index))  # fmt: skip
        axes.plot(tokens, change, color=item.colour, linestyle=run_dashes(item.index), linewidth=1.8,
                  marker="o", markersize=3, gid=line_of(item.index, "change"))  # fmt: skip
        add_column(axes, item.index, "standard error", tokens, rise_standard_errors(item.curve)[1:])
    logarithmic_token_axis(axes)
    return figure


def write_headline(runs: Sequence[ReportedRun], path: Path) -> None:
    """The first general and the first domain set of the runs side by side, as PNG.

    A side that no run has is left out; without validation sets at all nothing is written.
    """
    by_role: dict[str, tuple[str, list[RunCurve]]] = {}
    for (role, name), curves in curves_by_set([run.validation for run in runs]).items():
        by_role.setdefault(role, (name, curves))
    if not by_role:
        return
    with drawing():
        figure = Figure(figsize=(WIDTH * len(by_role), HEIGHT + 0.55), layout="constrained")
        panels = figure.subplots(1, len(by_role), squeeze=False)[0]
        for axes, (role, (name, curves)) in zip(panels, by_role.items(), strict=True):
            _draw_losses(axes, curves)
            axes.set_title(set_title(role, name), loc="left", fontsize=12, pad=10)
            axes.set_ylabel("loss, nats per token")
            _token_axis(axes)
        figure.legend(*_legend(runs), loc="outside lower center", ncols=len(runs) + 4, frameon=False, fontsize=10)
        write_png(figure, path)


def set_title(role: str, name: str, what: str = "text") -> str:
    """`General text: history`, or `Domain text: medicine`; the set's own name alone where that says it."""
    kind = f"Domain {what}" if role == "domain" else f"General {what}"
    return kind if name.lower() in kind.lower() else f"{kind}: {name}"


def _draw_losses(axes: Axes, curves: Sequence[RunCurve]) -> None:
    _draw_baselines(axes, curves)
    for item in curves:
        tokens, losses = item.curve.tokens, item.curve.losses
        axes.plot(tokens, losses, color=item.colour, linestyle=run_dashes(item.index), linewidth=2, zorder=3,
                  gid=line_of(item.index, "loss"))  # fmt: skip
        if item.gap.baseline is not None:
            axes.fill_between(
                tokens, losses, item.gap.baseline, where=(losses > item.gap.baseline).tolist(),
                interpolate=True, color=item.colour, alpha=0.13, linewidth=0, gid=part_of(item.index),
            )  # fmt: skip
        _draw_later(axes, item)
    axes.margins(x=0.03, y=0.12)
    for item in curves:
        _mark_gap(axes, item)


def _draw_later(axes: Axes, item: RunCurve) -> None:
    """The losses since the set was changed, joined to none before them, behind a line where they begin."""
    later = item.curve.later
    while later is not None:
        axes.axvline(float(later.tokens[0]), color=item.colour, linewidth=1.1, linestyle=":", zorder=2,
                     gid=part_of(item.index))  # fmt: skip
        axes.plot(later.tokens, later.losses, color=item.colour, linestyle=":", linewidth=1.4, marker="o",
                  markersize=3, zorder=3, gid=line_of(item.index, "loss since the set was changed"))  # fmt: skip
        later = later.later


def _draw_baselines(axes: Axes, curves: Sequence[RunCurve]) -> None:
    """One neutral line where the runs share their baseline, else each in the run's colour."""
    known = [item for item in curves if item.gap.baseline is not None]
    shared = len({f"{item.gap.baseline:.4f}" for item in known}) == 1
    for item in known[:1] if shared else known:
        assert item.gap.baseline is not None
        colour = LIGHT["muted"] if shared else item.colour
        axes.axhline(item.gap.baseline, color=colour, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2)


def _mark_gap(axes: Axes, item: RunCurve) -> None:
    """A ring at the peak with its height, a dot where the loss was back. Nothing where it never left."""
    gap = item.gap
    if gap.recovery is None or is_flat(gap):
        return
    top = int(np.nanargmax(item.curve.losses))
    tokens, peak = item.curve.tokens[top], item.curve.losses[top]
    axes.plot([tokens], [peak], marker="o", markersize=7, markerfacecolor=LIGHT["paper"],
              markeredgecolor=item.colour, markeredgewidth=1.8, zorder=5, gid=part_of(item.index))  # fmt: skip
    side = "right" if tokens > 0.85 * item.curve.tokens[-1] else "left"
    axes.annotate(f"+{gap.depth:.2f}", (tokens, peak), xytext=(0, 8), textcoords="offset points",
                  horizontalalignment=side, color=item.colour, fontsize=10.5, fontweight="bold",
                  gid=part_of(item.index))  # fmt: skip
    if gap.recovery_tokens is not None:
        place = int(np.flatnonzero(item.curve.tokens == gap.recovery_tokens)[0])
        axes.plot([gap.recovery_tokens], [item.curve.losses[place]], marker="o", markersize=7,
                  color=item.colour, zorder=5, gid=part_of(item.index))  # fmt: skip


def _legend(runs: Sequence[ReportedRun]) -> tuple[list[Line2D], list[str]]:
    """Handles and labels of runs and of the marks."""
    handles = [
        Line2D([], [], color=LIGHT[run_series(index)], linestyle=run_dashes(index), linewidth=2.4)
        for index in range(len(runs))
    ]
    muted = LIGHT["muted"]
    marks = {
        "baseline": Line2D([], [], color=muted, linestyle=(0, (4, 3)), linewidth=1.1),
        "peak": Line2D([], [], color=muted, marker="o", markerfacecolor=LIGHT["paper"], linestyle=""),
        "recovered": Line2D([], [], color=muted, marker="o", linestyle=""),
    }
    return [*handles, *marks.values()], [*(run.name for run in runs), *marks]


WIDTH, HEIGHT = 6.4, 4.1
"""Inches of a panel: 461 x 295 SVG units, legible when a phone shows it 350 pixels wide."""

LONGEST_LINE = 400
"""Points of a drawn line; longer histories are drawn as means of that many stretches."""


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's settings while the report draws: names from data are text, never formulas."""
    settings: dict[Any, Any] = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "megatron_cpt",
        "font.size": 11,
        "text.color": LIGHT["ink"],
        "axes.edgecolor": LIGHT["axis"],
        "axes.labelcolor": LIGHT["muted"],
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LIGHT["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": LIGHT["axis"],
        "ytick.color": LIGHT["axis"],
        "xtick.labelcolor": LIGHT["muted"],
        "ytick.labelcolor": LIGHT["muted"],
        "lines.solid_capstyle": "round",
    }
    with matplotlib.rc_context(settings):
        yield


def new_panel(y_label: str) -> tuple[Figure, Axes]:
    """A figure of one panel over tokens trained."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel(y_label)
    _token_axis(axes)
    return figure, axes


def _token_axis(axes: Axes) -> None:
    """Makes x tokens trained, labelled 200K, 1M, 5B."""
    axes.set_xlabel("tokens trained")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: count_words(count)))


def logarithmic_token_axis(axes: Axes) -> None:
    """Makes x tokens trained on a log axis, labelled at 1, 2 and 5 of each decade where they have room."""
    axes.set_xscale("log")
    first, last = axes.get_xlim()
    labelled = (1.0, 2.0, 5.0) if last < 1000 * first else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=labelled, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    _token_axis(axes)
    axes.set_xlabel("tokens trained, log scale")


def thin(tokens: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A long line as at most LONGEST_LINE points, each the (weighted) mean of as many neighbours.

    Points that are not finite are left out first. Shapes [steps] to [points].
    """
    weights = np.ones(len(values)) if weights is None else weights
    kept = np.isfinite(values) & (weights > 0)
    tokens, values, weights = tokens[kept], values[kept], weights[kept]
    if len(values) <= LONGEST_LINE:
        return tokens, values
    starts = np.linspace(0, len(values), LONGEST_LINE, endpoint=False).astype(np.int64)
    sums = np.add.reduceat(weights, starts)
    last = np.append(starts[1:], len(values)) - 1
    return tokens[last], np.add.reduceat(values * weights, starts) / sums


def inline_svg(figure: Figure, label: str, runs: Sequence[ReportedRun] | Sequence[Curve] = ()) -> str:
    """A drawn figure as an SVG element for the page, its colours CSS variables.

    `label` is what a screen reader says. `runs` are those that it draws, by whose names the page's script finds their
    parts. Nothing in it names a place outside the page.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue().decode()
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="([^"]*)"', lambda group: f"<g{group_attributes(group[1], runs)}", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r"font-family: '[^\"]*?sans-serif(?=[;\"])", "font-family: sans-serif", body)
    body = re.sub(r'(?<= d=")[^"]*', _rounded, body)
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    # Names that no other figure of the page has: two may draw one path, and the script moves each on its own.
    own = sha256(f"{label}{body}".encode()).hexdigest()[:8]
    body = re.sub(r'((?<= )id="|href="#|url\(#)([mp][0-9a-f]+)', rf"\1\2-{own}", body)
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert box is not None, "matplotlib writes a viewBox"
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="{box[1]}"{_axis_attributes(figure)}>{body}</svg>'


def _axis_attributes(figure: Figure) -> str:
    """Where the axes of a drawn figure of one panel are, and what x is at their ends."""
    if len(figure.axes) != 1:
        return ""
    (axes,), (width, height) = figure.axes, 72 * figure.get_size_inches()
    place, (low, high) = axes.get_position(), axes.get_xlim()
    edges = (place.x0 * width, (1 - place.y1) * height, place.x1 * width, (1 - place.y0) * height)
    box = " ".join(f"{edge:.2f}" for edge in edges)
    return f' data-box="{box}" data-x="{low:.8g} {high:.8g} {axes.get_xscale()}"'


def write_png(figure: Figure, path: Path) -> None:
    """A drawn figure as a PNG on the light background."""
    figure.savefig(path, format="png", dpi=160, facecolor=LIGHT["paper"])


def _rounded(path: re.Match[str]) -> str:
    """The coordinates of a path to a hundredth of a unit."""
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), path[0])


LIGHT = {
    "paper": "#fffffe",
    "card": "#f5f7f9",
    "ink": "#1b2026",
    "muted": "#5a646f",
    "axis": "#929ba5",
    "grid": "#e4e8ec",
    "series0": "#1c6cb0",
    "series1": "#cf5217",
    "series2": "#10876a",
    "series3": "#8b4aa8",
    "series4": "#a37a05",
    "series5": "#2a9bc0",
    "series6": "#b73668",
    "series7": "#606c7b",
}
"""Name to colour. All different: figures are recoloured by value."""

DARK = {
    "paper": "#13161a",
    "card": "#1c2026",
    "ink": "#e9ecef",
    "muted": "#a3acb6",
    "axis": "#6c7680",
    "grid": "#2a3037",
    "series0": "#6db3f2",
    "series1": "#ff9860",
    "series2": "#4fcba6",
    "series3": "#d09dea",
    "series4": "#e5c04f",
    "series5": "#8bddf6",
    "series6": "#f690b5",
    "series7": "#abb6c4",
}

_SERIES = [name for name in LIGHT if name.startswith("series")]
Dashes = tuple[float, tuple[float, ...]]
"""A line style: offset, then lengths of dashes and gaps in line widths; no lengths is a solid line."""

_DASHES: list[Dashes] = [(0, ()), (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2))]


def run_series(index: int) -> str:
    """Colour name of the run at an index; after eight they repeat with other dashes."""
    return _SERIES[index % len(_SERIES)]


def run_dashes(index: int) -> Dashes:
    """Line style of the run at an index."""
    return _DASHES[index // len(_SERIES) % len(_DASHES)]


def source_series(index: int) -> str:
    """Colour name of a source: from the other end, so that few runs and few sources share none."""
    return _SERIES[-2 - index % (len(_SERIES) - 1)]


def css_variables(colours: dict[str, str]) -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
