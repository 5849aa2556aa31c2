"""The page's style sheet: light and dark, desktop and phone, and paper."""

from megatron_cpt.report.palette import DARK, LIGHT, css_variables

STYLE = (
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
