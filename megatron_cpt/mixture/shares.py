"""From weights and replay ratio, as users write them, to the integer weights of the order.

A float counts as the decimal number that it prints as (0.3 is 3/10), so that shares are exact fractions
and the integers the same on every machine.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm

from megatron_cpt.config.blend import DataSettings
from megatron_cpt.mixture.weight_tree import LARGEST_WEIGHT_SUM


def due_shares(data: DataSettings, scales: Mapping[str, Fraction] | None = None) -> dict[str, Fraction]:
    """Each stream's exact share of the training tokens, by name; they sum to 1.

    Args:
        scales: what the weight of its source is multiplied by for each stream, by the stream's name. None: the
            streams are the sources.

    Raises ValueError where a role is to give tokens and has no weight; config/blend_faults.py has told the user.
    """
    weights = {
        name: decimal(data.sources[source_of(name)].weight) * scale
        for name, scale in (scales or dict.fromkeys(data.sources, Fraction(1))).items()
    }
    shares: dict[str, Fraction] = {}
    for role, ratio in _role_shares(data).items():
        members = [name for name in weights if role in (None, data.sources[source_of(name)].role)]
        total = sum(weights[name] for name in members)
        if ratio and not total:
            raise ValueError(f"{role or 'all'} sources are to give {ratio} of the tokens and have no weight")
        shares |= {name: ratio * weights[name] / (total or 1) for name in members}
    return {name: shares[name] for name in weights}


def source_of(stream: str) -> str:
    """The source of a stream: names of sources have no dots, buckets of a source are named SOURCE.N."""
    return stream.partition(".")[0]


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
