"""From weights and replay ratio, as users write them, to the integer weights of the order.

A float counts as the decimal number that it prints as (0.3 is 3/10), so that shares are exact fractions
and the integers the same on every machine.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

from megatron_cpt.config.blend import DataSettings
from megatron_cpt.mixture.weight_tree import LARGEST_WEIGHT_SUM


def due_shares(data: DataSettings) -> dict[str, Fraction]:
    """Each source's exact share of the training tokens, by name; they sum to 1.

    Raises ValueError where a role is to give tokens and has no weight; config/faults.py has told the user.
    """
    shares: dict[str, Fraction] = {}
    for role, ratio in _role_shares(data).items():
        members = {name: source for name, source in data.sources.items() if role in (None, source.role)}
        total = sum(decimal(source.weight) for source in members.values())
        if ratio and not total:
            raise ValueError(f"{role or 'all'} sources are to give {ratio} of the tokens and have no weight")
        shares |= {name: ratio * decimal(source.weight) / (total or 1) for name, source in members.items()}
    return {name: shares[name] for name in data.sources}


def integer_weights(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest whole numbers in the ratio of the shares, in their order.

    Where these would sum to more than the order's 2^30, the nearest that sum to about 2^29, and at least 1
    for a source that is read: its share is then off by less than 1e-8.
    """
    scale = lcm(*(share.denominator for share in shares))
    weights = [int(share * scale) for share in shares]
    common = gcd(*weights)
    if sum(weights) // common <= LARGEST_WEIGHT_SUM:
        return tuple(weight // common for weight in weights)
    return tuple(max(1, round(share * (LARGEST_WEIGHT_SUM // 2))) if share else 0 for share in shares)


def decimal(number: float) -> Fraction:
    """The fraction that the shortest decimal text of a float names."""
    return Fraction(repr(float(number)))


def _role_shares(data: DataSettings) -> dict[str | None, Fraction]:
    """The share of each role; without a replay ratio, of all sources together (None)."""
    if data.replay_ratio is None:
        return {None: Fraction(1)}
    replay = decimal(data.replay_ratio)
    return {"domain": 1 - replay, "replay": replay}
