from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.corpus.hashing import mixed
from megatron_cpt.preparation import sorted_runs
from megatron_cpt.preparation.sorted_runs import (
    RECORD,
    SortedRun,
    TokenBuffer,
    TokenizedDocuments,
    shuffle_keys,
    write_run,
)


def documents(count: int, seed: int = 1) -> TokenizedDocuments:
    """Document n has n % 5 tokens, n % 3 sentences, an id of n % 4 bytes and n % 2 spans, all of value n."""
    numbers = np.arange(count)
    records = np.zeros(count, RECORD)
    records["place"] = records["bytes"] = numbers
    records["key"] = shuffle_keys(seed, 0, numbers)
    records["content_hash"] = mixed(numbers.astype(np.uint64) // np.uint64(2))
    records["tokens"], records["sentences"], records["id_bytes"] = numbers % 5, numbers % 3, numbers % 4
    records["spans"] = numbers % 2
    spans = np.zeros((numbers % 2).sum(), LOSS_SPAN)
    spans["begin"] = spans["end"] = np.repeat(numbers, numbers % 2)
    return TokenizedDocuments(
        records,
        np.repeat(numbers, numbers % 5),
        np.repeat(numbers, numbers % 3).astype(np.int32),
        np.repeat(numbers, numbers % 4).astype(np.uint8),
        spans,
    )


def write(path: Path, whole: TokenizedDocuments) -> int:
    with TokenBuffer(path.parent, np.dtype("<i4")) as tokens:
        for part in np.array_split(whole.tokens, 7):
            tokens.add(part)
        assert tokens.count == len(whole.tokens)
        checksum = write_run(path, replace(whole, tokens=whole.tokens[:0]), tokens)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return checksum


def written(path: Path, whole: TokenizedDocuments) -> SortedRun:
    checksum = write(path, whole)
    sizes = len(whole.tokens), len(whole.sentences), len(whole.ids), len(whole.spans)
    run = SortedRun(path, np.dtype("<i4"), len(whole.records), *sizes)
    assert run.is_whole(checksum)
    return run


def assert_whole(part: TokenizedDocuments) -> None:
    """Every document still has what is its own."""
    numbers = part.records["place"]
    assert (part.tokens == np.repeat(numbers, part.records["tokens"])).all()
    assert (part.sentences == np.repeat(numbers, part.records["sentences"])).all()
    assert (part.ids == np.repeat(numbers, part.records["id_bytes"]).astype(np.uint8)).all()
    assert (part.spans["end"] == np.repeat(numbers, part.records["spans"])).all()


@pytest.mark.parametrize("memory", [0, 30, 3000, 4 << 20])
@pytest.mark.parametrize("cuts", [[0, 500], [0, 1, 250, 251, 500], list(range(0, 501, 10)), [0, 0, 500, 500]])
def test_any_stretch_comes_back_in_the_order_of_keys(
    tmp_path: Path, cuts: list[int], memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the ids are on the way: in memory, in a scratch file, or in both."""
    monkeypatch.setattr(sorted_runs, "MEMORY_BYTES", memory)
    whole = documents(500)
    run = written(tmp_path / "run", whole)
    parts = [run.read(first, end) for first, end in pairwise(cuts)]
    for part in parts:
        assert_whole(part)
    numbers = np.concatenate([part.records["place"] for part in parts]).tolist()
    assert numbers == np.argsort(whole.records["key"]).tolist() != list(range(500))


def test_the_second_table_is_sorted_by_hash_and_place(tmp_path: Path) -> None:
    run = written(tmp_path / "run", documents(500))
    table = run.by_hash()
    assert (np.diff(table["content_hash"].astype(object)) >= 0).all()
    assert (np.diff(table["place"])[table["content_hash"][1:] == table["content_hash"][:-1]] == 1).all()
    assert (run.records()["place"][table["position"]] == table["place"]).all()


def test_an_empty_run(tmp_path: Path) -> None:
    run = written(tmp_path / "run", documents(0))
    assert len(run.records()) == len(run.by_hash()) == len(run.read(0, 0).tokens) == 0


@pytest.mark.parametrize("damage", ["cut", "one bit", "gone"])
def test_a_run_that_is_not_what_was_written_is_found(tmp_path: Path, damage: str) -> None:
    whole = documents(100)
    path = tmp_path / "run"
    checksum = write(path, whole)
    sizes = len(whole.tokens), len(whole.sentences), len(whole.ids), len(whole.spans)
    run = SortedRun(path, np.dtype("<i4"), 100, *sizes)
    content = bytearray(path.read_bytes())
    content[5000] ^= 4
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "one bit" else content[:-1])
    assert not run.is_whole(checksum)


def test_documents_are_chosen_whole() -> None:
    whole = documents(100)
    some = whole.chosen(np.arange(100) % 7 == 3)
    assert some.records["place"].tolist() == list(range(3, 100, 7))
    assert_whole(some)


def test_neighbours_in_the_input_are_not_neighbours_in_the_order() -> None:
    order = np.argsort(shuffle_keys(7, 0, np.arange(10_000) * 3000))
    # A random order keeps 2 of 10,000 adjacent pairs adjacent on average.
    assert (np.abs(np.diff(order)) == 1).sum() < 15


def test_the_keys_never_change() -> None:
    assert mixed(np.array([0, 1], np.uint64)).tolist() == [0, 6238072747940578789]
    assert shuffle_keys(1234, 0, np.array([1])).tolist() == [13167515007116332241]
    assert len({int(shuffle_keys(s, f, np.array([n]))[0]) for s in (1, 2) for f in (0, 1) for n in (1, 2)}) == 8
