"""Every figure of a report as files, SVG and PNG, each with its own legend."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from megatron_cpt.gap.curves import WRONG
from megatron_cpt.report.figures import change_figure, curves_by_set, loss_figure
from megatron_cpt.report.palette import LIGHT, run_dashes, run_series, source_series
from megatron_cpt.report.panels import drawing, write_png
from megatron_cpt.report.runs import ReportedRun
from megatron_cpt.report.signal_figures import (
    accuracy_figure,
    group_figure,
    speed_figure,
    stability_figure,
    update_figure,
    update_ratio_figure,
)
from megatron_cpt.report.training_figures import (
    drawn_sources,
    epochs_figure,
    gradient_norm_figure,
    learning_rate_figure,
    mixture_figure,
    training_loss_figure,
)


def export_figures(runs: Sequence[ReportedRun], folder: Path) -> list[Path]:
    """Writes NAME.svg and NAME.png of each figure into a folder, which is made; returns the PNG paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with drawing():
        for name, figure, labels in _figures(runs):
            if figure is None:
                continue
            lines = [Line2D([], [], color=LIGHT[colour], linestyle=style, linewidth=2.4) for _, colour, style in labels]
            figure.legend(lines, [label for label, _, _ in labels], loc="outside lower center",
                          ncols=min(4, len(labels)), frameon=False, fontsize=10)  # fmt: skip
            path = folder / re.sub(r"[^\w.-]+", "-", name)
            figure.savefig(f"{path}.svg", format="svg", facecolor=LIGHT["paper"], metadata={"Date": None})
            write_png(figure, Path(f"{path}.png"))
            written.append(Path(f"{path}.png"))
    return written


Label = tuple[str, str, tuple[float, tuple[float, ...]]]
"""A line of a legend: its words, colour name and style."""


def _figures(runs: Sequence[ReportedRun]) -> Iterator[tuple[str, Figure | None, list[Label]]]:
    """(file name, figure, legend) of all figures of the page."""
    labels = [(run.name, run_series(index), run_dashes(index)) for index, run in enumerate(runs)]
    for (_, name), curves in curves_by_set([run.validation for run in runs]).items():
        yield f"loss-{name}", loss_figure(curves), labels
        yield f"change-{name}", change_figure(curves), labels
    chances = {name: chance for run in runs for name, chance in run.chances.items()}
    for (_, name), curves in curves_by_set([run.tasks for run in runs]).items():
        drawn = accuracy_figure(curves, chances.get(name)) if curves[0].curve.unit == WRONG else loss_figure(curves)
        yield f"task-{name}", drawn, labels
    signals = [run.signals for run in runs]
    for name in dict.fromkeys(name for one in signals for name in one.groups):
        having = [(index, one.groups[name]) for index, one in enumerate(signals) if name in one.groups]
        yield f"tasks-{name}", group_figure(having), labels
    yield "weight-update", update_figure(signals, "norm_ratio"), labels
    yield "weight-update-bottom-over-top", update_ratio_figure(signals, "mean_relative"), labels
    for name in dict.fromkeys(name for one in signals for name in one.stability):
        having = [(index, one.stability[name]) for index, one in enumerate(signals) if name in one.stability]
        yield f"stability-gradient-{name}", stability_figure(having), labels
    yield "speed", speed_figure(signals), labels
    trained = [run for run in runs if len(run.training.tokens)]
    if trained:
        yield "learning-rate", learning_rate_figure([run.training for run in runs]), labels
        yield "gradient-norm", gradient_norm_figure([run.training for run in runs]), labels
    for run in trained:
        solid = run_dashes(0)
        sources = [(name, source_series(index), solid) for index, name in enumerate(drawn_sources(run.training))]
        yield f"training-loss-{run.name}", training_loss_figure(run.training), [("all tokens", "ink", solid), *sources]
        if run.training.sources:
            yield f"mixture-{run.name}", mixture_figure(run.training), sources
            yield f"epochs-{run.name}", epochs_figure(run.training), sources
