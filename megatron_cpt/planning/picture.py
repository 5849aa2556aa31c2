"""The share of each source over the run, as a small picture of text."""

from collections.abc import Sequence

import numpy as np

from megatron_cpt.mixture.plan import BlendPlan
from megatron_cpt.planning.text import percent

WIDTH = 48
"""Columns of the picture: stretches of the run of the same length."""
ROWS_SHOWN = 12
"""With more sources, those that give most are shown and the rest together."""
BARS = " ▁▂▃▄▅▆▇█"


def picture_lines(blend: BlendPlan, first_sequence: int = 0) -> list[str]:
    """A row a source: its share of each stretch of the run as a bar, and the first and the last of these shares.

    A full bar is the whole stretch. Shares are counted from the order, so that what is shown is what is read.
    """
    left = blend.total_sequences - first_sequence
    columns = min(WIDTH, left)
    edges = [first_sequence + left * column // columns for column in range(columns + 1)]
    counts = np.stack([blend.order.counts(edge) for edge in edges])
    shares = np.diff(counts, axis=0).T / np.diff(edges)
    names, rows = _most(blend.sources, shares, counts[-1] - counts[0])
    width = max(map(len, names))
    return [
        f"{name.ljust(width)}  |{''.join(_bar(share) for share in row)}|  {percent(row[0]):>8} to {percent(row[-1])}"
        for name, row in zip(names, rows, strict=True)
    ]


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
