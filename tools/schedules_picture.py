"""Draws every learning-rate schedule into docs/schedules.png, from the functions that training uses.

python tools/schedules_picture.py [OUTPUT.png]
"""

import sys

import matplotlib
from matplotlib import pyplot as plt

from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.schema import PieceSettings, ScheduleSettings
from megatron_cpt.config.units import Duration

matplotlib.use("Agg")


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
    "from the base run's final rate, 0.1": {
        "re-warmed and re-decayed (cosine)": ScheduleSettings(
            kind="cosine", peak_lr=1.0, final_lr=0.1, initial_lr=0.1, warmup=steps(50)
        ),
        "not re-warmed (cosine to 1/100)": ScheduleSettings(kind="cosine", peak_lr=0.1, final_lr=0.001),
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
    """Draws the panels side by side."""
    output = sys.argv[1] if len(sys.argv) > 1 else "docs/schedules.png"
    figure, axes = plt.subplots(1, len(PANELS), figsize=(16, 3.2), sharey=True, layout="constrained")
    for axis, (title, schedules) in zip(axes, PANELS.items(), strict=True):
        for name, schedule in schedules.items():
            rates = [learning_rate(schedule, step, STEPS, 1) for step in range(1, STEPS + 1)]
            axis.plot(range(1, STEPS + 1), rates, label=name, linewidth=1.6)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower left" if title.startswith("wsd") else "best")
    axes[0].set_ylabel("learning rate, of the peak")
    figure.savefig(output, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
