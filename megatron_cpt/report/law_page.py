"""Pages of `megatron-cpt law`: what was fitted, what is predicted, what is chosen."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from megatron_cpt.gap.summary import count_words
from megatron_cpt.report.figure_data import add_column, line_of
from megatron_cpt.report.figures import HEIGHT, LIGHT, WIDTH, drawing, run_dashes, run_series
from megatron_cpt.report.html import figure, html_page, panels, run_legend, section
from megatron_cpt.report.tables import table
from megatron_cpt.scaling_law.choose import Laws, Outcome
from megatron_cpt.scaling_law.curves import Curve
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.forecast import Forecast
from megatron_cpt.scaling_law.uncertainty import band

_NO_BANDS = "Without bands: the law was fitted with --draws 0."

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
                + panels([figure("Fit and residuals", _fit_figure(laws.fits[name], found))])
                + _parameters(laws.fits[name]),
            )
            for name, found in curves.items()
        ]
    return html_page("Scaling laws", _head("Scaling laws", "What the laws make of the measured curves."), parts)


def prediction_page(laws: Laws, curves: Curves) -> str:
    """Predicted curves with their bands, and the measured ones where there are."""
    with drawing():
        figures = [figure(name, _band_figure(laws.fits[name], found)) for name, found in curves.items()]
    names = [curve.name for curve in next(iter(curves.values()))]
    note = "Lines are predicted, with 95 % bands; dots are measured. A band knows nothing of a law that is wrong."
    if not _have_bands(laws):
        note = f"Lines are predicted; dots are measured. {_NO_BANDS}"
    return html_page("Predicted losses", _head("Predicted losses", note) + run_legend(names) + panels(figures), [])


def choice_page(laws: Laws, best: Outcome, same: Sequence[Outcome]) -> str:
    """The chosen recipe: its curves with bands, and the losses of the same recipe at other replay ratios."""
    curve = best.recipe.curve(laws.start_of(best.recipe).base)
    with drawing():
        by_replay = [figure(name, _replay_figure(same, name, best)) for name in laws.fits]
        curves = [figure(name, _band_figure(fit, [curve])) for name, fit in laws.fits.items()]
    warnings = "".join(
        f'<p class="warning">{escape(words)}</p>'
        for words in [
            *(f"No recipe keeps {name} within its bound." for name in best.broken),
            *(f"The upper end of the band breaks the bound on {name}." for name in best.unsure),
            *(f"Extrapolates: {words}." for words in best.beyond),
        ]
    )
    shaded, bands = ("; the shaded area the 95 % band", "With 95 % bands.") if _have_bands(laws) else ("", _NO_BANDS)
    note = f"All else as chosen. The ring is the choice{shaded}."
    return html_page(
        "Chosen recipe",
        _head("Chosen recipe", curve.name) + warnings,
        [
            section("Final loss against the replay ratio", note, panels(by_replay)),
            section("Predicted loss of the chosen recipe", bands, panels(curves)),
        ],
    )


def _have_bands(laws: Laws) -> bool:
    return all(fit.has_bands for fit in laws.fits.values())


def _head(title: str, lead: str) -> str:
    return f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'


def _parameters(fit: Fit) -> str:
    rows = []
    for name, value in fit.parameters.items():
        interval = fit.intervals.get(name)
        between = "held" if name in fit.held else "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"
        weak = "weakly identified: do not read the value" if name in fit.weak else ""
        rows.append(
            f"<tr><td class='words'>{escape(name)}</td><td>{value:.5g}</td><td>{between}</td>"
            f"<td class='words'>{weak}</td></tr>"
        )
    return table("<th>Parameter</th><th>Value</th><th>95 %</th><th class='words'></th>", rows)


def _fit_figure(fit: Fit, curves: Sequence[Curve]) -> Figure:
    """Measured losses as dots, the law as lines; below, what it leaves."""
    figure = Figure(figsize=(WIDTH, HEIGHT * 1.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for index, curve in enumerate(curves):
        colour, predicted = LIGHT[run_series(index)], fit.predict(curve)
        upper.plot(curve.steps, curve.losses, "o", markersize=3, color=colour)
        upper.plot(curve.steps, predicted, color=colour, linestyle=run_dashes(index), linewidth=1.6)
        lower.plot(curve.steps, curve.losses - predicted, color=colour, linestyle=run_dashes(index), linewidth=1.2)
    lower.axhline(0, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    upper.set_ylabel("loss, nats per token")
    lower.set_ylabel("measured minus law")
    _step_axis(lower)
    return figure


def _band_figure(fit: Fit, curves: Sequence[Curve]) -> Figure:
    """Predicted losses with their 95 % bands; measured ones, where there are, as dots."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    for index, curve in enumerate(curves):
        colour, predicted = LIGHT[run_series(index)], band(fit, curve)
        axes.fill_between(curve.steps, predicted.low, predicted.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(curve.steps, predicted.middle, color=colour, linestyle=run_dashes(index), linewidth=1.8)
        axes.plot(curve.steps, curve.losses, "o", markersize=3, color=colour)
    axes.set_ylabel("loss, nats per token")
    _step_axis(axes)
    return figure


def forecast_figure(curve: Curve, forecast: Forecast) -> Figure:
    """Measured losses as dots, the rest of the run as a line with its 95 % band."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    colour = LIGHT["series0"]
    axes.plot(curve.steps, curve.losses, "o", markersize=3, color=colour, gid=line_of(0, "measured"))
    axes.fill_between(forecast.steps, forecast.low, forecast.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(forecast.steps, forecast.middle, color=colour, linestyle=(0, (4, 3)), linewidth=1.8,
              gid=line_of(0, "forecast"))  # fmt: skip
    add_column(axes, 0, "2.5 %", forecast.steps, forecast.low)
    add_column(axes, 0, "97.5 %", forecast.steps, forecast.high)
    axes.set_ylabel("loss, nats per token")
    _step_axis(axes)
    return figure


def _replay_figure(outcomes: Sequence[Outcome], name: str, best: Outcome) -> Figure:
    """Final loss of one set against the replay ratio, all else as in the chosen recipe; a ring marks the choice."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    ratios = np.array([outcome.recipe.replay_ratio for outcome in outcomes])
    losses, lows, highs = (
        np.array([getattr(outcome.sets[name], part) for outcome in outcomes]) for part in ("loss", "low", "high")
    )
    colour = LIGHT["series0"]
    axes.fill_between(ratios, lows, highs, color=colour, alpha=0.18, linewidth=0)
    axes.plot(ratios, losses, color=colour, linewidth=1.8)
    axes.plot([best.recipe.replay_ratio], [best.sets[name].loss], "o", markersize=9, color=LIGHT["series1"],
              markerfacecolor=LIGHT["paper"], markeredgewidth=2)  # fmt: skip
    axes.set_xlabel("replay ratio")
    axes.set_ylabel("final loss, nats per token")
    return figure


def _step_axis(axes: Axes) -> None:
    axes.set_xlabel("updates")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: count_words(count)))
