"""Sequences served by the loader, and what a rank of a very long run computes."""

import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blend_starts import Clock

from megatron_cpt.corpus.indexed import IndexedWriter, bin_path
from megatron_cpt.corpus.manifest import Manifest, write_manifest
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.data.loader import Slots, TrainingData, rank_indices
from megatron_cpt.mixture.order import Phase, SampleOrder, SourceStream
from megatron_cpt.mixture.phases import integer_weights

SOURCES = 16
DOCUMENTS = 2048
LENGTH = 4096
BATCH = 64
BATCHES = 128
SEED = 1


def write_text(folder: Path) -> int:
    """SOURCES datasets of DOCUMENTS random documents of LENGTH tokens, on disk; returns how many datasets."""
    drawn = np.random.default_rng(SEED)
    for number in range(SOURCES):
        prefix = folder / f"s{number:04}"
        with IndexedWriter(prefix, np.uint16) as writer:
            for _ in range(DOCUMENTS // 256):
                writer.add_many(drawn.integers(0, 32_000, 256 * LENGTH), np.full(256, LENGTH))
        counts = {"documents": DOCUMENTS, "tokens": DOCUMENTS * LENGTH, "dtype": "uint16", "vocabulary_size": 32_000}
        hashes = {"data_sha256": writer.data_sha256, "index_sha256": writer.index_sha256}
        write_manifest(prefix, Manifest(**counts, **hashes))
    return SOURCES


def measure_loader(prefixes: list[str]) -> dict[str, Any]:
    """Global batches as tensors, cold and then from the page cache."""
    found = {}
    for state in ("cold", "cached"):
        data = opened(prefixes)
        if state == "cold":
            forget(prefixes)
        start = time.perf_counter()
        for first in range(0, BATCHES * BATCH, BATCH):
            [batch] = data.global_batch(first, torch.device("cpu"))
        assert batch.tokens.shape == (BATCH, LENGTH)
        found[state] = figures(time.perf_counter() - start)
        del data
    return found


def measure_pread(prefixes: list[str]) -> dict[str, Any]:
    """The bytes of the same sequences in the same order, each with one pread, and nothing done with them."""
    data = opened(prefixes)
    indices = [rank_indices(data.slots, first, SEED).ravel() for first in range(0, BATCHES * BATCH, BATCH)]
    place = data.order.locate(np.concatenate(indices))
    files = [os.open(bin_path(prefix), os.O_RDONLY) for prefix in prefixes]
    places = [(files[source], 2 * LENGTH * sequence % (2 * DOCUMENTS * LENGTH))
              for source, sequence in zip(place.source.tolist(), place.sequence.tolist(), strict=True)]  # fmt: skip
    found = {}
    for state in ("cold", "cached"):
        if state == "cold":
            forget(prefixes)
        start = time.perf_counter()
        for file, offset in places:
            os.pread(file, 2 * (LENGTH + 1), offset)
        found[state] = figures(time.perf_counter() - start)
    return found


def opened(prefixes: list[str]) -> TrainingData:
    """Equal shares of all datasets, to one rank."""
    streams = [TokenStream([prefix]) for prefix in prefixes]
    sources = [SourceStream(Path(prefix).name, stream.tokens) for prefix, stream in zip(prefixes, streams, strict=True)]
    order = SampleOrder(sources, [Phase(0, (1,) * len(sources))], LENGTH, SEED)
    return TrainingData(order, streams, Slots(BATCH, BATCH, 0, 1), LENGTH, SEED)


def forget(prefixes: list[str]) -> None:
    """Takes the tokens out of the page cache."""
    for prefix in prefixes:
        with bin_path(prefix).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def figures(seconds: float) -> dict[str, float]:
    """Of BATCHES global batches in so many seconds."""
    sequences = BATCHES * BATCH
    bytes_read = sequences * 2 * (LENGTH + 1)
    return {
        "seconds": round(seconds, 4),
        "sequences_per_second": round(sequences / seconds, 1),
        "mb_per_second": round(bytes_read / seconds / 1e6, 1),
    }


def simulate(_: list[str]) -> dict[str, Any]:
    """The order of 15T tokens over 3,000 sources of very unequal sizes, and the steps of a rank of 1,024.

    Sequences of 8,192 tokens, global batches of 2,048, micro batches of one; sources hold 5T tokens in all and are
    read in proportion to the square root of their sizes.
    """
    sources, replicas, length, batch = 3000, 1024, 8192, 2048
    sizes = np.random.default_rng(SEED).lognormal(0, 2, sources)
    tokens = np.maximum(length, sizes / sizes.sum() * 5e12).astype(np.int64)
    roots = [Fraction(int(root)) for root in np.sqrt(tokens)]
    clock = Clock()
    total = sum(roots)
    weights = integer_weights([root / total for root in roots])
    streams = [SourceStream(f"source-{number}", int(count)) for number, count in enumerate(tokens)]
    order = SampleOrder(streams, [Phase(0, weights)], length, SEED)
    start = clock.stop()
    steps = 15 * 10**12 // (length * batch)
    chosen = np.linspace(0, steps - 1, 256).astype(np.int64)
    before = time.perf_counter()
    for step in chosen.tolist():
        slots = Slots(batch, 1, step % replicas, replicas)
        order.locate(rank_indices(slots, step * batch, SEED).ravel())
    seconds = (time.perf_counter() - before) / len(chosen)
    given = order.counts(steps * batch)
    due = steps * batch * np.array(weights, float) / sum(weights)
    return {
        "steps": steps,
        "sequences": steps * batch,
        "sequences_a_rank": batch // replicas,
        "start_seconds": start["seconds"],
        "memory_mib": start["memory_mib"],
        "microseconds_a_step": round(1e6 * seconds, 1),
        "most_sequences_off_due_share": round(float(np.abs(given - due).max()), 2),
        "most_epochs": round(float((given * length / tokens).max()), 2),
    }
