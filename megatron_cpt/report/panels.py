"""Empty panels in the report's style, and what becomes of a drawn one: inline SVG, or PNG.

Panels are drawn with matplotlib's object interface; its settings apply inside `drawing` alone.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from megatron_cpt.gap.summary import short_count
from megatron_cpt.report.palette import LIGHT

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
    token_axis(axes)
    return figure, axes


def token_axis(axes: Axes) -> None:
    """Makes x tokens trained, labelled 200K, 1M, 5B."""
    axes.set_xlabel("tokens trained")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: short_count(count)))


def logarithmic_token_axis(axes: Axes) -> None:
    """Makes x tokens trained on a log axis, labelled at 1, 2 and 5 of each decade where they have room."""
    axes.set_xscale("log")
    first, last = axes.get_xlim()
    labelled = (1.0, 2.0, 5.0) if last < 1000 * first else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=labelled, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    token_axis(axes)
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


def inline_svg(figure: Figure, label: str) -> str:
    """A drawn figure as an SVG element for the page, its colours CSS variables.

    `label` is what a screen reader says. Nothing in it names a place outside the page.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue().decode()
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r"(\d+\.?\d*)px ('[^\"]*|sans-serif)(?=[;\"])", r"\1px sans-serif", body)
    body = re.sub(r'(?<= d=")[^"]*', _rounded, body)
    for name, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    box = re.search(r'viewBox="([^"]*)"', drawn)
    assert box is not None, "matplotlib writes a viewBox"
    return f'<svg role="img" aria-label="{escape(label)}" viewBox="{box[1]}">{body}</svg>'


def write_png(figure: Figure, path: Path) -> None:
    """A drawn figure as a PNG on the light background."""
    figure.savefig(path, format="png", dpi=160, facecolor=LIGHT["paper"])


def _rounded(path: re.Match[str]) -> str:
    """The coordinates of a path to a hundredth of a unit."""
    return re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), path[0])
