"""What training did: loss, learning rate, gradient norm, and the mixture that was really read."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_cpt.report.palette import LIGHT, run_dashes, run_series, source_series
from megatron_cpt.report.panels import new_panel, thin
from megatron_cpt.report.runs import SourceHistory, TrainingHistory

MOST_SOURCES = 7
"""Sources drawn on their own: those with the most tokens. The others are drawn as one."""


def drawn_sources(history: TrainingHistory) -> dict[str, SourceHistory]:
    """The sources that are drawn on their own, with the most tokens first."""
    return dict(list(history.sources.items())[:MOST_SOURCES])


def training_loss_figure(history: TrainingHistory) -> Figure:
    """Training loss of one run, and of each source."""
    figure, axes = new_panel("training loss, nats per token")
    # Below the sources: where one gives nearly all tokens, the two lines are one.
    axes.plot(*thin(history.tokens, history.losses), color=LIGHT["ink"], linewidth=2)
    for index, source in enumerate(drawn_sources(history).values()):
        # A step's loss counts as much as the tokens that the source gave to it.
        weights = np.diff(np.nan_to_num(source.tokens), prepend=0.0)
        tokens, losses = thin(history.tokens, source.losses, weights)
        axes.plot(tokens, losses, color=LIGHT[source_series(index)], linewidth=1)
    return figure


def learning_rate_figure(histories: Sequence[TrainingHistory]) -> Figure:
    """Learning rate of every run."""
    figure, axes = new_panel("learning rate")
    _draw_runs(axes, [(history.tokens, history.learning_rates) for history in histories])
    axes.ticklabel_format(axis="y", style="plain")
    axes.yaxis.set_major_formatter(lambda rate, _: "0" if rate == 0 else f"{rate:.2g}")
    axes.set_ylim(bottom=0)
    return figure


def gradient_norm_figure(histories: Sequence[TrainingHistory]) -> Figure:
    """Gradient norm of every run, before clipping."""
    figure, axes = new_panel("gradient norm, before clipping")
    _draw_runs(axes, [(history.tokens, history.gradient_norms) for history in histories])
    axes.set_ylim(bottom=0)
    return figure


def mixture_figure(history: TrainingHistory) -> Figure:
    """Tokens read so far, source upon source."""
    figure, axes = new_panel("tokens read")
    axes.yaxis.set_major_formatter(axes.xaxis.get_major_formatter())
    kept = np.unique(np.linspace(0, len(history.tokens) - 1, 100).astype(np.int64))
    below = np.zeros(len(kept))
    for source, colour in _stack(history):
        above = below + np.nan_to_num(source[kept])
        axes.fill_between(history.tokens[kept], below, above, color=LIGHT[colour], alpha=0.75, linewidth=0)
        below = above
    axes.set_xlim(0)
    axes.set_ylim(0)
    return figure


def epochs_figure(history: TrainingHistory) -> Figure:
    """Times each source was read so far."""
    figure, axes = new_panel("epochs of the source")
    for index, source in enumerate(drawn_sources(history).values()):
        axes.plot(*thin(history.tokens, source.epochs), color=LIGHT[source_series(index)], linewidth=1.8)
    axes.set_xlim(0)
    axes.set_ylim(0)
    return figure


def _stack(history: TrainingHistory) -> list[tuple[np.ndarray, str]]:
    """Cumulative tokens and colour of each layer; the last is all sources that are not drawn on their own."""
    layers = [(source.tokens, source_series(i)) for i, source in enumerate(drawn_sources(history).values())]
    others = list(history.sources.values())[MOST_SOURCES:]
    if others:
        layers.append((np.sum([np.nan_to_num(source.tokens) for source in others], axis=0), "series7"))
    return layers


def _draw_runs(axes: Axes, lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    for index, (tokens, values) in enumerate(lines):
        axes.plot(*thin(tokens, values), color=LIGHT[run_series(index)], linestyle=run_dashes(index), linewidth=1.4)
