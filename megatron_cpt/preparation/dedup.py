"""Which documents are exact copies of an earlier one, with memory for one range of the hashes.

Every run has a table of its documents sorted by content hash (sorted_run.py). Range by range of hashes, one
stretch of every table is read; of equal hashes all but the first in the order read are copies.

Two texts are taken for copies where their 64-bit hashes agree: among a thousand million documents the
chance that any two different ones do is 3 %.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_cpt.preparation.sorted_run import SortedRun

RANGE_DOCUMENTS = 1 << 21
"""Documents that are compared at a time, about: 100 MB."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A document that repeats an earlier one."""

    content_hash: int
    """Of both."""
    run: int
    """Number of its run."""
    position: int
    """Its place among the records of the run."""
    first_run: int
    """Run of the document it repeats."""
    first_position: int
    """Position of that document."""


def copies(runs: Sequence[SortedRun]) -> Iterator[Copy]:
    """Every copy among runs given in the order read, in the order of content hashes and, within one, of reading."""
    documents = sum(run.documents for run in runs)
    if documents == 0:
        return
    bits = (documents // RANGE_DOCUMENTS).bit_length()
    for number in range(1 << bits):
        yield from _copies_between(runs, number << (64 - bits), ((number + 1) << (64 - bits)) - 1)


def _copies_between(runs: Sequence[SortedRun], low: int, high: int) -> Iterator[Copy]:
    """The copies among hashes from `low` to `high`, both included."""
    stretches = []
    for run in runs:
        table = run.by_hash()
        hashes = table["content_hash"]
        first = int(np.searchsorted(hashes, np.uint64(low), side="left"))
        end = int(np.searchsorted(hashes, np.uint64(high), side="right"))
        stretches.append(np.array(table[first:end]))
    entries = np.concatenate(stretches)
    owners = np.repeat(np.arange(len(runs)), [len(stretch) for stretch in stretches])
    # Runs are in the order read and each stretch by place within a hash: a stable sort keeps the first one first.
    order = np.argsort(entries["content_hash"], kind="stable")
    hashes = entries["content_hash"][order]
    repeats = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    firsts = order[np.searchsorted(hashes, hashes[repeats])]
    for again, first in zip(order[repeats], firsts, strict=True):
        yield Copy(
            int(entries["content_hash"][again]),
            int(owners[again]),
            int(entries["position"][again]),
            int(owners[first]),
            int(entries["position"][first]),
        )
