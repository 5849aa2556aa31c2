"""Draws every learning-rate schedule into docs/schedules.png, from the functions that training uses.

python tools/schedules_picture.py [OUTPUT.png]
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.schema import PieceSettings, ScheduleSettings
from megatron_cpt.config.units import Duration
from megatron_cpt.report.figures import LIGHT, drawing, run_series, write_png

STEPS = 1000


def steps(count: int) -> Duration:
    """A duration in steps."""
    return Duration(count, "steps")


def wsd(shape: str, final: float = 0.0) -> ScheduleSettings:
    """A stable rate and a decay of one shape."""
    return ScheduleSettings(
        kind="wsd",
        peak_lr=1.0,
        final_lr=final,
        warmup=steps(50),
        decay=steps(300),
        decay_shape=shape,  # type: ignore[arg-type]
    )


PANELS: dict[str, dict[str, ScheduleSettings]] = {
    "constant, linear, cosine": {
        "constant": ScheduleSettings(kind="constant", peak_lr=1.0, warmup=steps(50)),
        "linear": ScheduleSettings(kind="linear", peak_lr=1.0, warmup=steps(50)),
        "cosine": ScheduleSettings(kind="cosine", peak_lr=1.0, final_lr=0.1, warmup=steps(50)),
    },
    "wsd, by decay_shape": {
        "linear": wsd("linear"),
        "cosine": wsd("cosine"),
        "exponential": wsd("exponential", 0.01),
        "1-sqrt": wsd("1-sqrt"),
    },
    "infinite": {
        "infinite": ScheduleSettings(
            kind="infinite",
            peak_lr=1.0,
            plateau_lr=0.4,
            final_lr=0.04,
            warmup=steps(50),
            cooldown=steps(300),
            decay=steps(200),
        ),
    },
    "cosine, from the base run's final 0.1": {
        "re-warmed": ScheduleSettings(kind="cosine", peak_lr=1.0, final_lr=0.1, initial_lr=0.1, warmup=steps(50)),
        "not re-warmed": ScheduleSettings(kind="cosine", peak_lr=0.1, final_lr=0.001),
    },
    "piecewise": {
        "piecewise": ScheduleSettings(
            kind="piecewise",
            peak_lr=1.0,
            warmup=steps(50),
            pieces=[PieceSettings(from_tokens=steps(600), lr=0.3), PieceSettings(from_tokens=steps(850), lr=0.1)],
        ),
    },
}


def main() -> None:
    """Draws the panels in two rows, in the style of the report."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schedules.png")
    with drawing():
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        rows = figure.subplots(2, 3, sharey=True)
        for axes in rows.flat[len(PANELS) :]:
            axes.set_axis_off()
        for axes, (title, schedules) in zip(rows.flat, PANELS.items(), strict=False):
            for index, (name, schedule) in enumerate(schedules.items()):
                rates = [learning_rate(schedule, step, STEPS, 1) for step in range(1, STEPS + 1)]
                axes.plot(range(1, STEPS + 1), rates, label=name, color=LIGHT[run_series(index)], linewidth=1.8)
            axes.set_title(title, fontsize=11)
            axes.set_xlabel("step")
            axes.set_ylim(0, 1.08)
            if len(schedules) > 1:
                axes.legend(fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0.1, 0.13))
        for axes in rows[:, 0]:
            axes.set_ylabel("learning rate / peak")
        write_png(figure, output)


if __name__ == "__main__":
    main()
