import gzip
import io
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.preparation import pieces
from megatron_cpt.preparation.compression import Compression, decompressed
from megatron_cpt.preparation.input_kinds import Input
from megatron_cpt.preparation.pieces import Piece, Span, of_shard, spans, unpacked

LINES = b"".join(b'{"body": "%d"}\n' % number for number in range(5000))


def zstd(content: bytes) -> bytes:
    """Three frames, the last with an empty one behind it, as parallel compressors and `cat` leave them."""
    parts = [content[:7], content[7:1000], content[1000:], b""]
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


@pytest.mark.parametrize("block", [10, 1000, 1 << 20])
@pytest.mark.parametrize(("compression", "packed"), [("gzip", gzip.compress(LINES)), ("Zstandard", zstd(LINES))])
def test_a_stream_is_cut_behind_line_ends(
    tmp_path: Path, compression: Compression, packed: bytes, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "BLOCK", block)
    with decompressed(io.BytesIO(packed), "a", compression) as stream:
        found = list(unpacked(stream, 3, False, True, tmp_path, 9000))
    contents = [piece.path.read_bytes() for piece in found]
    assert b"".join(contents) == LINES
    assert all(content.endswith(b"\n") for content in contents)
    assert [piece.base for piece in found] == [sum(map(len, contents[:n])) for n in range(len(found))]
    assert [piece.end for piece in found] == list(map(len, contents))
    assert [(piece.file, piece.number) for piece in found] == [(3, n) for n in range(len(found))]
    assert len({piece.digest for piece in found}) == len(found) > 1 or block == 1 << 20


def test_what_is_one_document_is_not_cut(tmp_path: Path) -> None:
    (piece,) = unpacked(io.BytesIO(LINES), 0, True, False, tmp_path, 100)
    assert piece.path.read_bytes() == LINES


@pytest.mark.parametrize(("compression", "compress"), [("gzip", gzip.compress), ("Zstandard", zstandard.compress)])
@pytest.mark.parametrize("damage", [slice(0, -5), slice(0, 100)])
def test_a_broken_stream_is_an_integrity_fault(
    tmp_path: Path, compression: Compression, compress: "type[bytes]", damage: slice
) -> None:
    with (
        pytest.raises(IntegrityFault, match=f"a: is not a whole {compression} file"),
        decompressed(io.BytesIO(compress(LINES)[damage]), "a", compression) as stream,
    ):
        list(unpacked(stream, 0, False, False, tmp_path, 1000))


@pytest.mark.parametrize("block", [1 << 12, 1 << 16])
def test_a_stream_that_expands_a_thousandfold_is_never_held(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "BLOCK", block)
    packed = zstandard.compress(b"x" * 50_000_000)
    with decompressed(io.BytesIO(packed), "a", "Zstandard") as stream:
        (piece,) = unpacked(stream, 0, False, False, tmp_path, 1000)
    assert piece.path.stat().st_size == 50_000_000


def test_a_plain_file_is_cut_at_bytes_and_a_stream_is_one_span(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x" * 250)
    (tmp_path / "b.jsonl.gz").write_bytes(b"x" * 40)
    (tmp_path / "c.txt").write_bytes(b"x" * 300)
    (tmp_path / "d.jsonl").write_bytes(b"")
    inputs = [
        Input(tmp_path / "a.jsonl", "json_lines"),
        Input(tmp_path / "b.jsonl.gz", "json_lines", "gzip"),
        Input(tmp_path / "c.txt", "text"),
        Input(tmp_path / "d.jsonl", "json_lines"),
    ]
    found = [(span.piece.file, span.piece.start, span.piece.end) for span in spans(inputs, 100, "text")]
    assert found == [(0, 0, 100), (0, 100, 200), (0, 200, 250), (1, 0, 0), (2, 0, 300), (3, 0, 0)]


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 12))
def test_shards_are_neighbours_and_take_every_span_once(sizes: list[int], shards: int) -> None:
    found = [Span(Piece(0, number, Path("a"), 0, size), False, size) for number, size in enumerate(sizes)]
    taken = [of_shard(found, shard, shards) for shard in range(1, shards + 1)]
    assert [span for shard in taken for span in shard] == found
    # None has more than its share and the two halves of spans that lie across its ends.
    most = max(sizes, default=0)
    assert all(sum(span.size for span in shard) <= sum(sizes) / shards + most + 1 for shard in taken)
