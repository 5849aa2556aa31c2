"""How values are spread, as lines of text."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

BINS = 12
WIDTH = 40
"""Characters of the longest bar."""
SPREAD = 20
"""Positive values whose largest is so many times their median are binned by their logarithms."""


def histogram_lines(values: npt.NDArray[np.generic]) -> list[str]:
    """A line for each bin: where it begins and ends, how many values are in it, and a bar.

    Values that are not finite have no bin; they are counted in a last line.
    """
    finite = np.asarray(values[np.isfinite(values)], np.float64)
    if len(finite) == 0:
        return ["no values"]
    edges = _edges(finite)
    counts = np.histogram(finite, edges)[0]
    spans = [f"{_short(low)} to {_short(high)}" for low, high in pairwise(edges)]
    widths = max(map(len, spans)), len(f"{counts.max():,}")
    lines = [
        f"{span:<{widths[0]}} {count:>{widths[1]},} {'#' * int(np.ceil(WIDTH * count / counts.max()))}".rstrip()
        for span, count in zip(spans, counts.tolist(), strict=True)
    ]
    odd = len(values) - len(finite)
    return [*lines, f"not finite: {odd:,}"] if odd else lines


def _edges(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lowest, highest = float(values.min()), float(values.max())
    if lowest == highest:
        return np.array([lowest, highest])
    if lowest > 0 and highest > SPREAD * float(np.median(values)):
        edges = np.geomspace(lowest, highest, BINS + 1)
    else:
        edges = np.linspace(lowest, highest, BINS + 1)
    # Rounded on the way, they would leave out the values at the ends.
    edges[0], edges[-1] = lowest, highest
    return edges


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
