from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.corpus.spool import RECORD, Buckets, Queue, Spool, TokenizedDocuments, shuffle_key


def documents(count: int, seed: int = 1) -> TokenizedDocuments:
    records = np.zeros(count, RECORD)
    records["key"] = [shuffle_key(seed, 0, line) for line in range(count)]
    records["tokens"] = np.arange(count) % 5
    records["bytes"] = np.arange(count)
    return TokenizedDocuments(np.repeat(np.arange(count), records["tokens"]), records)


def drained(spool: Spool) -> list[int]:
    """Numbers of the documents in the order they come back, each checked against its own tokens."""
    numbers: list[int] = []
    for chunk in spool.drain():
        expected = np.repeat(chunk.records["bytes"], chunk.records["tokens"])
        assert (chunk.tokens == expected).all()
        numbers += chunk.records["bytes"].tolist()
    spool.close()
    return numbers


@pytest.mark.parametrize("bits", [0, 1, 5])
def test_the_order_does_not_depend_on_buckets_or_batches(tmp_path: Path, bits: int) -> None:
    everything = documents(500)
    buckets = Buckets(tmp_path / "buckets", "int32", bits)
    buckets.add(everything)
    by_key = np.argsort(everything.records["key"]).tolist()
    assert buckets.documents == 500
    assert drained(buckets) == by_key != list(range(500))


def test_a_queue_gives_back_what_it_was_given(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue", "uint16")
    queue.add(documents(10_000))
    assert drained(queue) == list(range(10_000))


def test_neighbours_in_the_input_are_not_neighbours_in_the_order() -> None:
    order = np.argsort([shuffle_key(7, 0, line) for line in range(10_000)])
    # A random order keeps 2 of 10,000 adjacent pairs adjacent on average.
    assert (np.abs(np.diff(order)) == 1).sum() < 15


def test_the_keys_never_change() -> None:
    assert shuffle_key(1234, 0, 1) == 15408026162525140475
    assert len({shuffle_key(s, f, n) for s in (1, 2) for f in (0, 1) for n in (1, 2)}) == 8
