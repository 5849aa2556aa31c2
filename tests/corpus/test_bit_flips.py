"""Every single bit of a small dataset turned over, and random runs of bytes of a larger one."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.indexed import IndexedDataset, IndexedWriter, bin_path, idx_path, manifest_path
from megatron_cpt.corpus.manifest import load_manifest, verify_dataset


@pytest.fixture(params=["uint16", "int32"])
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Documents of one, several and no sequences, described by a manifest."""
    prefix = tmp_path / "data"
    with IndexedWriter(prefix, request.param) as writer:
        for lengths in ([3], [2, 1], [], [1]):
            writer.add(np.arange(sum(lengths)) + 7 * len(lengths), np.array(lengths, np.int64))
    load_manifest(prefix)
    return prefix


def refused(path: Path, damage: Callable[[bytearray], None], use: Callable[[], object]) -> bool:
    """Whether the damaged file is refused with an error that names it; the file is mended again."""
    content = path.read_bytes()
    damaged = bytearray(content)
    damage(damaged)
    assert damaged != content
    path.write_bytes(damaged)
    try:
        use()
    except IntegrityFault as error:
        assert path.stem in str(error)
        return True
    else:
        return False
    finally:
        path.write_bytes(content)


def turn(bit: int) -> Callable[[bytearray], None]:
    def damage(content: bytearray) -> None:
        content[bit // 8] ^= 1 << bit % 8

    return damage


def test_every_bit_of_an_index_is_proved_at_every_load(dataset: Path) -> None:
    path = idx_path(dataset)
    bits = 8 * path.stat().st_size
    assert all(refused(path, turn(bit), lambda: load_manifest(dataset)) for bit in range(bits))


def test_every_bit_of_the_tokens_is_proved_by_verify(dataset: Path) -> None:
    path = bin_path(dataset)
    bits = 8 * path.stat().st_size
    assert all(refused(path, turn(bit), lambda: verify_dataset(dataset)) for bit in range(bits))


def test_an_index_that_nothing_describes_never_gives_other_tokens(dataset: Path) -> None:
    """A pair made elsewhere, seen for the first time: where a document ends may be unknowable, not what is read."""
    manifest_path(dataset).unlink()
    right = IndexedDataset(dataset).tokens.tolist()
    path = idx_path(dataset)
    bits = 8 * path.stat().st_size

    def use() -> None:
        opened = IndexedDataset(dataset)
        assert [token for n in range(opened.documents) for token in opened.document(n).tolist()] == right

    found = [refused(path, turn(bit), use) for bit in range(bits)]
    assert sum(found) > 0.97 * bits


def test_random_runs_of_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    prefix = tmp_path / "data"
    with IndexedWriter(prefix, "uint16") as writer:
        lengths = rng.integers(1, 200, 500)
        writer.add_many(rng.integers(0, 60_000, int(lengths.sum())), lengths)
    load_manifest(prefix)
    for path, use in ((idx_path(prefix), load_manifest), (bin_path(prefix), verify_dataset)):
        size = path.stat().st_size
        for _ in range(60):
            start = int(rng.integers(0, size))
            run = rng.bytes(int(rng.integers(1, 64)))

            def damage(content: bytearray, start: int = start, run: bytes = run) -> None:
                before = bytes(content)
                content[start : start + len(run)] = run[: len(content) - start]
                if content == before:
                    content[start] ^= 1

            assert refused(path, damage, lambda use=use: use(prefix))  # type: ignore[misc]


@pytest.mark.parametrize("cut", [0, 1, 33, 34, 100, -1])
def test_files_cut_short_or_grown_are_refused(dataset: Path, cut: int) -> None:
    for path in (idx_path(dataset), bin_path(dataset)):
        content = path.read_bytes()
        for other in (content[:cut], content + b"\0"):
            if other != content:
                path.write_bytes(other)
                with pytest.raises(IntegrityFault, match=r"data\.(idx|bin)"):
                    IndexedDataset(dataset)
        path.write_bytes(content)


def test_the_tokens_of_another_dataset_of_the_same_size_are_refused(dataset: Path) -> None:
    content = bin_path(dataset).read_bytes()
    bin_path(dataset).write_bytes(content[::-1])
    with pytest.raises(IntegrityFault, match="samples of its tokens are not those"):
        verify_dataset(dataset)


def test_an_older_index_beside_new_tokens_is_refused(tmp_path: Path) -> None:
    """A preparation that dies between the two files of its pair leaves no index that opens."""
    prefix = tmp_path / "data"
    with IndexedWriter(prefix, "uint16") as writer:
        writer.add_many(np.arange(10), np.array([4, 6]))
    load_manifest(prefix)
    old = idx_path(prefix).read_bytes()
    with suppress(KeyboardInterrupt), IndexedWriter(prefix, "uint16") as writer:
        writer.add_many(np.arange(12), np.array([6, 6]))
        raise KeyboardInterrupt
    assert idx_path(prefix).read_bytes() == old
    assert IndexedDataset(prefix).tokens.tolist() == list(range(10))
    with IndexedWriter(prefix, "uint16") as writer:
        writer.add_many(np.arange(10), np.array([6, 4]))
    assert not manifest_path(prefix).exists()
    # Someone copies the older index back.
    load_manifest(prefix)
    idx_path(prefix).write_bytes(old)
    with pytest.raises(IntegrityFault, match=r"is not the index that data\.manifest\.json describes"):
        load_manifest(prefix)


def test_an_index_alone_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "data.idx").write_bytes(b"")
    with pytest.raises(BadInput, match=r"data\.bin: is not there"):
        IndexedDataset(tmp_path / "data")
