"""The HTML page around the sections, its style sheet and its parts. Text from data is escaped here."""

from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure

from megatron_cpt.report.figures import DARK, LIGHT, css_variables, inline_svg, run_dashes, run_series, source_series
from megatron_cpt.report.read import TrainingHistory
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


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy: the page's own style sheet and no more."""


def html_page(title: str, sections: Sequence[str], refresh_seconds: int | None = None) -> str:
    """The whole page; `sections` are HTML, the title is text. A browser loads it again every `refresh_seconds`."""
    refresh = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{refresh}"
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · megatron_cpt report</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


_STYLE = (
    f"""
:root {{ color-scheme: light dark; {css_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} }} }}
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
.panels { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px 32px; margin-top: 18px; }
figure { margin: 0; min-width: 0; }
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
thead th { vertical-align: bottom; border-bottom-color: var(--axis); }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
td.words { white-space: normal; overflow-wrap: break-word; min-width: 8em; }
tbody th[colspan] { color: var(--ink); font-weight: 600; padding-top: 18px; }
td .error { color: var(--muted); }
details { margin-top: 12px; border: 1px solid var(--grid); border-radius: 10px; padding: 0 16px; }
summary { cursor: pointer; padding: 12px 0; font-weight: 500; overflow-wrap: anywhere; }
details > :last-child { margin-bottom: 16px; }
pre { margin: 0; overflow-x: auto; background: var(--card); border-radius: 8px; padding: 14px 16px;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
a:focus-visible, summary:focus-visible { outline: 2px solid var(--series0); outline-offset: 2px; }
@media (max-width: 720px) {
  main { padding: 28px 18px 64px; }
  h1 { font-size: 25px; }
  h2 { margin-top: 48px; }
  .panels, .cards { grid-template-columns: minmax(0, 1fr); }
}
@media print { details { break-inside: avoid; } figure { break-inside: avoid; } }
"""
)
"""CSS of the page. It names no place outside the page."""
