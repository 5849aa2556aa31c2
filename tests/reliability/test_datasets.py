"""D: datasets, columns and counts under damage, delay and many readers."""

import errno
import multiprocessing
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.corpus.columns import column_path
from megatron_cpt.corpus.indexed import IndexedWriter, bin_path, manifest_path
from megatron_cpt.corpus.manifest import load_manifest, verify_dataset
from megatron_cpt.corpus.stream import scored_tokens
from megatron_cpt.mixture.order import Phase, SampleOrder, SourceStream
from tests.workshop import Workshop

Record = Callable[[str, object], None]


def copied(workshop: Workshop, corpus: str, folder: Path) -> Path:
    """A dataset of the workshop with all that stands beside it."""
    for path in workshop.folder.glob(f"{corpus}.*"):
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder / corpus


@pytest.mark.parametrize("flips", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_D2_turned_bits_of_tokens(workshop: Workshop, tmp_path: Path, flips: int, record_property: Record) -> None:
    prefix, draw = copied(workshop, "domain", tmp_path), random.Random(flips)
    content = bytearray(bin_path(prefix).read_bytes())
    verify_dataset(prefix)
    for _ in range(flips):
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        bin_path(prefix).write_bytes(content)
        with pytest.raises(IntegrityFault, match=r"domain\.bin"):
            verify_dataset(prefix)
        content[bit // 8] ^= 1 << bit % 8
    bin_path(prefix).write_bytes(content)
    verify_dataset(prefix)
    record_property("flips", flips)
    record_property("flips refused", flips)


@pytest.mark.parametrize("name", ["eod", "vocabulary_size", "bytes", "tokenizer", "documents_sha256", "largest_id"])
def test_D6_a_manifest_that_was_changed_is_not_verified(
    workshop: Workshop, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error in a manifest changes what a dataset is taken for."""
    prefix = copied(workshop, "domain", tmp_path)
    value = asdict(load_manifest(prefix))[name]
    other = value + 1 if isinstance(value, int) else "0" * len(value)
    text = manifest_path(prefix).read_text()
    quoted = ("{}", "{}") if isinstance(value, int) else ('"{}"', '"{}"')
    before, after = (f'"{name}": {form.format(what)}' for form, what in zip(quoted, (value, other), strict=True))
    assert before in text
    manifest_path(prefix).write_text(text.replace(before, after))
    assert main(["inspect", str(prefix), "--verify"]) == 3
    assert "is not what was written (content_sha256 differs)" in capsys.readouterr().err


def test_D6_documents_of_another_dataset_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    prefix = copied(workshop, "domain", tmp_path)
    path = column_path(prefix, "documents")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityFault, match=r"domain\.documents\.npy: is not the content that its manifest"):
        verify_dataset(prefix)


def describe(prefix: Path) -> dict[str, Any]:
    return asdict(load_manifest(prefix))


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_D7_eight_processes_describe_one_pair(tmp_path: Path, rounds: int, record_property: Record) -> None:
    with multiprocessing.get_context("forkserver").Pool(8) as pool:
        for number in range(rounds):
            prefix = tmp_path / str(number)
            with IndexedWriter(prefix, "uint16") as writer:
                for length in range(1, 50):
                    writer.add(np.arange(length))
            seen = pool.map(describe, [prefix] * 8)
            assert all(one == seen[0] for one in seen) and seen[0] == describe(prefix)
            assert sorted(path.name for path in tmp_path.glob(f"{number}.*")) == [
                f"{number}.bin",
                f"{number}.idx",
                f"{number}.manifest.json",
            ]
            assert not list(tmp_path.glob(".*"))
    record_property("races", rounds)


def test_D8_a_manifest_that_is_not_seen_yet_is_not_written_over(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """Some network file systems show a file that another machine has renamed seconds late."""
    prefix = copied(workshop, "domain", tmp_path)
    content = manifest_path(prefix).read_bytes()
    seen = Path.is_file
    late = [1]

    def is_file(path: Path) -> bool:
        if path == manifest_path(prefix) and late[0]:
            late[0] -= 1
            return False
        return seen(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    manifest = load_manifest(prefix)
    assert not late[0] and manifest.eod == 0 and manifest.tokenizer is not None
    assert manifest_path(prefix).read_bytes() == content
    assert not list(tmp_path.glob(".*"))
    record_property("late files", 1)


@pytest.mark.parametrize("file", ["domain.idx", "domain.bin", "domain.manifest.json", "domain.documents.npy"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_D8_a_file_system_that_fails_once_is_one_message(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    number: int,
    record_property: Record,
) -> None:
    prefix = copied(workshop, "domain", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    opened = Path.open

    def fails(path: Path, *how: Any, **more: Any) -> Any:
        if path.name == file:
            raise OSError(number, "the file system failed", str(path))
        return opened(path, *how, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", fails)
        if file == "domain.documents.npy":
            patched.setattr(np, "load", lambda path, **how: fails(Path(path)))
        assert main(["inspect", str(prefix), "--verify"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and file in said and "Traceback" not in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main(["inspect", str(prefix), "--verify"]) == 0
    record_property("failing reads", 1)


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def npy(header: str) -> bytes:
    """An array file that its header alone describes."""
    text = header.encode().ljust(118 - 10 + 9) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "kind", ["cut header", "objects", "raw pickle", "archive", "huge", "negative", "text", "empty"]
)
def test_D9_hostile_columns(
    workshop: Workshop, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], record_property: Record
) -> None:
    prefix, marker = copied(workshop, "domain", tmp_path), tmp_path / "marker"
    column = column_path(prefix, "hostile")
    match kind:
        case "objects":
            np.save(column, np.array([Payload(marker)] * load_manifest(prefix).documents, object), allow_pickle=True)
        case "raw pickle":
            column.write_bytes(pickle.dumps(Payload(marker)))
        case "archive":
            with zipfile.ZipFile(column, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a.npy", bytes(50_000_000))
        case "huge":
            column.write_bytes(npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62},), }}"))
        case "negative":
            column.write_bytes(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-5,), }"))
        case "text":
            column.write_bytes(npy("__import__('os').system('touch marker')"))
        case "cut header":
            column.write_bytes(npy("{'descr': [('a, '<u8'), ('b', '<i8')], 'fortran_order': False, 'shape': (3,), }"))
        case "empty":
            column.write_bytes(b"")
    words = [
        "select",
        str(prefix),
        "--tokens",
        "500",
        "--by",
        "hostile",
        "--keep",
        "lowest",
        "--output",
        str(tmp_path / "s"),
    ]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "hostile.npy" in said and "Traceback" not in said
    assert not marker.exists() and not list(tmp_path.glob("s.*"))
    record_property("payloads", 1)


@pytest.mark.parametrize("tokens", [2**24 - 1, 2**24 + 1, pytest.param(100_663_299, marks=pytest.mark.slow)])
def test_D13_large_counts_are_exact(tokens: int, record_property: Record) -> None:
    """Where float32 counts no longer: every label once, and a sequence for what is left over."""
    for length in (2, 3):
        counted = scored_tokens(tokens, length, None)
        assert int(counted.sum()) == tokens - 1
        assert len(counted) == -(-(tokens - 1) // length)
        order = SampleOrder([SourceStream("a", tokens)], [Phase(0, (1,))], length, seed=1)
        owned = [-(-epoch * tokens // length) for epoch in (1, 2)]  # by the end of each epoch, in whole numbers
        for epoch, end in enumerate(owned):
            around = order.locate([end - 1, end])
            assert around.epoch.tolist() == [epoch, epoch + 1]
        assert order.counts(owned[1]).tolist() == [owned[1]]
    record_property("large counts", 1)
