"""The tables of the study of the stability gap, from results/curves.csv.

    python -m examples.studies.stability_gap.evaluate [--results FOLDER] [--against ARM]

It prints Markdown and writes arms.csv and differences.csv beside the curves. A figure is the mean over seeds with its
standard deviation. Arms are held against one of them by Welch's test over seeds, with Holm's correction over all arms
of a figure.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from examples.studies.runs import BATCH, SEQUENCE_LENGTH, write_rows
from examples.studies.stability_gap.study import ARMS, RESULTS, run_name
from megatron_cpt.gap.compare import Spread, holm, spread, welch
from megatron_cpt.gap.curves import WRONG, LossCurve
from megatron_cpt.gap.figures import GapFigures, gap_figures

Series = Mapping[str, Mapping[int, float]]
"""Of one run: name of the series to value by step."""

Rows = list[dict[str, Any]]


def curve_of(series: Series, name: str) -> LossCurve:
    """A loss or an accuracy as the gap figures take it."""
    points = sorted(series[name].items())
    steps = np.array([step for step, _ in points], dtype=np.int64)
    values = np.array([value for _, value in points])
    is_accuracy = name.startswith("accuracy")
    tokens = steps * BATCH * SEQUENCE_LENGTH
    role = "domain" if "domain" in name or "terms" in name else "general"
    losses = 1 - values if is_accuracy else values
    return LossCurve(name, role, "", steps, tokens, losses, **({"unit": WRONG} if is_accuracy else {}))


def _gap(name: str, figure: str) -> Callable[[Series], float]:
    def of(series: Series) -> float:
        found: GapFigures = gap_figures(curve_of(series, name))
        return float(getattr(found, figure))

    return of


def _first(name: str) -> Callable[[Series], float]:
    """The value at the first step at which it was measured."""
    return lambda series: series[name][min(series[name])]


def _last(name: str) -> Callable[[Series], float]:
    return lambda series: series[name][max(series[name])]


def _share_below(name: str) -> Callable[[Series], float]:
    """Share of the steps at which a cosine is below 0."""
    return lambda series: float(np.mean([value < 0 for value in series[name].values()]))


FIGURES: dict[str, Callable[[Series], float]] = {
    "general: rise at its largest, nats": _gap("loss general", "depth"),
    "general: rise at the end, nats": _gap("loss general", "final"),
    "general: transient, nats": _gap("loss general", "transient"),
    "domain: change at the end, nats": _gap("loss domain", "final"),
    "domain: largest rise, nats": _gap("loss domain", "depth"),
    "pairs: largest fall of accuracy": _gap("accuracy pairs", "depth"),
    "pairs: fall at the end": _gap("accuracy pairs", "final"),
    "terms: largest fall of accuracy": _gap("accuracy terms", "depth"),
    "terms: accuracy at the end": _last("accuracy terms"),
    "bottom over top, first": _first("bottom over top, mean relative"),
    "bottom over top, end": _last("bottom over top, mean relative"),
    "cosine with general, first": _first("cosine general all"),
    "cosine with general, end": _last("cosine general all"),
    "steps in conflict with general": _share_below("cosine general all"),
}


def main() -> None:
    """Reads, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--against", default="re-warmed", metavar="ARM")
    args = parser.parse_args()
    runs = read_curves(args.results / "curves.csv")
    seeds = {arm.name: [s for s in range(1, 100) if run_name(arm, s) in runs] for arm in ARMS}
    values = {
        arm.name: {
            figure: [value(runs[run_name(arm, seed)]) for seed in seeds[arm.name]] for figure, value in FIGURES.items()
        }
        for arm in ARMS
        if seeds[arm.name]
    }
    arms = {name: {figure: spread(found) for figure, found in figures.items()} for name, figures in values.items()}
    differences = compared(arms, args.against)
    write_rows(args.results / "arms.csv", arm_rows(arms))
    write_rows(args.results / "differences.csv", differences)
    print(starts(runs))
    print(table(arms, differences))


def read_curves(path: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Run to series to step to value."""
    runs: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            runs[row["run"]][row["series"]][int(row["step"])] = float(row["value"])
    return runs


def starts(runs: Mapping[str, Series]) -> str:
    """What the base does before the first update: losses, and accuracies beside chance."""
    first = next(iter(runs.values()))
    lines = ["| of the base | value |", "|---|---|"]
    for name, points in first.items():
        if 0 in points and name.startswith(("loss", "accuracy")):
            chance = "" if name.startswith("loss") else f" (chance {0.25 if 'terms' in name else 0.5})"
            lines.append(f"| {name} | {points[0]:.4f}{chance} |")
    return "\n".join(lines)


def compared(arms: Mapping[str, Mapping[str, Spread]], against: str) -> Rows:
    """Every other arm against one, in every figure."""
    rows: Rows = []
    for figure in FIGURES:
        of_figure: Rows = []
        for name, figures in arms.items():
            one, other = arms[against][figure], figures[figure]
            if name == against or one.mean is None or other.mean is None:
                continue
            test = welch(one, other)
            found = {"figure": figure, "arm": name, "against": against, "difference": other.mean - one.mean}
            of_figure.append(found | {"standard error": test and test[0], "p": test and test[2]})
        adjusted = iter(holm([row["p"] for row in of_figure if row["p"] is not None]))
        rows += [row | {"adjusted p": None if row["p"] is None else next(adjusted)} for row in of_figure]
    return rows


def arm_rows(arms: Mapping[str, Mapping[str, Spread]]) -> Rows:
    """A row for each arm and figure."""
    return [
        {"arm": name, "figure": figure, "mean": one.mean, "sd": one.sd, "seeds": one.runs}
        for name, figures in arms.items()
        for figure, one in figures.items()
    ]


def table(arms: Mapping[str, Mapping[str, Spread]], differences: Rows) -> str:
    """Arms as rows, figures as columns: mean and standard deviation; * where the adjusted p value is at most 5 %."""
    marked = {(row["arm"], row["figure"]) for row in differences if row["adjusted p"] is not None
              and row["adjusted p"] <= 0.05}  # fmt: skip
    lines = [f"| arm | seeds | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 2) + "|"]
    for name, figures in arms.items():
        cells = [
            f"{one.mean:+.3f} ± {one.sd or 0:.3f}{'*' if (name, figure) in marked else ''}"
            for figure, one in figures.items()
        ]
        lines.append(f"| {name} | {max(one.runs for one in figures.values())} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
