"""Draws every learning-rate schedule into docs/schedules.png, from the functions that training uses.

python tools/schedules_picture.py [OUTPUT.png]
"""

import sys

import matplotlib

from megatron_cpt.config.rates import ScheduleSettings, StairSettings
from megatron_cpt.config.schedule import learning_rate
from megatron_cpt.config.units import Duration

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STEPS = 1000


def steps(count: int) -> Duration:
    """A duration in steps."""
    return Duration(count, "steps")


def wsd(shape: str, final: float = 0.0) -> ScheduleSettings:
    """A stable rate and a decay of one shape."""
    return ScheduleSettings(
        kind="wsd",
        peak=1.0,
        final=final,
        warmup=steps(50),
        decay=steps(300),
        decay_shape=shape,  # type: ignore[arg-type]
    )


PANELS: dict[str, dict[str, ScheduleSettings]] = {
    "constant, linear, cosine": {
        "constant": ScheduleSettings(kind="constant", peak=1.0, warmup=steps(50)),
        "linear": ScheduleSettings(kind="linear", peak=1.0, warmup=steps(50)),
        "cosine": ScheduleSettings(kind="cosine", peak=1.0, final=0.1, warmup=steps(50)),
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
            peak=1.0,
            plateau=0.4,
            final=0.04,
            warmup=steps(50),
            cooldown=steps(300),
            decay=steps(200),
        ),
    },
    "from the base run's final rate, 0.1": {
        "re-warmed and re-decayed (cosine)": ScheduleSettings(
            kind="cosine", peak=1.0, final=0.1, initial=0.1, warmup=steps(50)
        ),
        "not re-warmed (cosine to 1/100)": ScheduleSettings(kind="cosine", peak=0.1, final=0.001),
    },
    "stairs": {
        "stairs": ScheduleSettings(
            kind="stairs",
            peak=1.0,
            warmup=steps(50),
            stairs=[StairSettings(from_tokens=steps(600), rate=0.3), StairSettings(from_tokens=steps(850), rate=0.1)],
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
