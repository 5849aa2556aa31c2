"""The loss of validation sets against tokens trained, with the gap to be seen in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.figures import BAND, GapFigures, Recovery, rise_standard_errors, rises
from megatron_cpt.report.palette import LIGHT, run_dashes, run_series
from megatron_cpt.report.panels import HEIGHT, WIDTH, drawing, logarithmic_token_axis, new_panel, token_axis, write_png
from megatron_cpt.report.runs import ReportedRun


@dataclass(frozen=True)
class RunCurve:
    """One validation set in one run."""

    index: int
    """Place of the run in the report: its colour."""
    curve: LossCurve
    """The losses."""
    gap: GapFigures
    """Their gap figures."""

    @property
    def colour(self) -> str:
        """The colour of the run, in light."""
        return LIGHT[run_series(self.index)]


CurvesBySet = dict[tuple[str, str], list[RunCurve]]


def curves_by_set(measured: Sequence[Sequence[tuple[LossCurve, GapFigures]]]) -> CurvesBySet:
    """The curves of all runs, by (role, name of the set or task); general ones first.

    `measured`: of each run, its validation sets or its tasks.
    """
    by_set: dict[tuple[str, str], list[RunCurve]] = {}
    for index, of_run in enumerate(measured):
        for curve, gap in of_run:
            by_set.setdefault((curve.role, curve.name), []).append(RunCurve(index, curve, gap))
    return dict(sorted(by_set.items(), key=lambda item: item[0][0] == "domain"))


def loss_figure(curves: Sequence[RunCurve]) -> Figure:
    """Loss of one set in all runs: baseline dashed, gap shaded, peak and recovery marked."""
    figure, axes = new_panel("loss, nats per token")
    _draw_losses(axes, curves)
    return figure


def change_figure(curves: Sequence[RunCurve]) -> Figure | None:
    """Change since the baseline on a log axis, with two paired standard errors; None without a baseline."""
    measured = [item for item in curves if item.gap.missing is None]
    if not measured:
        return None
    figure, axes = new_panel("loss minus baseline, nats per token")
    axes.axhspan(-BAND, BAND, color=LIGHT["axis"], alpha=0.16, linewidth=0)
    axes.axhline(0, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    for item in measured:
        tokens, change = item.curve.tokens[1:], rises(item.curve)[1:]
        errors = np.nan_to_num(rise_standard_errors(item.curve)[1:])
        axes.fill_between(tokens, change - 2 * errors, change + 2 * errors, color=item.colour, alpha=0.2, linewidth=0)
        axes.plot(tokens, change, color=item.colour, linestyle=run_dashes(item.index), linewidth=1.8,
                  marker="o", markersize=3)  # fmt: skip
    logarithmic_token_axis(axes)
    return figure


def write_headline(runs: Sequence[ReportedRun], path: Path) -> None:
    """The first general and the first domain set of the runs side by side, as PNG.

    A side that no run has is left out; without validation sets at all nothing is written.
    """
    by_role: dict[str, tuple[str, list[RunCurve]]] = {}
    for (role, name), curves in curves_by_set([run.validation for run in runs]).items():
        by_role.setdefault(role, (name, curves))
    if not by_role:
        return
    with drawing():
        figure = Figure(figsize=(WIDTH * len(by_role), HEIGHT + 0.55), layout="constrained")
        panels = figure.subplots(1, len(by_role), squeeze=False)[0]
        for axes, (role, (name, curves)) in zip(panels, by_role.items(), strict=True):
            _draw_losses(axes, curves)
            axes.set_title(set_title(role, name), loc="left", fontsize=12, pad=10)
            axes.set_ylabel("loss, nats per token")
            token_axis(axes)
        figure.legend(*_legend(runs), loc="outside lower center", ncols=len(runs) + 4, frameon=False, fontsize=10)
        write_png(figure, path)


def set_title(role: str, name: str, what: str = "text") -> str:
    """`General text: history`, or `Domain text: medicine`; the set's own name alone where that says it."""
    kind = f"Domain {what}" if role == "domain" else f"General {what}"
    return kind if name.lower() in kind.lower() else f"{kind}: {name}"


def _draw_losses(axes: Axes, curves: Sequence[RunCurve]) -> None:
    _draw_baselines(axes, curves)
    for item in curves:
        tokens, losses = item.curve.tokens, item.curve.losses
        axes.plot(tokens, losses, color=item.colour, linestyle=run_dashes(item.index), linewidth=2, zorder=3)
        if item.gap.baseline is not None:
            axes.fill_between(
                tokens, losses, item.gap.baseline, where=(losses > item.gap.baseline).tolist(),
                interpolate=True, color=item.colour, alpha=0.13, linewidth=0,
            )  # fmt: skip
        _draw_later(axes, item)
    axes.margins(x=0.03, y=0.12)
    for item in curves:
        _mark_gap(axes, item)


def _draw_later(axes: Axes, item: RunCurve) -> None:
    """The losses since the set was changed, joined to none before them, behind a line where they begin."""
    later = item.curve.later
    while later is not None:
        axes.axvline(float(later.tokens[0]), color=item.colour, linewidth=1.1, linestyle=":", zorder=2)
        axes.plot(later.tokens, later.losses, color=item.colour, linestyle=":", linewidth=1.4, marker="o",
                  markersize=3, zorder=3)  # fmt: skip
        later = later.later


def _draw_baselines(axes: Axes, curves: Sequence[RunCurve]) -> None:
    """One neutral line where the runs share their baseline, else each in the run's colour."""
    known = [item for item in curves if item.gap.baseline is not None]
    shared = len({f"{item.gap.baseline:.4f}" for item in known}) == 1
    for item in known[:1] if shared else known:
        assert item.gap.baseline is not None
        colour = LIGHT["muted"] if shared else item.colour
        axes.axhline(item.gap.baseline, color=colour, linewidth=1.1, linestyle=(0, (4, 3)), zorder=2)


def _mark_gap(axes: Axes, item: RunCurve) -> None:
    """A ring at the peak with its height, a dot where the loss was back. Nothing where it never left."""
    gap = item.gap
    if gap.recovery is None or gap.recovery is Recovery.NOT_NEEDED:
        return
    top = int(np.argmax(item.curve.losses))
    tokens, peak = item.curve.tokens[top], item.curve.losses[top]
    axes.plot([tokens], [peak], marker="o", markersize=7, markerfacecolor=LIGHT["paper"],
              markeredgecolor=item.colour, markeredgewidth=1.8, zorder=5)  # fmt: skip
    side = "right" if tokens > 0.85 * item.curve.tokens[-1] else "left"
    axes.annotate(f"+{gap.depth:.2f}", (tokens, peak), xytext=(0, 8), textcoords="offset points",
                  horizontalalignment=side, color=item.colour, fontsize=10.5, fontweight="bold")  # fmt: skip
    if gap.recovery_tokens is not None:
        mark = int(np.flatnonzero(item.curve.tokens == gap.recovery_tokens)[0])
        axes.plot([gap.recovery_tokens], [item.curve.losses[mark]], marker="o", markersize=7,
                  color=item.colour, zorder=5)  # fmt: skip


def _legend(runs: Sequence[ReportedRun]) -> tuple[list[Line2D], list[str]]:
    """Handles and labels of runs and of the marks."""
    handles = [
        Line2D([], [], color=LIGHT[run_series(index)], linestyle=run_dashes(index), linewidth=2.4)
        for index in range(len(runs))
    ]
    muted = LIGHT["muted"]
    marks = {
        "baseline": Line2D([], [], color=muted, linestyle=(0, (4, 3)), linewidth=1.1),
        "peak": Line2D([], [], color=muted, marker="o", markerfacecolor=LIGHT["paper"], linestyle=""),
        "recovered": Line2D([], [], color=muted, marker="o", linestyle=""),
    }
    return [*handles, *marks.values()], [*(run.name for run in runs), *marks]
