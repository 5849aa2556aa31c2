"""Figures of training: loss, learning rate, gradient norm, blend; accuracies, weight updates, speed."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_cpt.report.figure_data import add_column, area_of, line_of, part_of
from megatron_cpt.report.figures import LIGHT, RunCurve, new_panel, run_dashes, run_series, source_series, thin
from megatron_cpt.report.read import Conflict, Series, Signals, SourceHistory, TrainingHistory


def accuracy_figure(curves: Sequence[RunCurve], chance: float | None) -> Figure:
    """Accuracy of one task in all runs, with two standard errors over its questions; guessing as a dotted line."""
    figure, axes = new_panel("accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    if chance is not None:
        axes.axhline(chance, color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (1, 2)), zorder=4)
    for item in curves:
        tokens, accuracy = item.curve.tokens, 1 - item.curve.losses
        _line(axes, item.index, "accuracy", Series(tokens, accuracy), marked=True)
        questions = 0 if item.curve.sequence_tokens is None else len(item.curve.sequence_tokens)
        if questions > 1:
            error = 2 * np.sqrt(accuracy * (1 - accuracy) / (questions - 1))
            axes.fill_between(tokens, accuracy - error, accuracy + error, color=item.colour, alpha=0.13, linewidth=0,
                              gid=part_of(item.index))  # fmt: skip
            add_column(axes, item.index, "standard error", tokens, error / 2)
    axes.margins(x=0.03, y=0.1)
    return figure


def group_figure(groups: Sequence[tuple[int, Series]]) -> Figure:
    """Mean accuracy of a group of tasks, by the run's index."""
    figure, axes = new_panel("mean accuracy")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    for index, series in groups:
        _line(axes, index, "accuracy", series, marked=True)
    axes.margins(x=0.03, y=0.15)
    return figure


def update_figure(signals: Sequence[Signals], measure: str) -> Figure | None:
    """How far the bottom (bold) and the top layers (thin) are from the start; None where no run recorded it."""
    if not any(one.updates for one in signals):
        return None
    figure, axes = new_panel("weight update since the start")
    for index, one in enumerate(signals):
        if one.updates:
            _line(axes, index, "bottom layers", one.updates[measure]["bottom"], width=2.2)
            _line(axes, index, "top layers", one.updates[measure]["top"], width=1.0)
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
            _line(axes, index, "bottom over top", one.updates[measure]["bottom_over_top"], marked=True)
    axes.set_xlim(0)
    return figure


def cosine_figure(conflicts: Sequence[tuple[int, Conflict]]) -> Figure:
    """Cosine of a set's gradient and the training gradient: all layers (bold), the bottom ones (thin), the top ones
    (dotted); by the run's index."""
    figure, axes = new_panel("cosine with the training gradient")
    axes.axhline(0, color=LIGHT["muted"], linewidth=1.1, linestyle=(0, (4, 3)))
    for index, conflict in conflicts:
        _line(axes, index, "all layers", conflict.cosine["all"], width=2.2, marked=True)
        _line(axes, index, "bottom layers", conflict.cosine["bottom"], width=1.0)
        _line(axes, index, "top layers", conflict.cosine["top"], width=1.0, dashes=(0, (1, 2)))
    axes.margins(x=0.03)
    return figure


def held_out_norm_figure(conflicts: Sequence[tuple[int, Conflict]]) -> Figure:
    """Gradient norm on held-out text, by the run's index."""
    figure, axes = new_panel("gradient norm")
    for index, conflict in conflicts:
        _line(axes, index, "gradient norm", conflict.gradient_norm, marked=True)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.03)
    return figure


def step_change_figure(conflicts: Sequence[tuple[int, Conflict]]) -> Figure:
    """Change of a set's loss by single updates: what came (dots), and to first order (thin); by the run's index."""
    figure, axes = new_panel("change by one update, nats per token")
    axes.axhline(0, color=LIGHT["muted"], linewidth=1.1, linestyle=(0, (4, 3)))
    for index, conflict in conflicts:
        _line(axes, index, "change", conflict.change, marked=True)
        _line(axes, index, "to first order", conflict.predicted_change, width=1.0, dashes=(0, (1, 2)))
    axes.margins(x=0.03)
    return figure


def speed_figure(signals: Sequence[Signals]) -> Figure | None:
    """Tokens per second of every run; None where no run recorded it."""
    if not any(np.isfinite(one.speed.values).any() for one in signals):
        return None
    figure, axes = new_panel("tokens per second")
    for index, one in enumerate(signals):
        _line(axes, index, "tokens per second", Series(*thin(one.speed.tokens, one.speed.values)), width=1.2)
    axes.set_xlim(0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def _line(
    axes: Axes,
    index: int,
    column: str,
    series: Series,
    width: float = 1.8,
    marked: bool = False,
    dashes: tuple[float, tuple[float, ...]] | None = None,
) -> None:
    axes.plot(series.tokens, series.values, color=LIGHT[run_series(index)], linestyle=dashes or run_dashes(index),
              linewidth=width, marker="o" if marked else None, markersize=3, gid=line_of(index, column))  # fmt: skip


MOST_SOURCES = 7
"""Sources drawn on their own: those with the most tokens. The others are drawn as one."""


def drawn_sources(history: TrainingHistory) -> dict[str, SourceHistory]:
    """The sources that are drawn on their own, with the most tokens first."""
    return dict(list(history.sources.items())[:MOST_SOURCES])


def training_loss_figure(history: TrainingHistory) -> Figure:
    """Training loss of one run, and of each source."""
    figure, axes = new_panel("training loss, nats per token")
    # Below the sources: where one gives nearly all tokens, the two lines are one.
    axes.plot(*thin(history.tokens, history.losses), color=LIGHT["ink"], linewidth=2,
              gid=line_of(0, "all tokens"))  # fmt: skip
    for index, (name, source) in enumerate(drawn_sources(history).items()):
        # A step's loss counts as much as the tokens that the source gave to it.
        weights = np.diff(np.nan_to_num(source.tokens), prepend=0.0)
        tokens, losses = thin(history.tokens, source.losses, weights)
        axes.plot(tokens, losses, color=LIGHT[source_series(index)], linewidth=1, gid=line_of(0, name))
    return figure


def learning_rate_figure(histories: Sequence[TrainingHistory]) -> Figure:
    """Learning rate of every run."""
    figure, axes = new_panel("learning rate")
    _draw_runs(axes, "learning rate", [(history.tokens, history.learning_rates) for history in histories])
    axes.ticklabel_format(axis="y", style="plain")
    axes.yaxis.set_major_formatter(lambda rate, _: "0" if rate == 0 else f"{rate:.2g}")
    axes.set_ylim(bottom=0)
    return figure


def gradient_norm_figure(histories: Sequence[TrainingHistory]) -> Figure:
    """Gradient norm of every run, before clipping."""
    figure, axes = new_panel("gradient norm, before clipping")
    _draw_runs(axes, "gradient norm", [(history.tokens, history.gradient_norms) for history in histories])
    axes.set_ylim(bottom=0)
    return figure


def mixture_figure(history: TrainingHistory) -> Figure:
    """Tokens read so far, source upon source."""
    figure, axes = new_panel("tokens read")
    axes.yaxis.set_major_formatter(axes.xaxis.get_major_formatter())
    kept = np.unique(np.linspace(0, len(history.tokens) - 1, 100).astype(np.int64))
    below = np.zeros(len(kept))
    for name, source, colour in _stack(history):
        above = below + np.nan_to_num(source[kept])
        axes.fill_between(history.tokens[kept], below, above, color=LIGHT[colour], alpha=0.75, linewidth=0,
                          gid=area_of(0, name))  # fmt: skip
        add_column(axes, 0, name, history.tokens[kept], source[kept])
        below = above
    axes.set_xlim(0)
    axes.set_ylim(0)
    return figure


def epochs_figure(history: TrainingHistory) -> Figure:
    """Times each source was read so far."""
    figure, axes = new_panel("epochs of the source")
    for index, (name, source) in enumerate(drawn_sources(history).items()):
        axes.plot(*thin(history.tokens, source.epochs), color=LIGHT[source_series(index)], linewidth=1.8,
                  gid=line_of(0, name))  # fmt: skip
    axes.set_xlim(0)
    axes.set_ylim(0)
    return figure


def _stack(history: TrainingHistory) -> list[tuple[str, np.ndarray, str]]:
    """Name, cumulative tokens and colour of each layer; the last is all sources that are not drawn on their own."""
    drawn = drawn_sources(history).items()
    layers = [(name, source.tokens, source_series(index)) for index, (name, source) in enumerate(drawn)]
    others = list(history.sources.values())[MOST_SOURCES:]
    if others:
        layers.append(("other sources", np.sum([np.nan_to_num(one.tokens) for one in others], axis=0), "series7"))
    return layers


def _draw_runs(axes: Axes, column: str, lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    for index, (tokens, values) in enumerate(lines):
        axes.plot(*thin(tokens, values), color=LIGHT[run_series(index)], linestyle=run_dashes(index), linewidth=1.4,
                  gid=line_of(index, column))  # fmt: skip
