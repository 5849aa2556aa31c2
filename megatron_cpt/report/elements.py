"""The pieces a page is made of: sections, panels of figures, legends. Text from data is escaped here."""

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from megatron_cpt.report.palette import run_dashes, run_series, source_series
from megatron_cpt.report.panels import inline_svg
from megatron_cpt.report.runs import TrainingHistory
from megatron_cpt.report.training_figures import MOST_SOURCES, drawn_sources

MISSING = '<span class="missing">not recorded</span>'
"""What stands in place of a value that no file of the run holds."""


def section(title: str, note: str, content: str) -> str:
    """A section with its heading and a line on how to read it; `content` is HTML."""
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{explained}{content}</section>"


def missing_section(title: str, what: str) -> str:
    """A section of which the records hold nothing."""
    return section(title, "", f'<p class="missing">{escape(what)}</p>')


def panels(figures: Sequence[str]) -> str:
    """Figures in two columns, in one on a phone."""
    return f'<div class="panels">{"".join(figures)}</div>'


def figure(title: str, drawn: Figure | None, legend: str = "") -> str:
    """A drawn figure under its title; None is shown as missing. `legend` is HTML."""
    content = MISSING if drawn is None else inline_svg(drawn, title)
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{content}</figure>"


def run_heading(index: int, name: str) -> str:
    """A run's name in its colour."""
    return f'<h3 class="run">{run_swatch(index)} {escape(name)}</h3>'


def run_swatch(index: int) -> str:
    """The line of a run, as a legend shows it."""
    _, lengths = run_dashes(index)
    pattern = " ".join(f"{2 * length:g}" for length in lengths) or "none"
    return _swatch(
        f'<line x1="1" y1="6" x2="27" y2="6" stroke="var(--{run_series(index)})" stroke-width="3.5" '
        f'stroke-dasharray="{pattern}"/>'
    )


def run_legend(names: Sequence[str]) -> str:
    """The runs by colour."""
    return _legend([(run_swatch(index), name) for index, name in enumerate(names)])


def gap_legend(names: Sequence[str]) -> str:
    """The runs by colour, and the marks of the loss figures."""
    ring = 'cx="14" cy="6" r="4" stroke="var(--muted)" stroke-width="2"'
    marks = [
        ('<line x1="1" y1="6" x2="27" y2="6" stroke="var(--muted)" stroke-width="1.5" stroke-dasharray="5 3"/>',
         "baseline"),
        ('<rect x="1" y="0" width="26" height="12" fill="var(--muted)" fill-opacity="0.22"/>', "gap"),
        (f'<circle {ring} fill="var(--paper)"/>', "largest rise"),
        (f'<circle {ring} fill="var(--muted)"/>', "recovered"),
    ]  # fmt: skip
    runs = [(run_swatch(index), name) for index, name in enumerate(names)]
    return _legend(runs + [(_swatch(shape), label) for shape, label in marks])


def source_legend(history: TrainingHistory, total: str | None = None) -> str:
    """The sources by colour, `total` naming the line of all of them; sources beyond the drawn are counted."""
    lines = [("ink", total)] if total is not None else []
    lines += [(source_series(index), name) for index, name in enumerate(drawn_sources(history))]
    others = len(history.sources) - MOST_SOURCES
    if others > 0:
        lines.append(("series7", f"{others} other sources"))
    shape = '<rect x="4" y="1" width="20" height="10" rx="3" fill="var(--{})"/>'
    return _legend([(_swatch(shape.format(colour)), name) for colour, name in lines])


def _swatch(shape: str) -> str:
    return f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true">{shape}</svg>'


def _legend(items: Sequence[tuple[str, str]]) -> str:
    return '<ul class="legend">' + "".join(f"<li>{mark}{escape(name)}</li>" for mark, name in items) + "</ul>"
