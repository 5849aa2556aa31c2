"""What a blend may not do: read nothing, draw more than there is, or read a stream more often than it may be read."""

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, floor

import numpy as np

from megatron_cpt.config.batches import Batches
from megatron_cpt.config.blend import DataSettings
from megatron_cpt.config.errors import Fault
from megatron_cpt.mixture.order import SampleOrder
from megatron_cpt.mixture.shares import source_of
from megatron_cpt.mixture.streams import UNLIMITED, BlendStream


def empty_faults(data: DataSettings, streams: Sequence[BlendStream]) -> list[Fault]:
    """Streams that are to be read and hold nothing, or less than a draw."""
    blends = [data.in_phase(phase).sources for phase in data.phases] or [data.sources]
    faults = []
    for stream in streams:
        source = source_of(stream.name)
        if not stream.scale or not any(blend[source].weight for blend in blends):
            continue
        if not stream.tokens and stream.name == source:
            remedy = "Prepare them from documents with text, or take the source out."
            faults.append(Fault(f"data.sources.{source}", "its datasets hold no tokens.", remedy))
        elif not stream.tokens:
            remedy = "Give it 0, or draw the bounds of the buckets wider."
            rule = f"bucket {stream.name.removeprefix(f'{source}.')} is to give tokens and holds no document."
            faults.append(Fault(f"data.sources.{source}.quality", rule, remedy))
        elif stream.draw and stream.draw.sequences > stream.tokens // data.sequence_length:
            shown = f"data.sources.{source}.draw.tokens = {stream.draw.sequences * data.sequence_length}"
            faults.append(Fault(shown, f"the source has {stream.tokens:,} tokens.", "Draw less, or take `draw` out."))
    return faults


def longest(order: SampleOrder, streams: Sequence[BlendStream], total_sequences: int) -> int:
    """The longest prefix of the order, up to a length, in which no stream gives more than it may."""
    rooms = np.array([stream.room for stream in streams], np.int64)
    lengths = range(total_sequences + 1)
    return bisect_right(lengths, False, key=lambda length: bool(np.any(order.counts(length) > rooms))) - 1


def stopped_at_once(streams: Sequence[BlendStream], sequences: int) -> list[Fault]:
    """A run that would end before its first step."""
    if sequences:
        return []
    limited = ", ".join(f"{stream.name}: {stream.limit}" for stream in streams if stream.room < UNLIMITED)
    rule = f"a source ({limited}) is exhausted within the first step."
    return [Fault("data.when_exhausted = stop", rule, "Raise its limit, or add text to it.")]


def repetition_faults(
    order: SampleOrder, streams: Sequence[BlendStream], total_sequences: int, batches: Batches
) -> list[Fault]:
    """Every stream that is read more often than it may be, with the numbers and the ways out."""
    return [
        _repetition_fault(order, streams[number], number, count, total_sequences, batches)
        for number, count in enumerate(order.counts(total_sequences).tolist())
        if count > streams[number].room
    ]


def _repetition_fault(
    order: SampleOrder, stream: BlendStream, number: int, count: int, total_sequences: int, batches: Batches
) -> Fault:
    lengths = range(total_sequences + 1)
    most = bisect_right(lengths, stream.room, key=lambda sequences: int(order.counts(sequences)[number])) - 1
    tokens = batches.last_end(most) * order.sequence_length
    shorter = f"Train on at most {tokens:,} tokens; or, " if tokens else "Train on fewer tokens; or, "
    share = floor(10_000 * stream.room / total_sequences) / 100
    epochs = count * order.sequence_length / stream.once
    name, _, value = stream.limit.partition(" = ")
    enough = f"to {ceil(100 * epochs) / 100:g}" if name in ("max_epochs", "epochs") else "further"
    bucket = "" if stream.name == source_of(stream.name) else f" ({stream.name})"
    if not stream.room:
        least = order.sequence_length / stream.once
        return Fault(
            f"data.sources.{source_of(stream.name)}.{name} = {value}",
            f"one sequence of {order.sequence_length:,} tokens is {least:.2f} passes over this source of "
            f"{stream.once:,} tokens{bucket}.",
            "Join it with another source (list its paths there), take it out, set data.when_exhausted, or raise "
            f"{name} to {ceil(100 * least) / 100:g}.",
        )
    return Fault(
        f"data.sources.{source_of(stream.name)}.{name} = {value}",
        f"this run reads {count * order.sequence_length:,} tokens of a source of {stream.once:,}{bucket}, "
        f"{epochs:.2f} epochs.",
        f"{shorter}in a run as long as this, give it at most {share:.2f} % of the tokens (now "
        f"{100 * count / total_sequences:.2f} %) by weight or data.replay_ratio; or set data.when_exhausted; or raise "
        f"{name} {enough}, or add text to the source.",
    )
