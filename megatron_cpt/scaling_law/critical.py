"""The critical mixture ratio (arXiv:2407.17467): the most new data with which the general loss comes back in time."""

from collections.abc import Sequence

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.budgets import critical_mixture_share
from megatron_cpt.scaling_law.parameters import Law, Model, Parameter
from megatron_cpt.scaling_law.table import Table

CRITICAL = "critical-ratio"
"""As users type it."""
TOLERANCE = 0.05
"""Nats that the general loss may end above its start (epsilon of arXiv:2407.17467)."""
TOKENS_UNIT = 0.2e9
"""Tokens in one unit of T, as the printed constants have it."""


def critical_shares(table: Table, tolerance: float = TOLERANCE) -> Table:
    """For each number of tokens, the largest share of new data with a loss of at most start + tolerance.

    A straight line between the two measured shares about it. Numbers of tokens at which all or no shares hold the bound
    are left out: there the critical share lies outside of what was run. The losses of the table returned are shares.

    Raises BadInput where no start was measured, or fewer than three numbers of tokens are left.
    """
    replay, tokens = table.column("replay_ratio"), table.column("tokens")
    if not np.isfinite(table.starts).all():
        raise BadInput(Fault(f"start:{table.name}", "is not known.", "Give the loss before the first update."))
    excess = table.losses - table.starts - tolerance
    found = []
    for count in np.unique(tokens):
        rows = np.flatnonzero(tokens == count)
        shares, over = _means(1 - replay[rows], excess[rows])
        crossing = np.flatnonzero((over[:-1] <= 0) & (over[1:] > 0))
        if len(crossing):
            last = crossing[-1]
            found.append((count, float(np.interp(0.0, over[last : last + 2], shares[last : last + 2]))))
    if len(found) < 3:
        rule = f"{len(found)} numbers of tokens have a critical share between those that were run."
        raise BadInput(Fault(table.name, rule, "Run lengths and ratios about it: three numbers of tokens are needed."))
    lengths, critical = np.array(found).T
    return Table(table.name, critical, np.full(len(found), np.nan), {"tokens": lengths},
                 tuple(f"{count:g} tokens" for count in lengths))  # fmt: skip


def _means(shares: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares in order, each once, and the mean of their values."""
    unique = np.unique(shares)
    return unique, np.array([values[shares == share].mean() for share in unique])


def _unclipped(rows: Table) -> Model:
    length = rows.column("tokens") / TOKENS_UNIT
    return lambda values: values[0] * length ** values[1] + values[2]


def _clipped(rows: Table) -> Model:
    length = rows.column("tokens") / TOKENS_UNIT
    return lambda values: critical_mixture_share(length, *np.real(values))


def _held(_: Sequence[Table]) -> dict[str, float]:
    return {}


CRITICAL_RATIO: Law[Table] = Law(
    CRITICAL,
    (
        Parameter("amplitude", -1e6, 1e6, linear=True),
        Parameter("exponent", -3.0, 3.0, (-1.0, 1.0)),
        Parameter("offset", -1e3, 1e3, linear=True),
    ),
    exact=_clipped,
    quick=_unclipped,
    held=_held,
)
