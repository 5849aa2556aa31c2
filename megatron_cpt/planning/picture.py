"""The share of each source over the run, as a small picture of text."""

from collections.abc import Sequence

import numpy as np

from megatron_cpt.mixture.plan import BlendPlan
from megatron_cpt.planning.text import percent

WIDTH = 48
"""Columns of the picture at most: stretches of the run of the same length."""
LEAST_SEQUENCES = 8
"""Of a column: the share of a stretch of one sequence is all or nothing."""
ROWS_SHOWN = 12
"""With more sources, those that give most are shown and the rest together."""
BARS = " ▁▂▃▄▅▆▇█"


def picture_lines(blend: BlendPlan, first_sequence: int = 0) -> list[str]:
    """A row a source: its share of each stretch of the run as a bar, and the share due to it at the beginning and,
    where that differs, at the end.

    A full bar is the whole stretch. Bars are counted from the order, so that what is shown is what is read.
    """
    left = blend.total_sequences - first_sequence
    columns = min(WIDTH, max(1, left // LEAST_SEQUENCES))
    edges = [first_sequence + left * column // columns for column in range(columns + 1)]
    counts = np.stack([blend.order.counts(edge) for edge in edges])
    shares = np.diff(counts, axis=0).T / np.diff(edges)
    begun = [phase for phase in blend.phases if phase.first_sequence <= first_sequence]
    due = np.array([begun[-1].shares, blend.phases[-1].shares], np.float64).T
    names, rows = _most(blend.sources, np.hstack([shares, due]), counts[-1] - counts[0])
    width = max(map(len, names))
    return [
        f"{name.ljust(width)}  |{''.join(_bar(share) for share in row[:-2])}|  {_from_to(*row[-2:])}"
        for name, row in zip(names, rows, strict=True)
    ]


def _from_to(first: float, last: float) -> str:
    first_words, last_words = percent(first), percent(last)
    return f"{first_words:>8}" + ("" if first_words == last_words else f" to {last_words}")


def _bar(share: float) -> str:
    """Eighths of the full height; a source that gives anything is seen."""
    return BARS[max(1, round(8 * share)) if share > 0 else 0]


def _most(names: Sequence[str], shares: np.ndarray, counts: np.ndarray) -> tuple[list[str], list[list[float]]]:
    """The sources that give most, in the order of the configuration, and the others as one row."""
    if len(names) <= ROWS_SHOWN:
        return list(names), shares.tolist()
    shown = np.sort(np.argsort(-counts, kind="stable")[: ROWS_SHOWN - 1])
    rest = np.delete(shares, shown, axis=0)
    labels = [*(names[number] for number in shown), f"{len(rest)} others"]
    return labels, [*shares[shown].tolist(), rest.sum(0).tolist()]
