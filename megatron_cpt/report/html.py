"""The HTML page around the sections, its style sheet and its parts. Text from data is escaped here."""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from megatron_cpt.report.figure_data import csv_link, figure_csv
from megatron_cpt.report.figures import DARK, LIGHT, css_variables, inline_svg, run_dashes, run_series, source_series
from megatron_cpt.report.read import ReportedRun, TrainingHistory
from megatron_cpt.report.training_figures import MOST_SOURCES, drawn_sources
from megatron_cpt.scaling_law.curves import Curve

MISSING = '<span class="missing">not recorded</span>'
"""What stands in place of a value that no file of the run holds."""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    """Its heading, as text."""
    content: str
    """HTML below the heading; empty where there is nothing to show."""
    missing: str
    """Why there is nothing, as text."""

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def section(title: str, note: str, content: str) -> Section:
    """A section with its heading and a line on how to read it; `content` is HTML."""
    explained = f'<p class="note">{escape(note)}</p>' if note else ""
    return Section(title, explained + content, "")


def missing_section(title: str, what: str) -> Section:
    """A section of which the records hold nothing: a line of the page names it, and why."""
    return Section(title, "", what)


def panels(figures: Sequence[str]) -> str:
    """Figures in two columns, in one on a phone."""
    return f'<div class="panels">{"".join(figures)}</div>'


def figure(
    title: str, drawn: Figure | None, runs: Sequence[ReportedRun] | Sequence[Curve] = (), legend: str = ""
) -> str:
    """A drawn figure under its title, with its CSV; None is shown as missing. `runs`: those that it draws, in the order
    of their indices. `legend` is HTML."""
    content = MISSING if drawn is None else inline_svg(drawn, title, runs)
    data = csv_link(title, figure_csv(drawn, runs)) if drawn is not None and runs else ""
    return f"<figure><figcaption>{escape(title)}{data}</figcaption>{legend}{content}</figure>"


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


_SCRIPT = Path(__file__).with_name("page.js").read_text()
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{b64encode(sha256(_SCRIPT.encode()).digest()).decode()}'"
)
"""Content-Security-Policy: the page's own style sheet and script, and no more."""


_FEWEST_LISTED = 4
"""Sections of the shortest page that has a list of contents."""


def html_page(title: str, head: str, sections: Sequence[Section | None], refresh_seconds: int | None = None) -> str:
    """The whole page; `head` is HTML, the title is text. A browser loads it again every `refresh_seconds`.

    Sections with nothing to show are named on one line, before the others; None is left out.
    """
    shown = [one for one in sections if one is not None and one.content]
    missing = [one for one in sections if one is not None and not one.content]
    parts = "".join(f'<section><h2 id="{one.anchor}">{escape(one.title)}</h2>{one.content}</section>' for one in shown)
    refresh = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{refresh}"
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · megatron_cpt report</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{head}{_contents(shown, missing)}{parts}</main>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _contents(shown: Sequence[Section], missing: Sequence[Section]) -> str:
    """The list of sections, and those that have nothing to show."""
    listed = "".join(f'<li><a href="#{one.anchor}">{escape(one.title)}</a></li>' for one in shown)
    listed = f"<ul>{listed}</ul>" if len(shown) >= _FEWEST_LISTED else ""
    absent = " ".join(f"<strong>{escape(one.title)}</strong>: {escape(one.missing)}" for one in missing)
    absent = f'<p class="note">Without a section: {absent}</p>' if absent else ""
    return f'<nav aria-label="Contents">{listed}{absent}</nav>' if listed or absent else ""


_STYLE = (
    f"""
:root {{ color-scheme: light dark; {css_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} }} }}
"""
    + """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 48px 32px 96px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -0.015em; font-weight: 650; margin: 0 0 8px; }
h2 { font-size: 20px; line-height: 1.3; letter-spacing: -0.01em; font-weight: 650; margin: 64px 0 4px; }
h3 { font-size: 15px; font-weight: 600; margin: 0 0 8px; overflow-wrap: anywhere; }
p { margin: 0; max-width: 72ch; }
.lead, .note { color: var(--muted); }
.note { font-size: 14px; }
.warning { margin-top: 8px; border-left: 3px solid var(--series1); padding-left: 12px; }
.missing { color: var(--muted); font-style: italic; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 16px; margin-top: 28px; }
.card { background: var(--card); border-radius: 10px; padding: 18px 20px; min-width: 0; }
.card h3 { font-size: 17px; margin: 0; }
.card .note { overflow-wrap: anywhere; }
.card dl { margin: 12px 0 0; display: grid; gap: 10px; }
.card dt { font-size: 13px; color: var(--muted); overflow-wrap: anywhere; }
.card dd { margin: 0; }
.figure-number { font-size: 24px; font-weight: 600; letter-spacing: -0.02em; font-variant-numeric: tabular-nums;
  margin-right: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 14px 0 0; padding: 0; list-style: none;
  font-size: 14px; }
.legend li { display: flex; align-items: center; gap: 8px; min-width: 0; overflow-wrap: anywhere; }
.legend svg { flex: none; width: 28px; height: 12px; }
.swatch { display: inline-block; vertical-align: middle; width: 28px; height: 12px; margin-right: 4px; }
nav { margin-top: 28px; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0; padding: 0; list-style: none; font-size: 14px; }
nav a { color: var(--series0); text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav .note { margin-top: 8px; max-width: none; }
nav strong { font-weight: 600; }
.panels { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px 32px; margin-top: 18px; }
figure { margin: 0; min-width: 0; position: relative; }
.csv { float: right; font-size: 12px; font-weight: 400; line-height: 22px; color: var(--muted); }
.crosshair { stroke: var(--muted); stroke-width: 0.8; pointer-events: none; }
.tip { position: absolute; z-index: 1; max-width: 70%; padding: 8px 12px; border-radius: 8px; pointer-events: none;
  background: var(--card); border: 1px solid var(--grid); font-size: 12px; font-variant-numeric: tabular-nums; }
.tip div { display: flex; align-items: baseline; gap: 8px; }
.tip i { flex: none; width: 10px; height: 10px; border-radius: 3px; }
.tip span { color: var(--muted); overflow-wrap: anywhere; }
.tip b { margin-left: auto; font-weight: 600; white-space: nowrap; }
.axis { position: fixed; right: 16px; bottom: 16px; z-index: 2; display: flex; padding: 3px; border-radius: 10px;
  background: var(--card); border: 1px solid var(--grid); }
.axis button { font: inherit; font-size: 13px; padding: 4px 12px; border: 0; border-radius: 7px; cursor: pointer;
  background: none; color: var(--muted); }
.axis button[aria-pressed="true"] { background: var(--paper); color: var(--ink); font-weight: 600; }
figcaption { font-size: 15px; font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
figure > svg { display: block; width: 100%; height: auto; }
figure > svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.run { margin-top: 28px; }
.spaced { margin-top: 40px; }
.folder { margin-top: 12px; }
.folded { margin-top: 12px; }
.scroll { overflow-x: auto; margin-top: 16px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 8px 14px 8px 0; text-align: right; vertical-align: baseline; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
th { color: var(--muted); font-weight: 500; font-size: 13px; }
th small { display: block; font-weight: 400; }
thead th { vertical-align: bottom; border-bottom-color: var(--axis); white-space: normal; }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
td.words { white-space: normal; overflow-wrap: break-word; min-width: 8em; }
.sample { white-space: pre-wrap; overflow-wrap: anywhere; text-align: left; }
td.sample { width: 75%; }
td.words small { display: block; color: var(--muted); }
tbody th[colspan] { color: var(--ink); font-weight: 600; padding-top: 18px; }
td .error { color: var(--muted); }
.time { white-space: nowrap; }
details { margin-top: 12px; border: 1px solid var(--grid); border-radius: 10px; padding: 0 16px; }
summary { cursor: pointer; padding: 12px 0; font-weight: 500; overflow-wrap: anywhere; }
details > :last-child { margin-bottom: 16px; }
pre { margin: 0; overflow-x: auto; background: var(--card); border-radius: 8px; padding: 14px 16px;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
a:focus-visible, button:focus-visible, summary:focus-visible { outline: 2px solid var(--series0); outline-offset: 2px; }
@media (max-width: 720px) {
  main { padding: 28px 18px 64px; }
  h1 { font-size: 25px; }
  h2 { margin-top: 48px; }
  .panels, .cards { grid-template-columns: minmax(0, 1fr); }
}
@page { margin: 14mm 12mm; }
@media print {
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 28pt; }
  h2, h3, .note, .legend, thead { break-after: avoid; }
  p, figure, tr, .card, .legend { break-inside: avoid; }
  .note, .legend, figcaption { font-size: 9pt; }
  .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8pt; margin-top: 14pt; }
  .card { padding: 8pt 10pt; font-size: 9pt; }
  .card dl { gap: 4pt; margin-top: 6pt; }
  .figure-number { font-size: 13pt; }
  .csv, .axis, .tip { display: none; }
  .scroll, pre { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: 4pt 6pt 4pt 0; white-space: normal; overflow-wrap: break-word; }
  td .error { white-space: nowrap; }
  th { font-size: 7.5pt; }
  th small { font-size: 6.5pt; }
  td.words { min-width: 0; }
  td:last-child, th:last-child { padding-right: 0; }
  pre { padding: 0; background: none; columns: 2; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 7.5pt; }
  details { border: 0; padding: 0; }
  details:not([open]) > :not(summary) { display: block; }
  details::details-content { content-visibility: visible; block-size: auto; }
  summary { list-style: none; break-after: avoid; }
}
"""
)
"""CSS of the page. It names no place outside the page."""
