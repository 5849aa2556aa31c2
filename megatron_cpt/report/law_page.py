"""Pages of `megatron-cpt law`: what was fitted, what is predicted, what is chosen."""

from collections.abc import Mapping, Sequence
from html import escape

from megatron_cpt.report.elements import figure, panels, run_legend, section
from megatron_cpt.report.html import html_page
from megatron_cpt.report.law_figures import band_figure, fit_figure, replay_figure
from megatron_cpt.report.panels import drawing
from megatron_cpt.report.tables import table
from megatron_cpt.scaling_law.choose import Laws, Outcome
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.points import Curve

Curves = Mapping[str, Sequence[Curve]]
"""By validation set."""


def fit_page(laws: Laws, curves: Curves) -> str:
    """Fit, residuals and parameters of each validation set."""
    with drawing():
        parts = [
            section(
                f"{name}: the {laws.fits[name].law.name} law",
                "Dots are measured, lines the law.",
                run_legend([curve.name for curve in found])
                + panels([figure("Fit and residuals", fit_figure(laws.fits[name], found))])
                + _parameters(laws.fits[name]),
            )
            for name, found in curves.items()
        ]
    return html_page("Scaling laws", [_head("Scaling laws", "What the laws make of the measured curves."), *parts])


def prediction_page(laws: Laws, curves: Curves) -> str:
    """Predicted curves with their bands, and the measured ones where there are."""
    with drawing():
        figures = [figure(name, band_figure(laws.fits[name], found)) for name, found in curves.items()]
    names = [curve.name for curve in next(iter(curves.values()))]
    note = "Lines are predicted, with 95 % bands; dots are measured. A band knows nothing of a law that is wrong."
    return html_page("Predicted losses", [_head("Predicted losses", note), run_legend(names), panels(figures)])


def choice_page(laws: Laws, best: Outcome, same: Sequence[Outcome]) -> str:
    """The chosen recipe: its curves with bands, and the losses of the same recipe at other replay ratios."""
    curve = best.recipe.curve(laws.base)
    with drawing():
        by_replay = [figure(name, replay_figure(same, name, best)) for name in laws.fits]
        curves = [figure(name, band_figure(fit, [curve])) for name, fit in laws.fits.items()]
    warnings = "".join(
        f'<p class="warning">{escape(words)}</p>'
        for words in [
            *(f"No recipe keeps {name} within its bound." for name in best.broken),
            *(f"The upper end of the band breaks the bound on {name}." for name in best.unsure),
            *(f"Extrapolates: {words}." for words in best.beyond),
        ]
    )
    note = "All else as chosen. The ring is the choice; the shaded area the 95 % band."
    return html_page(
        "Chosen recipe",
        [
            _head("Chosen recipe", curve.name),
            warnings,
            section("Final loss against the replay ratio", note, panels(by_replay)),
            section("Predicted loss of the chosen recipe", "With 95 % bands.", panels(curves)),
        ],
    )


def _head(title: str, lead: str) -> str:
    return f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'


def _parameters(fit: Fit) -> str:
    rows = []
    for name, value in fit.parameters.items():
        interval = fit.intervals.get(name)
        told = "held" if name in fit.held else "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
        weak = "weakly identified: do not read the value" if name in fit.weak else ""
        rows.append(
            f"<tr><td class='words'>{escape(name)}</td><td>{value:.5g}</td><td>{told}</td>"
            f"<td class='words'>{weak}</td></tr>"
        )
    return table("<th>Parameter</th><th>Value</th><th>95 %</th><th class='words'></th>", rows)
