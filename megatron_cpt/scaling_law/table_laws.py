"""The laws of final losses over mixture, tokens and size as fit.py takes them.

Tokens and sizes are in billions. What a table does not vary is held: it is then part of the other terms.
"""

from collections.abc import Sequence

import numpy as np

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.scaling_law.budgets import domain_pretraining_law, forgetting_law, mixing_law
from megatron_cpt.scaling_law.parameters import FLOOR, Law, Model, Parameter
from megatron_cpt.scaling_law.table import Table

BILLION = 1e9
HELD_EXPONENT = 0.3
"""Of tokens or sizes that a table does not vary."""
SHARE_TOLERANCE = 2e-3
"""By which shares may fail to add up to 1: they are printed rounded."""
D_CPT, FORGETTING, MIXING = "d-cpt", "forgetting", "mixing"
TABLE_LAWS = (D_CPT, FORGETTING, MIXING)
"""As users type them."""


def table_law(name: str, table: Table) -> Law[Table]:
    """The law of that name for a table. Raises BadInput where the table lacks what the law is of, or a loss."""
    if not np.isfinite(table.losses).all():
        raise BadInput(Fault(f"loss:{table.name}", "is missing in some rows.", "Leave these rows out."))
    if name == MIXING:
        return mixing(tuple(table.shares))
    table.column("replay_ratio")
    table.column("tokens")
    if name == FORGETTING:
        return forgetting(float(np.nanmean(table.starts)) if np.isfinite(table.starts).any() else None)
    return domain_pretraining(own_is_replay=falls_with_replay(table))


def falls_with_replay(table: Table) -> bool:
    """Whether the losses are lower the more replay there is: a general set's own data is the replay."""
    replay = table.column("replay_ratio")
    return len(replay) > 1 and float(np.cov(replay, table.losses)[0, 1]) < 0


def domain_pretraining(own_is_replay: bool) -> Law[Table]:
    """The D-CPT law (arXiv:2406.01375); its share is that of a set's own data, replay or the rest."""

    def model(rows: Table) -> Model:
        replay = rows.column("replay_ratio")
        share = replay if own_is_replay else 1 - replay
        tokens, size = rows.column("tokens") / BILLION, _size(rows)
        return lambda values: domain_pretraining_law(size, tokens, share, *values)

    def held(tables: Sequence[Table]) -> dict[str, float]:
        sizes = {} if _varies(tables, "model_size") else {"size_amplitude": 0.0, "size_exponent": HELD_EXPONENT}
        return sizes if _varies(tables, "tokens") else sizes | {"token_exponent": HELD_EXPONENT}

    parameters = (
        FLOOR,
        Parameter("size_amplitude", 0.0, 1e4, linear=True),
        Parameter("size_exponent", 0.01, 2.0, (0.1, 1.0), logarithmic=True),
        Parameter("token_amplitude", 0.0, 1e4, linear=True),
        Parameter("share_power", 0.0, 5.0, (0.0, 1.0)),
        Parameter("token_exponent", 0.01, 2.0, (0.1, 1.0), logarithmic=True),
        Parameter("share_amplitude", 0.0, 1e3, linear=True),
        Parameter("share_offset", 1e-4, 2.0, (1e-3, 1.0), logarithmic=True),
        Parameter("share_exponent", 0.01, 5.0, (0.1, 2.0), logarithmic=True),
    )
    return Law(D_CPT, parameters, model, model, held)


def forgetting(start: float | None) -> Law[Table]:
    """Forgetting with injection (arXiv:2502.06042): the loss on the old data; D is the tokens of the new data.

    `start` is L0, the loss before the first update, nats; None: it is fitted.
    """

    def model(rows: Table) -> Model:
        replay = rows.column("replay_ratio")
        tokens, size = rows.column("tokens") * (1 - replay) / BILLION, _size(rows)
        return lambda values: forgetting_law(size, tokens, replay, *values)

    parameters = (
        Parameter("start", 0.0, 20.0, linear=True),
        Parameter("amplitude", 0.0, 1e4, linear=True),
        Parameter("exponent", 0.0, 2.0, (0.05, 1.0)),
        Parameter("injection_gain", 1e-2, 1e6, (1.0, 1e4), logarithmic=True),
        Parameter("size_exponent", 0.01, 3.0, (0.05, 1.0), logarithmic=True),
    )
    return Law(FORGETTING, parameters, model, model, lambda _: {} if start is None else {"start": start})


def mixing(sources: tuple[str, ...]) -> Law[Table]:
    """The data mixing law (arXiv:2403.16952); shares add up to 1, so the first source's slope is 0."""
    if len(sources) < 2:
        raise BadInput(Fault(", ".join(sources) or "the table", "is no mixture.", "Give rows of two sources or more."))

    def model(rows: Table) -> Model:
        shares = np.stack([rows.shares.get(name, np.zeros(len(rows.losses))) for name in sources], axis=1)
        if np.any(np.abs(shares.sum(axis=1) - 1) > SHARE_TOLERANCE):
            row = rows.rows[int(np.argmax(np.abs(shares.sum(axis=1) - 1)))]
            rule = f"gives shares of {', '.join(sources)} that do not add up to 1."
            raise BadInput(Fault(f"{rows.name}, {row}", rule, "Give a share:SOURCE column of each."))
        return lambda values: mixing_law(shares, values[0], values[1], np.append(0.0, values[2:]))

    slopes = (Parameter(f"slope:{name}", -200.0, 200.0, (-8.0, 8.0)) for name in sources[1:])
    parameters = (FLOOR, Parameter("scale", -20.0, 20.0, linear=True), *slopes)
    return Law(MIXING, parameters, model, model, lambda _: {})


def _size(rows: Table) -> np.ndarray:
    return rows.columns.get("model_size", np.full(len(rows.losses), BILLION)) / BILLION


def _varies(tables: Sequence[Table], name: str) -> bool:
    return len(np.unique(np.concatenate([table.columns.get(name, np.ones(1)) for table in tables]))) > 1
