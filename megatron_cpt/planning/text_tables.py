"""Tables and small charts as plain text."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from megatron_cpt.config.units import short_count
from megatron_cpt.mixture.blend import BlendPlan

_WIDTH = 48
"""Columns of the picture at most: stretches of the run of the same length."""
_LEAST_SEQUENCES = 8
"""Of a column: the share of a stretch of one sequence is all or nothing."""
_ROWS_SHOWN = 12
"""With more sources, those that give most are shown and the rest together."""
_BARS = " ▁▂▃▄▅▆▇█"


def picture_lines(blend: BlendPlan, first_sequence: int = 0) -> list[str]:
    """A row a source: its share of each stretch of the run as a bar, and the share due to it at the beginning and,
    where that differs, at the end.

    A full bar is the whole stretch. Bars are counted from the order, so that what is shown is what is read.
    """
    left = blend.total_sequences - first_sequence
    columns = min(_WIDTH, max(1, left // _LEAST_SEQUENCES))
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
    return _BARS[max(1, round(8 * share)) if share > 0 else 0]


def _most(names: Sequence[str], shares: np.ndarray, counts: np.ndarray) -> tuple[list[str], list[list[float]]]:
    """The sources that give most, in the order of the configuration, and the others as one row."""
    if len(names) <= _ROWS_SHOWN:
        return list(names), shares.tolist()
    shown = np.sort(np.argsort(-counts, kind="stable")[: _ROWS_SHOWN - 1])
    rest = np.delete(shares, shown, axis=0)
    labels = [*(names[number] for number in shown), f"{len(rest)} others"]
    return labels, [*shares[shown].tolist(), rest.sum(0).tolist()]


_SOURCES_SHOWN = 6
"""With more sources the table has a column for each role."""

_PHASES_SHOWN = 20
"""A longer list is shown by its beginning; plan.json has all of it."""


def phase_lines(blend: BlendPlan, first_sequence: int = 0) -> list[str]:
    """A heading and a line for each phase that is not over before a sequence.

    It says where it begins, what it gives to whom and which sources are exhausted.
    """
    labels = blend.sources if len(blend.sources) <= _SOURCES_SHOWN else blend.roles
    names = tuple(dict.fromkeys(labels))
    rows = []
    over = sum(phase.first_sequence <= first_sequence for phase in blend.phases[1:])
    phases = blend.phases[over:]
    for phase in phases[:_PHASES_SHOWN]:
        given = dict.fromkeys(names, Fraction(0))
        for label, share in zip(labels, phase.shares, strict=True):
            given[label] += share
        tokens = short_count(phase.first_sequence * blend.order.sequence_length)
        rows.append([tokens, *(percent(float(share)) for share in given.values()), ", ".join(phase.exhausted)])
    lines = columns([["from tokens", *names, "at max_epochs"], *rows], "r" * (len(names) + 1) + "l")
    hidden = len(phases) - _PHASES_SHOWN
    return [*lines, f"... and {hidden} more"] if hidden > 0 else lines


def percent(share: float) -> str:
    """A share in per cent: 29.97 %."""
    return f"{100 * share:.2f} %"


def size(count: float) -> str:
    """Bytes in the binary unit that suits: 1.50 GiB."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 2**10:.2f} KiB"


def columns(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Lines of aligned columns; `sides` has an `l` or an `r` for each, rows[0] is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]
