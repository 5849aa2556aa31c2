"""Inputs of object stores: fsspec's memory:// and file:// stand for s3://, gs:// and hf://."""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.preparation import pieces
from megatron_cpt.preparation.inputs import find_inputs

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("fsspec.implementations.memory")


@pytest.fixture
def store() -> Iterator[Any]:
    """An empty store."""
    files = fsspec.filesystem("memory")
    for url in files.ls("/", detail=False):
        files.rm(url, recursive=True)
    files.makedirs("/corpus/more")
    yield files


def lines(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def prepared(prefix: Path) -> tuple[bytes, ...]:
    return tuple(prefix.with_name(f"{prefix.name}.{ending}").read_bytes() for ending in ("bin", "idx"))


def test_a_folder_of_a_store_gives_the_bytes_that_local_files_give(
    tmp_path: Path, tokenizer_folder: Path, texts: list[str], store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 4000)
    local = tmp_path / "corpus"
    (local / "more").mkdir(parents=True)
    (local / "a.jsonl").write_bytes(lines(texts[:30]))
    (local / "b.jsonl.gz").write_bytes(gzip.compress(lines(texts[30:40])))
    (local / "c.csv").write_text("text\nof a table\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[40:]}), local / "more" / "d.parquet", row_group_size=7)
    (local / "README.md").write_text("read me")
    (local / ".hidden.jsonl").write_bytes(lines(["hidden"]))
    for path in local.rglob("*"):
        if path.is_file():
            store.pipe(f"/{path.relative_to(tmp_path)}", path.read_bytes())
    words = ["--tokenizer", str(tokenizer_folder), "--holdout", "10%", "--quiet", "--workers", "2"]
    assert main(["prepare", str(local), *words, "--output", f"{tmp_path}/local"]) == 0
    for name, url in (("memory", "memory://corpus"), ("file", f"file://{local}")):
        assert main(["prepare", url, *words, "--output", f"{tmp_path}/{name}"]) == 0
        assert prepared(tmp_path / name) == prepared(tmp_path / "local")
        manifest = load_manifest(tmp_path / name)
        assert manifest.sources is not None and manifest.not_read is not None
        assert [Path(source.path).name for source in manifest.sources] == [
            "a.jsonl",
            "b.jsonl.gz",
            "c.csv",
            "d.parquet",
        ]
        assert all("://" in source.path and source.size > 0 for source in manifest.sources)
        assert [path.endswith("README.md") for path in manifest.not_read] == [True]


def test_what_changed_in_a_store_is_another_input_and_shards_share_its_files(
    tmp_path: Path, tokenizer_folder: Path, texts: list[str], store: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        store.pipe(f"/corpus/{number}.jsonl", lines(texts[number * 10 : number * 10 + 10]))
    words = ["prepare", "memory://corpus/*.jsonl", "--tokenizer", str(tokenizer_folder), "--quiet"]
    whole, shards = ["--output", f"{tmp_path}/out"], ["--output", f"{tmp_path}/shards"]
    assert main([*words, *whole]) == 0
    for shard in ("1/2", "2/2"):
        assert main([*words, *shards, "--shard", shard]) == 0
    assert main(["merge", f"{tmp_path}/shards"]) == 0
    assert prepared(tmp_path / "out") == prepared(tmp_path / "shards")
    capsys.readouterr()
    assert main([*words, *whole]) == 0
    assert "nothing was done" in capsys.readouterr().out
    store.pipe("/corpus/1.jsonl", lines(["other"]))
    assert main([*words, *whole]) == 2
    assert "1.jsonl has changed since, from " in capsys.readouterr().err
    assert main([*words, *whole, "--limit", "3"]) == 0
    assert "memory:///corpus/0.jsonl, line 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("memory://nowhere", "is not there, or holds no file"),
        ("memory://corpus/a.pdf", "is not a kind of file that is read"),
        ("memory://corpus/a.parquet", "is not a parquet file"),
        ("nosuch://x/y.jsonl", "is no address that is known"),
        ("oss://bucket/x.jsonl", "needs a package that is not installed"),
    ],
)
def test_what_cannot_be_read_of_a_store_is_told(store: Any, url: str, told: str) -> None:
    store.pipe("/corpus/a.pdf", b"x")
    store.pipe("/corpus/a.parquet", b"x")
    with pytest.raises(BadInput, match=told):
        find_inputs([url])


class Failing(fsspec.implementations.memory.MemoryFileSystem):  # type: ignore[misc, name-defined]
    """A store whose connection fails behind the first bytes of a file."""

    protocol = "failing"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("failing://", "memory://")))

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        found = super()._open(path, mode, **more)

        class Broken(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() >= 100_000:
                    raise RuntimeError("connection lost")
                return super().read(size)

        return Broken(found.getvalue())


def test_a_connection_that_fails_ends_in_one_message_and_the_pieces_before_it_are_used_again(
    tmp_path: Path,
    tokenizer_folder: Path,
    texts: list[str],
    store: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 20_000)
    monkeypatch.setattr(pieces, "BLOCK", 10_000)
    many = [f"{number} {text}" for number in range(40) for text in texts]
    assert len(lines(many)) > 2 << 20
    store.pipe("/corpus/a.jsonl", lines(many))
    fsspec.register_implementation("failing", Failing, clobber=True)
    words = ["--tokenizer", str(tokenizer_folder), "--quiet", "--output", f"{tmp_path}/out"]
    assert main(["prepare", "failing://corpus/a.jsonl", *words]) != 0
    told = capsys.readouterr().err
    assert "Traceback" not in told and "connection lost" in told and "failing://corpus/a.jsonl" in told
    assert list((tmp_path / "out.pieces").glob("*.run"))
    assert not (tmp_path / "out.idx").exists()


def test_a_table_without_the_column_is_told_by_its_address(
    tmp_path: Path, tokenizer_folder: Path, texts: list[str], store: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "a.parquet")
    store.pipe("/corpus/a.parquet", (tmp_path / "a.parquet").read_bytes())
    words = ["--tokenizer", str(tokenizer_folder), "--quiet", "--output", f"{tmp_path}/out"]
    assert main(["prepare", "memory://corpus/a.parquet", *words]) == 2
    assert "--text-key text: is no column of memory://corpus/a.parquet" in capsys.readouterr().err
