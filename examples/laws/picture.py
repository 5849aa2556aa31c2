"""Draws the Multi-Power Law beside measured losses into docs/scaling-laws.png, in the style of the report.

    python examples/laws/picture.py CSV_25 CSV_100 [OUTPUT.png]

The folders hold the curves of one model size each as CSV files (step, lr, loss), those of arXiv:2503.12811 as its
repository has them. The law is fitted on the three that choose_method.py names, and predicts the other six.
"""

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_cpt.report.figures import LIGHT, drawing, run_series, write_png
from megatron_cpt.scaling_law.curves import Curve, read_csv
from megatron_cpt.scaling_law.fit import Fit, fit_law
from megatron_cpt.scaling_law.laws import MULTI_POWER

FITTED = {"cosine_24000": "cosine, 24k", "constant_24000": "constant, 24k", "wsdcon_9": "two stages, 9e-5"}
UNSEEN = {
    "cosine_72000": "cosine, 72k",
    "constant_72000": "constant, 72k",
    "wsd_20000_24000": "wsd, exponential decay",
    "wsdld_20000_24000": "wsd, linear decay",
    "wsdcon_3": "two stages, 3e-5",
    "wsdcon_18": "two stages, 1.8e-4",
}
WARMUP = 2160
"""Updates before the first row of the files."""
FIRST_SHOWN = 4000
"""Updates before it are left out, so that the differences between schedules can be seen."""


def main() -> None:
    """A row of panels a model size: the curves that were fitted, and those that were not."""
    *folders, output = [*map(Path, sys.argv[1:3]), Path(sys.argv[3] if len(sys.argv) > 3 else "docs/scaling-laws.png")]
    with drawing():
        figure = Figure(figsize=(11, 7.6), layout="constrained")
        rows = figure.subplots(2, 2, sharey="row")
        for panels, folder in zip(rows, folders, strict=True):
            size = f"{folder.name.removeprefix('csv_')}M parameters"
            curves = {name: read_csv(folder / f"{name}.csv", WARMUP) for name in FITTED | UNSEEN}
            fit = fit_law(MULTI_POWER, [curves[name] for name in FITTED])
            draw(panels[0], fit, {label: curves[name] for name, label in FITTED.items()}, f"{size}: fitted")
            draw(panels[1], fit, {label: curves[name] for name, label in UNSEEN.items()}, f"{size}: predicted")
            panels[0].set_ylabel("loss, nats per token")
        for axes in rows[-1]:
            axes.set_xlabel("step")
        write_png(figure, output)


def draw(axes: Axes, fit: Fit, curves: dict[str, Curve], title: str) -> None:
    """Measured losses as dots, the law as lines."""
    for index, (label, curve) in enumerate(curves.items()):
        shown = curve.steps >= FIRST_SHOWN
        steps, colour = curve.steps[shown], LIGHT[run_series(index)]
        axes.plot(steps[::6], curve.losses[shown][::6], ".", color=colour, markersize=4, alpha=0.55)
        axes.plot(steps, fit.predict(curve)[shown], color=colour, linewidth=1.6, label=label)
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=9, frameon=False)


if __name__ == "__main__":
    main()
