"""The best mixture by fitted laws of tables of final losses."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from megatron_cpt.mixture.blend import effective_unique_tokens
from megatron_cpt.scaling_law.tables import SHARE, Table, TableFits
from megatron_cpt.scaling_law.uncertainty import band

GRID = 101
"""Mixtures of two that are tried, over the fitted range."""
_MIXTURES = 4000
"""Mixtures of three sources or more that are tried, drawn evenly over all that add up to 1."""


@dataclass(frozen=True)
class MixtureOutcome:
    """What the laws say of one mixture; nats per token."""

    columns: dict[str, float]
    """The mixture, as a row of a table."""
    losses: dict[str, tuple[float, float, float]]
    """By set: the loss and its 95 % band."""
    objective: float
    """The weighted sum of losses that is made small."""
    broken: tuple[str, ...]
    """Sets whose rise is above its bound."""
    unsure: tuple[str, ...]
    """Sets whose rise is within its bound while the upper end of the band is above it."""


def ranked_mixtures(
    fits: TableFits,
    given: Mapping[str, float],
    weights: Mapping[str, float],
    bounds: Mapping[str, float],
    domain_tokens: float | None = None,
) -> list[MixtureOutcome]:
    """All mixtures, the best first: those within all bounds, by their weighted sum of losses.

    Args:
        given: `tokens` and `model_size`, where the law is of them.
        weights: of the final losses, by set.
        bounds: most that a set may rise above its start, nats, by set.
        domain_tokens: unique tokens of new data: read more often they count as fewer (arXiv:2305.16264).
    """
    table = _mixtures(fits, given, domain_tokens)
    bands = {name: band(fit, table) for name, fit in fits.fits.items()}
    outcomes = []
    for row in range(len(table.losses)):
        losses = {name: (float(b.middle[row]), float(b.low[row]), float(b.high[row])) for name, b in bands.items()}
        starts = fits.starts
        broken = tuple(name for name, most in bounds.items() if losses[name][0] - (starts[name] or 0.0) > most)
        unsure = tuple(
            name for name, most in bounds.items()
            if name not in broken and losses[name][2] - (starts[name] or 0.0) > most
        )  # fmt: skip
        columns = {name: float(values[row]) for name, values in table.columns.items()} | dict(given)
        objective = sum(weight * losses[name][0] for name, weight in weights.items())
        outcomes.append(MixtureOutcome(columns, losses, objective, broken, unsure))

    def order(outcome: MixtureOutcome) -> tuple[float, float]:
        excess = sum(outcome.losses[n][0] - (fits.starts[n] or 0.0) - bounds[n] for n in outcome.broken)
        return (excess if outcome.broken else -np.inf, outcome.objective)

    return sorted(outcomes, key=order)


def _mixtures(fits: TableFits, given: Mapping[str, float], domain_tokens: float | None) -> Table:
    """The mixtures that are tried, as a table without losses."""
    if len(fits.sources) > 2:
        drawn = np.random.default_rng(0).dirichlet(np.ones(len(fits.sources)), _MIXTURES)
        columns = {SHARE + name: drawn[:, position] for position, name in enumerate(fits.sources)}
    elif fits.sources and SHARE + fits.sources[0] in fits.fitted:
        first = np.linspace(*fits.fitted[SHARE + fits.sources[0]], GRID)
        columns = {SHARE + fits.sources[0]: first, SHARE + fits.sources[1]: 1 - first}
    else:
        columns = {"replay_ratio": np.unique(np.linspace(*fits.fitted["replay_ratio"], GRID))}
    count = len(next(iter(columns.values())))
    for name, value in given.items():
        columns[name] = np.full(count, value)
    if domain_tokens is not None and "tokens" in given and "replay_ratio" in columns:
        new = given["tokens"] * (1 - columns["replay_ratio"])
        worth = np.array([effective_unique_tokens(int(domain_tokens), int(read)) for read in new])
        columns["tokens"] = columns["tokens"] - new + worth
    nothing = np.full(count, np.nan)
    return Table("mixtures", nothing, nothing, columns, tuple(str(number) for number in range(count)))
