"""Pictures of fitted laws: fit and residuals, predicted curves with bands, loss against the replay ratio."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from megatron_cpt.gap.summary import short_count
from megatron_cpt.report.palette import LIGHT, run_dashes, run_series
from megatron_cpt.report.panels import HEIGHT, WIDTH
from megatron_cpt.scaling_law.choose import Outcome
from megatron_cpt.scaling_law.fit import Fit
from megatron_cpt.scaling_law.forecast import Forecast
from megatron_cpt.scaling_law.intervals import band
from megatron_cpt.scaling_law.points import Curve


def fit_figure(fit: Fit, curves: Sequence[Curve]) -> Figure:
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


def band_figure(fit: Fit, curves: Sequence[Curve]) -> Figure:
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


def forecast_figure(curve: Curve, told: Forecast) -> Figure:
    """Measured losses as dots, the rest of the run as a line with its 95 % band."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    colour = LIGHT["series0"]
    axes.plot(curve.steps, curve.losses, "o", markersize=3, color=colour)
    axes.fill_between(told.steps, told.low, told.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(told.steps, told.middle, color=colour, linestyle=(0, (4, 3)), linewidth=1.8)
    axes.set_ylabel("loss, nats per token")
    _step_axis(axes)
    return figure


def replay_figure(outcomes: Sequence[Outcome], name: str, best: Outcome) -> Figure:
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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: short_count(count)))
