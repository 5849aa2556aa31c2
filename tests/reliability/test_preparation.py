"""P: documents to datasets, killed, short of room, mixed with others, with workers that fail."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.indexed import HEADER, MAGIC, VERSION, IndexedDataset, IndexedWriter, bin_path, idx_path
from megatron_cpt.corpus.manifest import verify_dataset
from tests.preparation.test_interruptions import SMALL_PIECES
from tests.reliability.running import ROOT, digests, ended, places, run, started
from tests.workshop import Workshop

WriteJsonl = Callable[..., Path]
Record = Callable[[str, object], None]


@pytest.fixture
def corpus(write_jsonl: WriteJsonl, texts: list[str]) -> Path:
    """A megabyte in five pieces, some lines broken."""
    path = write_jsonl("a.jsonl", [f"{number} {text}" for number in range(12) for text in texts])
    with path.open("a") as file:
        file.write("{broken\n" * 3)
    return path


def preparing(corpus: Path, tokenizer: Path, output: Path, *more: str, workers: int = 2) -> list[str]:
    """The command, with pieces so small that there are several."""
    words = [corpus, "--tokenizer", tokenizer, "--output", output, "--workers", workers, *more]
    return [sys.executable, "-c", SMALL_PIECES, *map(str, words)]


def refuse_half(prefix: Path, whole: list[dict[str, str]]) -> None:
    """What opens is whole, and one of the datasets that may be there."""
    if not idx_path(prefix).is_file():
        return
    verify_dataset(prefix)
    there = digests(prefix.parent)
    assert any(all(there[name] == one[name] for name in (f"{prefix.name}.bin", f"{prefix.name}.idx")) for one in whole)


@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
def test_P1_killed_at_random_moments(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path, kills: int, record_property: Record
) -> None:
    prefix, draw = tmp_path / "out" / "x", random.Random(kills)
    words = preparing(corpus, tokenizer_folder, prefix, "--holdout", "20%")
    done = run(words)
    assert done.code == 0, done.err
    whole = digests(prefix.parent)
    for _ in range(kills):
        shutil.rmtree(prefix.parent)
        process = started(words)
        time.sleep(draw.uniform(0, done.seconds))
        process.kill()
        ended(process)
        refuse_half(prefix, [whole])
        assert run(words).code == 0
        assert digests(prefix.parent) == whole
    record_property("kills", kills)


@pytest.mark.ci
@pytest.mark.parametrize("every", [31, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
@pytest.mark.parametrize("older", [False, True])
def test_P2_killed_at_the_writes_over_an_older_dataset_and_over_none(
    tmp_path: Path,
    corpus: Path,
    tokenizer_folder: Path,
    write_jsonl: WriteJsonl,
    texts: list[str],
    older: bool,
    every: int,
    record_property: Record,
) -> None:
    """Old, new, or nothing that opens; and the next call gives what an undisturbed one gives."""
    prefix = tmp_path / "out" / "x"
    words = preparing(corpus, tokenizer_folder, prefix, "--overwrite", workers=1)
    before = preparing(write_jsonl("old.jsonl", texts[:20]), tokenizer_folder, prefix, "--overwrite", workers=1)
    right = []
    if older:
        assert run(before).code == 0
        right.append(digests(prefix.parent))
    passed = places(words, prefix.parent, tmp_path / "log")
    whole = digests(prefix.parent)
    right.append(whole)
    kills = range(1, len(passed) + 1, every)
    for at in kills:
        shutil.rmtree(prefix.parent)
        if older:
            assert run(before).code == 0
        killed = run(words, failpoint={"folder": prefix.parent, "at": at})
        assert killed.code in (-signal.SIGKILL, 1), f"place {at}, {passed[at - 1]}: {killed}"
        refuse_half(prefix, right)
        assert run(words).code == 0, passed[at - 1]
        assert digests(prefix.parent) == whole, passed[at - 1]
    record_property("kills", len(kills))


@pytest.mark.ci
@pytest.mark.parametrize("kills", [1, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
def test_P2_killed_at_random_moments_over_an_older_dataset(
    tmp_path: Path,
    corpus: Path,
    tokenizer_folder: Path,
    write_jsonl: WriteJsonl,
    texts: list[str],
    kills: int,
    record_property: Record,
) -> None:
    prefix, draw = tmp_path / "out" / "x", random.Random(kills)
    before = preparing(write_jsonl("old.jsonl", texts[:20]), tokenizer_folder, prefix, "--overwrite")
    words = preparing(corpus, tokenizer_folder, prefix, "--overwrite")
    assert run(before).code == 0
    old = digests(prefix.parent)
    done = run(words)
    assert done.code == 0
    whole = digests(prefix.parent)
    for _ in range(kills):
        shutil.rmtree(prefix.parent)
        assert run(before).code == 0
        process = started(words)
        time.sleep(draw.uniform(0, done.seconds))
        process.kill()
        ended(process)
        refuse_half(prefix, [old, whole])
        assert run(words).code == 0
        assert digests(prefix.parent) == whole
    record_property("kills", kills)


@pytest.mark.ci
@pytest.mark.parametrize(
    "place",
    [
        "remove x.documents.npy",
        "rename x.validation.manifest.json",
        "rename x.manifest.json",
        *(
            pytest.param(place, marks=pytest.mark.slow)
            for place in (
                "remove x.manifest.json",
                "remove x.validation.manifest.json",
                "remove x.validation.bin",
                "rename x.validation.idx",
                "rename x.bin",
                "rename x.idx",
                "rename x.documents.npy",
                "remove x.pieces/*-decided.json",
            )
        ),
    ],
)
def test_P2_the_old_command_after_a_killed_overwrite(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path, place: str, record_property: Record
) -> None:
    """What is half there is no reason to refuse it: the old dataset comes back. A whole one is not replaced unasked."""
    prefix = tmp_path / "out" / "x"
    old = preparing(corpus, tokenizer_folder, prefix, "--holdout", "20%", workers=1)
    new = [*old, "--seed", "7", "--overwrite"]
    assert run(old).code == 0
    right = digests(prefix.parent)
    assert run(new, failpoint={"folder": prefix.parent, "place": place, "at": 1}).code == -signal.SIGKILL
    done = run(old)
    if place == "remove x.pieces/*-decided.json":
        assert done.code == 2 and "x: is a finished dataset that was made otherwise (other seed)." in done.err
    else:
        assert (done.code, done.err) == (0, "")
        assert digests(prefix.parent) == right
    record_property("kills", 1)


def test_P2_what_a_killed_call_wrote_and_another_program_described(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path, record_property: Record
) -> None:
    """Whoever opens a pair without a manifest gives it one: it may be in use, and is not replaced unasked."""
    prefix = tmp_path / "out" / "x"
    words = preparing(corpus, tokenizer_folder, prefix, workers=1)
    killed = {"folder": prefix.parent, "place": "rename x.manifest.json", "at": 1}
    assert run(words, failpoint=killed).code == -signal.SIGKILL
    verify_dataset(prefix)
    done = run([*words, "--seed", "7"])
    assert done.code == 2 and "x: may be what a killed call was writing, and was given a manifest since" in done.err
    assert run([*words, "--seed", "7", "--overwrite"]).code == 0
    record_property("kills", 1)


def test_P1_a_killed_merge_leaves_nothing_that_stays(
    workshop: Workshop, tmp_path: Path, record_property: Record
) -> None:
    """Of whole datasets, by the script: what a killed call left goes with the next one."""
    parts, output = tmp_path / "parts", tmp_path / "out" / "all"
    parts.mkdir()
    output.parent.mkdir()
    for name in ("domain", "general"):
        for path in workshop.folder.glob(f"{name}.*"):
            if not path.name.startswith(f"{name}.validation"):
                shutil.copyfile(path, parts / path.name)
    words = [sys.executable, ROOT / "tools/merge_datasets.py", "--input", parts, "--output-prefix", output]
    passed = places(words, output.parent, tmp_path / "log")
    whole = digests(output.parent)
    kills = (2, len(passed) // 2, len(passed) - 1)
    for at in kills:
        shutil.rmtree(output.parent)
        output.parent.mkdir()
        assert run(words, failpoint={"folder": output.parent, "at": at}).code == -signal.SIGKILL, passed[at - 1]
        if idx_path(output).exists():
            idx_path(output).unlink()  # the script replaces nothing
        assert run(words).code == 0
        assert digests(output.parent) == whole, passed[at - 1]
    record_property("kills", len(kills))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes."""
    folder.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.ci
@pytest.mark.parametrize("sizes", [2, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_P3_a_disk_that_is_too_small(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path, sizes: int, record_property: Record
) -> None:
    assert run(preparing(corpus, tokenizer_folder, tmp_path / "x")).code == 0
    needed = sum(path.stat().st_size for path in tmp_path.glob("x.*"))
    disk = tmp_path / "disk"
    for share in np.linspace(0.1, 0.95, sizes):
        with small_disk(disk, int(share * needed)):
            done = run(preparing(corpus, tokenizer_folder, disk / "x"), limit=30)
            assert done.code == 1
            assert done.err.count("\n") == 1 and "Traceback" not in done.err, done.err
            assert "bytes are free on its disk" in done.err or "are free on its disk" in done.err
            assert not idx_path(disk / "x").exists()
            assert not list(disk.rglob(".*.partial-*"))
    record_property("full disks", sizes)


def test_P3_a_disk_that_holds_the_pieces_and_not_the_dataset(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path, record_property: Record
) -> None:
    """What the last pass needs is known before it begins."""
    assert run(preparing(corpus, tokenizer_folder, tmp_path / "x", "--order", "as_read")).code == 0
    needed = sum(path.stat().st_size for path in tmp_path.glob("x.*"))
    disk = tmp_path / "disk"
    with small_disk(disk, int(2.2 * needed)):
        words = preparing(corpus, tokenizer_folder, disk / "x", "--order", "as_read")
        filler = disk / "filler"
        shutil.copyfile(bin_path(tmp_path / "x"), filler)
        done = run(words, limit=30)
        assert done.code == 1 and f"{disk}/x: needs " in done.err and "are free on its disk" in done.err
        assert not idx_path(disk / "x").exists()
        filler.unlink()
        assert run(words).code == 0
        verify_dataset(disk / "x")
    record_property("full disks", 1)


def two_workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The workers of a command, once they are there."""
    deadline = time.monotonic() + 30
    workers: list[psutil.Process] = []
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    return workers


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_P8_a_killed_worker(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path, kills: int, record_property: Record
) -> None:
    draw = random.Random(8)
    for number in range(kills):
        process = started(preparing(corpus, tokenizer_folder, tmp_path / str(number) / "x"))
        workers = two_workers(process)
        time.sleep(draw.uniform(0, 0.1))
        draw.choice(workers).kill()
        done = ended(process, limit=10)
        assert done.code == 1 and "was killed by signal 9 while it had" in done.err
        assert not any(worker.is_running() for worker in workers)
        assert not idx_path(tmp_path / str(number) / "x").exists()
    record_property("kills", kills)


@pytest.mark.ci
def test_P8_a_stopped_worker_is_given_up_and_named(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path, record_property: Record
) -> None:
    words = preparing(corpus, tokenizer_folder, tmp_path / "out" / "x")
    process = started([*words, "--worker-timeout", "2"])
    workers = two_workers(process)
    workers[1].send_signal(signal.SIGSTOP)
    done = ended(process, limit=20)
    assert done.code == 1 and done.err.count("\n") == 1
    assert f"worker {workers[1].pid} has done nothing for" in done.err and "(stopped) while it had" in done.err
    assert not any(worker.is_running() for worker in workers)
    assert run(words).code == 0
    verify_dataset(tmp_path / "out" / "x")
    record_property("stopped processes", 1)


@pytest.mark.ci
@pytest.mark.parametrize("change", ["the text", "the seed", "the control tokens", "the key"])
def test_P12_pieces_of_another_call_are_never_mixed_in(
    tmp_path: Path, corpus: Path, tokenizer_folder: Path, change: str, record_property: Record
) -> None:
    """A call is killed when it has pieces; the next one is about something else under the same names."""
    prefix = tmp_path / "out" / "x"
    process = started(preparing(corpus, tokenizer_folder, prefix))
    deadline = time.monotonic() + 30
    while not list(prefix.parent.glob("x.pieces/*.run")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    ended(process)
    assert list(prefix.parent.glob("x.pieces/*.run"))
    more = {
        "the seed": ["--seed", "77"],
        "the control tokens": ["--parse-special"],
        "the key": ["--text-key", "other"],
    }.get(change, [])
    lines = [json.loads(line) for line in corpus.read_text().splitlines()[:-3]]
    if change == "the text":  # of the same length, at the same time
        state = corpus.stat()
        corpus.write_text("".join(json.dumps({"text": line["text"][::-1]}) + "\n" for line in lines) + "{broken\n" * 3)
        os.utime(corpus, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    if change == "the key":
        corpus.write_text("".join(json.dumps({**line, "other": line["text"][:50]}) + "\n" for line in lines))
    elsewhere = tmp_path / "elsewhere" / "x"
    for output in (prefix, elsewhere):
        done = run(preparing(corpus, tokenizer_folder, output, *more))
        assert done.code == 0, done.err
    assert digests(prefix.parent) == digests(elsewhere.parent)
    record_property("changed inputs", 1)


def test_P13_offsets_beyond_two_gigabytes_are_exact(tmp_path: Path, record_property: Record) -> None:
    """Documents of a sparse file, the last of which begins beyond 2^31 bytes and another beyond 2^32."""
    prefix, dtype = tmp_path / "x", np.dtype("<i4")
    lengths = np.array([5, 2**29 + 3, 2**29 + 1, 7], "<i4")
    starts = np.concatenate([[0], np.cumsum(lengths.astype("<i8"))])
    with bin_path(prefix).open("wb") as file:
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=False):
            for place, token in ((start, 11), (start + length - 1, 99)):
                file.seek(place * dtype.itemsize)
                file.write(np.array([token], dtype).tobytes())
    with idx_path(prefix).open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, 4, len(lengths), len(lengths) + 1))
        file.write(lengths.tobytes() + (starts[:-1] * dtype.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
    dataset = IndexedDataset(prefix)
    assert dataset.document_starts.tolist() == starts.tolist()
    assert starts[-2] * dtype.itemsize > 2**32
    for number in range(4):
        tokens = dataset.document(number)
        assert (len(tokens), int(tokens[0]), int(tokens[-1])) == (lengths[number], 11, 99)
    record_property("large files", 1)


def test_P13_a_sequence_that_the_format_cannot_say_is_refused(tmp_path: Path, record_property: Record) -> None:
    tokens = np.broadcast_to(np.uint16(0), (2**31,))
    with (
        pytest.raises(BadInput, match=r"a document of 2,147,483,648 tokens: is longer than the format can say"),
        IndexedWriter(tmp_path / "x", "uint16") as writer,
    ):
        writer.add(tokens)
    assert not list(tmp_path.iterdir())
    record_property("bad inputs", 1)
