"""The streams that a blend is made of: a source, or each quality bucket of one, with what it may give.

A target, in tokens or epochs, is a weight and a limit: the source's share is in the ratio of the targets, and it gives
its target and no more. A bucket of a source has its part of the source's weight (mixture/quality.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from megatron_cpt.config.blend import DataSettings, SourceSettings
from megatron_cpt.mixture.order import Draw, SourceStream
from megatron_cpt.mixture.shares import decimal, source_of

UNLIMITED = 2**62
"""Stands for the limit of a stream without one; runs are shorter."""

SLACK = 2
"""The order is never two sequences off: a target may be passed by them, unless its share is redistributed."""


@dataclass(frozen=True)
class BlendStream:
    """A stream of text and what the blend has to know of it."""

    name: str
    """Name of the source, or SOURCE.N for bucket N of a source."""
    tokens: int
    """Tokens of one pass over the text."""
    identity: str
    """What is read (TokenStream.identity); empty: names and tokens alone tell streams apart in the fingerprint."""
    once: int
    """Tokens of one pass over what is read: those of a draw where one is repeated, else those of the text."""
    role: str
    """domain or replay."""
    scale: Fraction
    """What the source's weight is multiplied by to give that of the stream."""
    room: int
    """Sequences that it may give to the run."""
    limit: str
    """The setting that limits it, `max_epochs = 4`; empty where none does."""
    target: Fraction | None
    """Tokens that it is to give; None: as many as its share comes to."""
    draw: Draw | None
    """The draws it is read in; None: in epochs."""

    @property
    def for_order(self) -> SourceStream:
        """What the order has to know."""
        return SourceStream(self.name, self.tokens, self.draw)


def blend_streams(
    data: DataSettings,
    stream_tokens: Mapping[str, int],
    identities: Mapping[str, str] | None = None,
    portions: Mapping[str, Fraction] | None = None,
) -> tuple[BlendStream, ...]:
    """The streams of a blend, sources in the order of the configuration.

    Args:
        stream_tokens: tokens of one pass over each stream, by name, the buckets of a source in their order.
        identities: what each stream reads, by name.
        portions: part of its source's weight that each bucket has, by name. Other streams have all of it.
    """
    by_source: dict[str, dict[str, int]] = {name: {} for name in data.sources}
    for name, tokens in stream_tokens.items():
        by_source[source_of(name)][name] = tokens
    streams = []
    for source_name, its_tokens in by_source.items():
        source = data.sources[source_name]
        whole = target_tokens(source, its_tokens)
        draw = _draw(source, data.sequence_length)
        for name, tokens in its_tokens.items():
            scale = (portions or {}).get(name, Fraction(1)) * (whole or 1)
            once = draw.sequences * data.sequence_length if draw and not draw.anew else tokens
            target = scale if whole else None
            room, limit = _room(data, source, once, target)
            identity = (identities or {}).get(name, "")
            streams.append(BlendStream(name, tokens, identity, once, source.role, scale, room, limit, target, draw))
    return tuple(streams)


def _draw(source: SourceSettings, sequence_length: int) -> Draw | None:
    if source.draw is None:
        return None
    return Draw(source.draw.tokens // sequence_length, source.draw.resample == "each_epoch")


def target_tokens(source: SourceSettings, stream_tokens: Mapping[str, int]) -> Fraction | None:
    """Tokens that a source is to give by its target; None where it has none."""
    if source.tokens is not None:
        return Fraction(source.tokens)
    if source.epochs is not None:
        return decimal(source.epochs) * sum(stream_tokens.values())
    if source.quality is not None and source.quality.epochs is not None:
        passes = zip(source.quality.epochs, stream_tokens.values(), strict=True)
        return sum((decimal(epochs) * tokens for epochs, tokens in passes), Fraction(0))
    return None


def _room(data: DataSettings, source: SourceSettings, once: int, target: Fraction | None) -> tuple[int, str]:
    """Sequences that a stream may give, and the setting that says so.

    Args:
        once: tokens of one pass over what it reads.
        target: tokens that it is to give, if it has a target.
    """
    rooms = [(UNLIMITED, "")]
    if source.max_epochs is not None:
        # Rounded down: a limit holds, and a sequence may be many passes over a short source.
        passes = floor(decimal(source.max_epochs) * once / data.sequence_length)
        rooms.append((passes, f"max_epochs = {source.max_epochs:g}"))
    if target is not None:
        spare = 0 if data.when_exhausted == "redistribute" else SLACK
        goal = target / data.sequence_length
        rooms.append((ceil(goal) + spare if spare else floor(goal), _target_setting(source)))
    return min(rooms)


def _target_setting(source: SourceSettings) -> str:
    if source.tokens is not None:
        return f"tokens = {source.tokens}"
    if source.epochs is not None:
        return f"epochs = {source.epochs:g}"
    return f"quality.epochs = {source.quality and source.quality.epochs}"
