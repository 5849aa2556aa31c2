"""The phases of a run: those of the configuration, and those that begin where a source is exhausted.

A source is exhausted once it has given all sequences that begin within its `max_epochs` passes. Where its share
is to be redistributed, a phase begins at exactly that index of the run, in which the source has no weight and its
share is divided among the others of its role; `due_shares` of what is left gives that, so that the replay ratio
holds before and after. Phases depend on what came before them alone: a longer run or a phase appended later changes
none of them.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import numpy as np

from megatron_cpt.config.blend import DataSettings, PhaseSettings
from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.units import Duration
from megatron_cpt.mixture.shares import decimal, due_shares, integer_weights
from megatron_cpt.mixture.weight_tree import Integers, WeightTree

UNLIMITED = 2**62
"""Stands for the limit of a source without `max_epochs`; runs are shorter."""


@dataclass(frozen=True)
class BlendPhase:
    """A stretch of the run with one blend."""

    first_sequence: int
    """Index of its first sequence; it lasts until the next phase begins."""
    shares: tuple[Fraction, ...]
    """Share of its sequences due to each source, in the order of the sources; they sum to 1."""
    exhausted: tuple[str, ...] = ()
    """Sources that are no longer read, because they have reached their `max_epochs`."""


def allowed_sequences(data: DataSettings, stream_tokens: Mapping[str, int]) -> Integers:
    """Sequences that begin within `max_epochs` passes over each source, shape [sources]."""
    return np.array(
        [
            UNLIMITED
            if source.max_epochs is None
            else min(UNLIMITED, ceil(decimal(source.max_epochs) * stream_tokens[name] / data.sequence_length))
            for name, source in data.sources.items()
        ],
        np.int64,
    )


def configured_phases(data: DataSettings, step_sequences: int) -> list[BlendPhase]:
    """The phases that the configuration names; one where it names none.

    Args:
        step_sequences: sequences of an optimizer step.
    """
    return [BlendPhase(first, tuple(due_shares(settings).values())) for first, settings in _spans(data, step_sequences)]


def redistributed_phases(
    data: DataSettings, stream_tokens: Mapping[str, int], total_sequences: int, step_sequences: int
) -> list[BlendPhase]:
    """The phases of a run of `total_sequences` in which exhausted sources leave their share to others.

    Raises BadInput where nothing is left to take over a share: all sources of a role are exhausted.
    """
    allowed, names = allowed_sequences(data, stream_tokens), list(data.sources)
    spans = [span for span in _spans(data, step_sequences) if span[0] < total_sequences] or [(0, data)]
    given = np.zeros(len(names), np.int64)
    phases: list[BlendPhase] = []
    for (first, settings), end in zip(spans, [*(first for first, _ in spans[1:]), total_sequences], strict=True):
        while first < end:
            exhausted = frozenset(names[number] for number in np.flatnonzero(given >= allowed))
            left = _without(settings, exhausted)
            role = _role_without_sources(left)
            if role is not None:
                raise BadInput(_nothing_left(role, first, step_sequences, data.sequence_length))
            shares = tuple(due_shares(left).values())
            out = tuple(name for name in names if name in exhausted and settings.sources[name].weight)
            phases.append(BlendPhase(first, shares, out))
            tree = WeightTree(integer_weights(shares), names)
            length = _until_exhausted(tree, allowed - given, shares, end - first)
            given += tree.counts(length)
            first += length
    return phases


def _spans(data: DataSettings, step_sequences: int) -> list[tuple[int, DataSettings]]:
    """The first sequence of each configured phase, and the settings that hold in it."""
    phases = data.phases or [PhaseSettings(from_tokens=Duration(0))]
    tokens_per_step = step_sequences * data.sequence_length
    return [(phase.first_step(tokens_per_step) * step_sequences, data.in_phase(phase)) for phase in phases]


def _without(data: DataSettings, exhausted: frozenset[str]) -> DataSettings:
    """The settings once some sources are no longer read."""
    if not exhausted:
        return data
    sources = {
        name: replace(source, weight=0.0) if name in exhausted else source for name, source in data.sources.items()
    }
    return replace(data, sources=sources)


def _role_without_sources(data: DataSettings) -> str | None:
    """A role (or `all`) that is to give tokens and has no source left to give them."""
    weighted = {source.role for source in data.sources.values() if source.weight}
    if data.replay_ratio is None:
        return None if weighted else "all"
    for role, share in (("domain", 1 - data.replay_ratio), ("replay", data.replay_ratio)):
        if share and role not in weighted:
            return role
    return None


def _until_exhausted(tree: WeightTree, room: Integers, shares: Sequence[Fraction], limit: int) -> int:
    """Sequences of a phase until the first source that is read in it has filled its room; `limit` if none does."""
    read = np.array([share > 0 for share in shares])
    return bisect_left(range(limit), True, key=lambda length: bool(np.any((tree.counts(length) >= room) & read)))


def _nothing_left(role: str, first: int, step_sequences: int, sequence_length: int) -> Fault:
    whose = "every source" if role == "all" else f"every source of role `{role}`"
    tokens = first // step_sequences * step_sequences * sequence_length
    shorter = f"Train on at most {tokens:,} tokens, " if tokens else ""
    return Fault(
        "data.when_exhausted = redistribute",
        f"after {first * sequence_length:,} tokens {whose} has reached its max_epochs, and nothing is left to take "
        "over its share.",
        f"{shorter}{'raise' if shorter else 'Raise'} max_epochs, or give the role another source.",
    )
