"""Arms of a study in tables: figures of each over seeds, and every arm against one of them.

Arms are held against one by Welch's test over seeds, with Holm's correction over all arms of a figure that have enough
seeds.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.studies.runs import read_rows, write_rows
from megatron_cpt.gap.compare import Spread, holm, spread, welch

Series = Mapping[str, Mapping[int, float]]
"""Of one run: name of the series to value by step."""

Figures = Mapping[str, Callable[[Series], float | None]]
"""What is computed of a run, by name; None of a run that did not measure it."""

Rows = list[dict[str, Any]]

FEWEST = 3
"""Seeds of an arm that is tested: the spread of two is one difference."""


def read_curves(path: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Run to series to step to value."""
    runs: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run, series, step, value in read_rows(path):
        runs[run][series][step] = value
    return runs


def write_tables(
    results: Path,
    runs: Mapping[str, Series],
    arms: Iterable[str],
    figures: Figures,
    against: str,
    shown: Iterable[str] | None = None,
) -> str:
    """Writes arms.csv and differences.csv; the table of both, in Markdown.

    Args:
        runs: by name, which is ARM-seed-N.
        against: the arm that the others are held against.
        shown: figures that the table has; None: all.
    """
    seeds = {arm: [run for seed in range(1, 100) if (run := f"{arm}-seed-{seed}") in runs] for arm in arms}
    spreads = {
        arm: {
            figure: spread([found for run in names if (found := value(runs[run])) is not None])
            for figure, value in figures.items()
        }
        for arm, names in seeds.items()
        if names
    }
    differences = compared(spreads, against)
    write_rows(results / "arms.csv", arm_rows(spreads))
    write_rows(results / "differences.csv", differences)
    return table(spreads, differences, list(figures if shown is None else shown))


def compared(arms: Mapping[str, Mapping[str, Spread]], against: str) -> Rows:
    """Every other arm against one, in every figure."""
    rows: Rows = []
    for figure, one in arms[against].items():
        of_figure: Rows = []
        for name, figures in arms.items():
            other = figures[figure]
            if name == against or one.mean is None or other.mean is None:
                continue
            test = welch(one, other) if min(one.runs, other.runs) >= FEWEST else None
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


def table(arms: Mapping[str, Mapping[str, Spread]], differences: Rows, names: Sequence[str]) -> str:
    """Arms as rows, figures as columns: mean and standard deviation; * where the adjusted p value is at most 5 %."""
    tested = (row for row in differences if row["adjusted p"] is not None)
    marked = {(row["arm"], row["figure"]) for row in tested if row["adjusted p"] <= 0.05}
    lines = [f"| arm | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for name, figures in arms.items():
        cells = [cell(figures[figure]) + "*" * ((name, figure) in marked) for figure in names]
        lines.append(f"| {name} | {max(one.runs for one in figures.values())} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(one: Spread, digits: int = 3, sign: str = "+") -> str:
    """A mean with its standard deviation, which one run has none of; so many digits behind the point."""
    if one.mean is None:
        return ""
    return f"{one.mean:{sign}.{digits}f}" + ("" if one.sd is None else f" ± {one.sd:.{digits}f}")
