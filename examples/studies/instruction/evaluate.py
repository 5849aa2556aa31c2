"""The table of the study of instruction data, from results/curves.csv.

    python -m examples.studies.instruction.evaluate [--results FOLDER] [--against ARM]

It prints Markdown and writes arms.csv and differences.csv beside the curves. A figure is the mean over seeds with its
standard deviation.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from examples.studies.arms import Series, read_curves, write_tables
from examples.studies.instruction.study import ARMS, BATCH, RESULTS, SEQUENCE_LENGTH
from megatron_cpt.gap.curves import LossCurve
from megatron_cpt.gap.figures import GapFigures, gap_figures


def _gap(name: str, figure: str) -> Callable[[Series], float]:
    """A figure of the stability gap, of a validation set."""

    def of(series: Series) -> float:
        points = sorted(series[f"loss {name}"].items())
        steps = np.array([step for step, _ in points], dtype=np.int64)
        losses = np.array([loss for _, loss in points])
        role = "general" if name == "general" else "domain"
        found: GapFigures = gap_figures(LossCurve(name, role, "", steps, steps * BATCH * SEQUENCE_LENGTH, losses))
        return float(getattr(found, figure))

    return of


def _lowest(name: str) -> Callable[[Series], float]:
    return lambda series: min(series[f"loss {name}"].values())


def _last(name: str) -> Callable[[Series], float]:
    return lambda series: series[f"loss {name}"][max(series[f"loss {name}"])]


FIGURES: dict[str, Callable[[Series], float]] = {
    "answers: loss at the end": _last("answers"),
    "answers: lowest loss": _lowest("answers"),
    "other answers: loss at the end": _last("other-answers"),
    "other answers: largest rise": _gap("other-answers", "depth"),
    "general: largest rise": _gap("general", "depth"),
    "general: rise at the end": _gap("general", "final"),
    "general: transient": _gap("general", "transient"),
}
"""All in nats per token; of answers, of what counts in the loss."""


def main() -> None:
    """Reads, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--against", default="all-once", metavar="ARM")
    args = parser.parse_args()
    runs = read_curves(args.results / "curves.csv")
    print(write_tables(args.results, runs, [arm.name for arm in ARMS], FIGURES, args.against))


if __name__ == "__main__":
    main()
