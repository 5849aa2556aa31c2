"""Figures of what is measured beside the losses: accuracies, weight updates, stability gradients, speed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_cpt.report.figures import RunCurve
from megatron_cpt.report.palette import LIGHT, run_dashes, run_series
from megatron_cpt.report.panels import new_panel, thin
from megatron_cpt.report.signals import Series, Signals


def accuracy_figure(curves: Sequence[RunCurve], chance: float | None) -> Figure:
    """Accuracy of one task in all runs, with two standard errors over its questions; guessing as a dotted line."""
    figure, axes = new_panel("accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    if chance is not None:
        axes.axhline(chance, color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (1, 2)), zorder=4)
    for item in curves:
        tokens, accuracy = item.curve.tokens, 1 - item.curve.losses
        _line(axes, item.index, Series(tokens, accuracy), marked=True)
        questions = 0 if item.curve.sequence_tokens is None else len(item.curve.sequence_tokens)
        if questions > 1:
            error = 2 * np.sqrt(accuracy * (1 - accuracy) / (questions - 1))
            axes.fill_between(tokens, accuracy - error, accuracy + error, color=item.colour, alpha=0.13, linewidth=0)
    axes.margins(x=0.03, y=0.1)
    return figure


def group_figure(groups: Sequence[tuple[int, Series]]) -> Figure:
    """Mean accuracy of a group of tasks, by the run's index."""
    figure, axes = new_panel("mean accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    for index, series in groups:
        _line(axes, index, series, marked=True)
    axes.margins(x=0.03, y=0.15)
    return figure


def update_figure(signals: Sequence[Signals], measure: str) -> Figure | None:
    """How far the bottom (bold) and the top layers (thin) are from the start; None where no run recorded it."""
    if not any(one.updates for one in signals):
        return None
    figure, axes = new_panel("weight update since the start")
    for index, one in enumerate(signals):
        if one.updates:
            _line(axes, index, one.updates[measure]["bottom"], width=2.2)
            _line(axes, index, one.updates[measure]["top"], width=1.0)
    axes.set_xlim(0)
    axes.set_ylim(bottom=0)
    return figure


def update_ratio_figure(signals: Sequence[Signals], measure: str) -> Figure | None:
    """The update of the bottom layers over that of the top ones; None where no run recorded it."""
    if not any(one.updates for one in signals):
        return None
    figure, axes = new_panel("bottom over top layers")
    axes.axhline(1, color=LIGHT["muted"], linewidth=1.1, linestyle=(0, (4, 3)))
    for index, one in enumerate(signals):
        if one.updates:
            _line(axes, index, one.updates[measure]["bottom_over_top"], marked=True)
    axes.set_xlim(0)
    return figure


def stability_figure(runs: Sequence[tuple[int, Series]]) -> Figure:
    """Gradient norm on held-out text, by the run's index."""
    figure, axes = new_panel("gradient norm")
    for index, series in runs:
        _line(axes, index, series, marked=True)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.03)
    return figure


def speed_figure(signals: Sequence[Signals]) -> Figure | None:
    """Tokens per second of every run; None where no run recorded it."""
    if not any(np.isfinite(one.speed.values).any() for one in signals):
        return None
    figure, axes = new_panel("tokens per second")
    for index, one in enumerate(signals):
        _line(axes, index, Series(*thin(one.speed.tokens, one.speed.values)), width=1.2)
    axes.set_xlim(0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def _line(axes: Axes, index: int, series: Series, width: float = 1.8, marked: bool = False) -> None:
    axes.plot(series.tokens, series.values, color=LIGHT[run_series(index)], linestyle=run_dashes(index),
              linewidth=width, marker="o" if marked else None, markersize=3)  # fmt: skip
