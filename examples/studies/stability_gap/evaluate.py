"""The tables of the study of the stability gap, from results/curves.csv.

    python -m examples.studies.stability_gap.evaluate [--results FOLDER] [--against ARM]

It prints the tables of docs/claims.md: what the base does, arms beside each other, and the course of gradients and
updates in the arms that measured them. It writes arms.csv and differences.csv, with all figures, beside the curves. A
figure is the mean over seeds with its standard deviation.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from examples.studies.arms import Figures, Series, cell, read_curves, write_tables
from examples.studies.runs import BATCH, SEQUENCE_LENGTH
from examples.studies.stability_gap.study import ARMS, CONFLICT, RESULTS
from megatron_cpt.gap.compare import spread
from megatron_cpt.gap.curves import WRONG, LossCurve
from megatron_cpt.gap.figures import GapFigures, gap_figures


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


def _of(name: str, figure: Callable[[list[float]], float]) -> Callable[[Series], float | None]:
    """A figure of the values of a series in the order of steps, where it was measured."""
    return lambda series: figure([value for _, value in sorted(series[name].items())]) if name in series else None


def _first(name: str) -> Callable[[Series], float | None]:
    return _of(name, lambda values: values[0])


def _last(name: str) -> Callable[[Series], float | None]:
    return _of(name, lambda values: values[-1])


def _change(name: str) -> Callable[[Series], float | None]:
    """From the first to the last step."""
    return _of(name, lambda values: values[-1] - values[0])


def _share_below(name: str) -> Callable[[Series], float | None]:
    """Share of the steps at which a cosine is below 0."""
    return _of(name, lambda values: float(np.mean(np.array(values) < 0)))


SHOWN: Figures = {
    "general: largest rise": _gap("loss general", "depth"),
    "general: rise at the end": _gap("loss general", "final"),
    "domain: change at the end": _gap("loss domain", "final"),
    "pairs: change of accuracy": _change("accuracy pairs"),
    "terms: change of accuracy": _change("accuracy terms"),
}
"""Of the printed table; losses in nats per token."""
FIGURES: Figures = SHOWN | {
    "general: transient": _gap("loss general", "transient"),
    "domain: largest rise": _gap("loss domain", "depth"),
    "pairs: largest fall of accuracy": _gap("accuracy pairs", "depth"),
    "terms: largest fall of accuracy": _gap("accuracy terms", "depth"),
    "bottom over top, first": _first("bottom over top, mean relative"),
    "bottom over top, end": _last("bottom over top, mean relative"),
    "cosine with general, first": _first("cosine general all"),
    "cosine with general, end": _last("cosine general all"),
    "steps in conflict with general": _share_below("cosine general all"),
}


COURSE = {
    "gradient norm domain": "norm of the gradient: domain",
    "gradient norm general": "norm of the gradient: general text",
    "cosine general all": "cosine with general: all layers",
    "cosine general top": "cosine with general: top 5",
    "cosine general bottom": "cosine with general: bottom 5",
    "bottom over top, mean relative": "updates, bottom over top: mean relative",
    "bottom over top, norms": "updates, bottom over top: norms",
}
"""Series that are followed step by step, and what they are called."""
COURSE_ARMS = (*CONFLICT, "general-alone")
"""The control has updates, and no gradients beside them."""
COURSE_STEPS = (1, 5, 15, 22, 30, 60, 150, 600)


def main() -> None:
    """Reads, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--against", default="re-warmed", metavar="ARM")
    args = parser.parse_args()
    runs = read_curves(args.results / "curves.csv")
    print(starts(runs))
    print(write_tables(args.results, runs, [arm.name for arm in ARMS], FIGURES, args.against, SHOWN))
    for arm in COURSE_ARMS:
        if of_arm := seeds_of(runs, arm):
            print(f"\n{course(arm, of_arm)}")


def starts(runs: Mapping[str, Series]) -> str:
    """What the base does before the first update: losses, and accuracies beside chance."""
    first = next(iter(runs.values()))
    lines = ["| of the base | value |", "|---|---|"]
    for name, points in first.items():
        if 0 in points and name.startswith(("loss", "accuracy")):
            chance = "" if name.startswith("loss") else f" (chance {0.25 if 'terms' in name else 0.5})"
            lines.append(f"| {name} | {points[0]:.4f}{chance} |")
    return "\n".join(lines)


def seeds_of(runs: Mapping[str, Series], arm: str) -> list[Series]:
    """The runs of an arm."""
    return [series for name, series in runs.items() if name.startswith(f"{arm}-seed-")]


def course(arm: str, of_arm: Sequence[Series]) -> str:
    """COURSE over COURSE_STEPS, mean and standard deviation over the seeds of an arm, in Markdown."""
    seeds = f"{len(of_arm)} seed{'s' * (len(of_arm) > 1)}"
    lines = [f"| {arm}, {seeds}; step | {' | '.join(map(str, COURSE_STEPS))} |", "|---" * (len(COURSE_STEPS) + 1) + "|"]
    for name, title in COURSE.items():
        if all(name in series for series in of_arm):
            sign = "+" if name.startswith("cosine") else ""
            at_steps = (spread([series[name][step] for series in of_arm]) for step in COURSE_STEPS)
            lines.append(f"| {title} | {' | '.join(cell(one, 2, sign) for one in at_steps)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
