"""Draws losses and gradients of the study of the stability gap into docs/claims.png, in the style of the report.

    python -m examples.studies.stability_gap.picture [--results FOLDER] [--output PNG]

A line is the mean over seeds; what is shaded is one standard deviation on each side.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.studies.arms import Series, read_curves
from examples.studies.stability_gap.evaluate import seeds_of
from examples.studies.stability_gap.study import RESULTS, STEPS
from megatron_cpt.report.figures import LIGHT, drawing, run_series, write_png

ARMS = {
    "re-warmed": "domain once",
    "replay-20": "domain once, 20 % replay",
    "random-4-epochs": "a random quarter four times",
    "best-4-epochs": "the best quarter four times",
    "all-three": "the best quarter four times, with general text",
}
"""Arms that are shown, and what they are called."""
GRADIENTS = {"gradient norm domain": "domain", "gradient norm general": "general text"}


def main() -> None:
    """Three panels over the steps: general loss, domain loss, norms of gradients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path("docs/claims.png"), metavar="PNG")
    args = parser.parse_args()
    runs = read_curves(args.results / "curves.csv")
    with drawing():
        figure = Figure(figsize=(12, 5.4), layout="constrained")
        general, domain, gradients = figure.subplots(1, 3)
        draw_changes(general, runs, "loss general", "general loss: change, nats per token")
        draw_changes(domain, runs, "loss domain", "domain loss: change, nats per token")
        draw_gradients(gradients, runs)
        handles, labels = general.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
        write_png(figure, args.output)


def draw_changes(axes: Axes, runs: Mapping[str, Series], name: str, title: str) -> None:
    """The change of a loss since the first step, one line an arm."""
    for index, (arm, label) in enumerate(ARMS.items()):
        steps, values = by_step(seeds_of(runs, arm), name)
        draw(axes, steps[1:], values[:, 1:] - values[:, :1], index, label)
    axes.axhline(0, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    finish(axes, title)


def draw_gradients(axes: Axes, runs: Mapping[str, Series]) -> None:
    """Norms of held-out gradients: without replay as lines, with replay dashed."""
    for index, (name, label) in enumerate(GRADIENTS.items()):
        for arm, dashes in (("re-warmed", "-"), ("replay-20", "--")):
            steps, values = by_step(seeds_of(runs, arm), name)
            said = f"{label}, 20 % replay" if dashes == "--" else label
            draw(axes, steps, values, len(ARMS) + index, said, dashes)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False)
    finish(axes, "norm of the held-out gradient")


def by_step(of_arm: Sequence[Series], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, [n], and the values of a series at each, [seeds, n]."""
    steps = sorted(set.intersection(*(set(series[name]) for series in of_arm)))
    return np.array(steps), np.array([[series[name][step] for step in steps] for series in of_arm])


def draw(axes: Axes, steps: np.ndarray, values: np.ndarray, index: int, label: str, dashes: str = "-") -> None:
    """The mean over seeds and its standard deviation; values are [seeds, steps]."""
    colour, mean = LIGHT[run_series(index)], values.mean(axis=0)
    axes.plot(steps, mean, color=colour, linewidth=1.8, linestyle=dashes, label=label)
    if len(values) > 1:
        sd = values.std(axis=0, ddof=1)
        axes.fill_between(steps, mean - sd, mean + sd, color=colour, alpha=0.2, linewidth=0)


def finish(axes: Axes, title: str) -> None:
    """Title and axis of steps, each factor of ten as wide."""
    axes.set_title(title, fontsize=11)
    axes.set_xscale("log")
    axes.set_xlim(1, STEPS)
    axes.set_xticks([1, 10, 100, STEPS], ["1", "10", "100", str(STEPS)])
    axes.set_xlabel("step")


if __name__ == "__main__":
    main()
