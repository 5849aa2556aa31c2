"""Runs that are killed, shared or given other workers: always the same bytes."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import psutil
import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.indexed import bin_path, idx_path
from megatron_cpt.preparation import join, pieces
from megatron_cpt.preparation.contamination import EvaluationItem, EvaluationSet
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import Shard, merge, prepare, prepare_shard

WriteJsonl = Callable[..., Path]
SETTINGS = PrepareSettings(holdout=0.2, id_key="id", max_rejected=0.5)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two plain files, a compressed one and a text, with copies among them and bad lines, in pieces of 3,000 bytes."""
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 3000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": text, "id": f"n{number}"}) for number, text in enumerate(texts)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:50], "{broken", "", *lines[10:20]]))
    (folder / "b.jsonl").write_text("\n".join(lines[40:]))
    (folder / "d.txt").write_text(texts[3].upper() + " and more")
    (folder / "c.jsonl").write_text("\n".join(lines[:30] * 2 + ["[]"]))
    subprocess.run(["gzip", "c.jsonl"], cwd=folder, check=True)
    return [str(folder)]


@pytest.mark.parametrize("order", ["shuffled", "as_read"])
def test_workers_and_shards_and_cuts_make_no_difference(
    tmp_path: Path,
    corpus: list[str],
    tokenizer_folder: Path,
    texts: list[str],
    order: Literal["shuffled", "as_read"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near = 0.6 if importlib.util.find_spec("rensa") else None
    settings = replace(SETTINGS, order=order, holdout=0.0, holdout_tokens=3000, near_duplicates=near)
    items = tuple(EvaluationItem(f"q{number}", (text[200:600],)) for number, text in enumerate(texts[::9]))
    evaluation = [EvaluationSet("planted", "planted.jsonl", "0", items)]
    single = tmp_path / "single"
    prepared = prepare(corpus, tokenizer_folder, single / "x", settings, evaluation=evaluation, workers=1)
    assert prepared.validation is not None and prepared.validation.tokens >= 3000
    assert prepared.training.rejected == 2 and prepared.training.duplicates == 80
    assert prepared.training.contaminated and prepared.training.near_duplicates == (None if near is None else 1)
    expected = digests(single)
    assert len(expected) == (14 if near is None else 15)
    prepare(corpus, tokenizer_folder, tmp_path / "many" / "x", settings, evaluation=evaluation, workers=4)
    assert digests(tmp_path / "many") == expected

    for shard in (3, 1, 2):
        assert not (tmp_path / "shards" / "x.idx").exists()
        output = tmp_path / "shards" / "x"
        part = Shard(shard, 3)
        done = prepare_shard(corpus, tokenizer_folder, output, settings, part, evaluation=evaluation, workers=1)
        assert done.pieces > 0
    merged = merge(tmp_path / "shards" / "x")
    assert digests(tmp_path / "shards") == expected
    assert merged.training == prepared.training

    # A piece that holds everything, and portions of a few documents.
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 1 << 20)
    monkeypatch.setattr(join, "PORTION_BYTES", 4000)
    prepare(corpus, tokenizer_folder, tmp_path / "whole" / "x", settings, evaluation=evaluation)
    assert digests(tmp_path / "whole") == expected


def test_a_merge_says_what_is_missing(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    output = tmp_path / "x"
    with pytest.raises(BadInput, match="holds no shards"):
        merge(output)
    prepare_shard(corpus, tokenizer_folder, output, SETTINGS, Shard(1, 2), workers=1)
    with pytest.raises(BadInput, match=r"are not tokenized yet or damaged: piece .*Run the same command again"):
        merge(output)
    # A single run goes on with what shards have done.
    assert prepare(corpus, tokenizer_folder, output, SETTINGS, workers=1).training.documents > 0


def test_a_shard_of_another_call_is_refused(tmp_path: Path, corpus: list[str], tokenizer_folder: Path) -> None:
    output = tmp_path / "x"
    prepare_shard(corpus, tokenizer_folder, output, SETTINGS, Shard(1, 2), workers=1)
    other = PrepareSettings(seed=3, holdout=0.1)
    with pytest.raises(BadInput, match=r"holds shards of another call \(other .*seed.*holdout"):
        prepare_shard(corpus, tokenizer_folder, output, other, Shard(2, 2), workers=1)
    with pytest.raises(BadInput, match="cannot be shared among shards"):
        prepare_shard(["-"], tokenizer_folder, tmp_path / "y", SETTINGS, Shard(1, 2))


def test_settings_of_the_last_pass_may_change_between_calls(
    tmp_path: Path, corpus: list[str], tokenizer_folder: Path
) -> None:
    output = tmp_path / "x"
    strict = PrepareSettings(id_key="id", max_rejected=0.0)
    with pytest.raises(BadInput, match="were rejected"):
        prepare(corpus, tokenizer_folder, output, strict)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "x.pieces").glob("*.run")}
    prepare(corpus, tokenizer_folder, tmp_path / "y", SETTINGS)
    with pytest.raises(BadInput, match="were rejected"):
        prepare(corpus, tokenizer_folder, output, PrepareSettings(id_key="id", max_rejected=0.001, holdout=0.2))
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "x.pieces").glob("*.run")}
    assert again == times


SMALL_PIECES = (
    "import sys; from megatron_cpt.preparation import pieces; from megatron_cpt.commands.dispatch import main; "
    "pieces.SMALLEST_PIECE = 200_000; pieces.BLOCK = 50_000; "
    "sys.exit(main(['prepare', *sys.argv[1:], '--quiet', '--no-fast']))"
)


def run(words: list[str]) -> "subprocess.Popen[bytes]":
    """The command with smaller pieces, without the fast library, so that it takes a second or two."""
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_PIECES, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def pieces_done(output: Path) -> set[str]:
    """The pieces that have a record, each with the time when it was written."""
    runs = (run for run in output.glob("x.pieces/*.run") if run.with_suffix(".json").exists())
    return {f"{run.name} {run.stat().st_mtime_ns}" for run in runs}


@pytest.mark.ci
def test_any_kill_loses_no_more_than_a_piece(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    # 1.6 MB: eight pieces.
    corpus = str(write_jsonl("a.jsonl", [f"{number} {text}" for number in range(20) for text in texts]))
    output = tmp_path / "out"
    output.mkdir()
    items = [json.dumps({"text": text[200:600]}) for text in texts[::9] if len(text) > 600]
    (tmp_path / "items.jsonl").write_text("\n".join(items))
    words = [corpus, "--tokenizer", str(tokenizer_folder), "--output", str(output / "x"), "--holdout", "20%"]
    words += ["--decontaminate", str(tmp_path / "items.jsonl"), "--decontaminate-action", "count"]
    near = importlib.util.find_spec("rensa") is not None
    words += ["--dedup", "minhash"] if near else []
    assert run([*words, "--workers", "1"]).wait(60) == 0
    expected = digests(output)
    assert len(expected) == 10 + near
    for path in output.iterdir():
        path.unlink()

    kept: set[str] = set()
    for wanted in (2, 5):
        process = run([*words, "--workers", "2"])
        deadline = time.monotonic() + 60
        while len(pieces_done(output)) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        done = pieces_done(output)
        assert kept <= done
        kept = done
        assert not idx_path(output / "x").exists()
    assert run([*words, "--workers", "3"]).wait(60) == 0
    assert digests(output) == expected


def test_a_kill_over_an_older_dataset_leaves_the_old_or_the_new_one(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    words = ["--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out" / "x"), "--overwrite"]
    old, new = str(write_jsonl("old.jsonl", texts[:20])), str(write_jsonl("new.jsonl", texts))
    right = set()
    for corpus in (new, old):
        assert run([corpus, *words]).wait(60) == 0
        right.add(tuple(digests(tmp_path / "out")[name] for name in ("x.bin", "x.idx")))
    for moment in (0.4, 0.6):
        process = run([new, *words])
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        if idx_path(tmp_path / "out" / "x").exists():
            pair = [idx_path(tmp_path / "out" / "x"), bin_path(tmp_path / "out" / "x")]
            index, data = (hashlib.sha256(path.read_bytes()).hexdigest() for path in pair)
            assert (data, index) in right
    assert run([new, *words]).wait(60) == 0


def test_a_killed_worker_ends_the_run_with_an_error_and_the_next_one_goes_on(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = str(write_jsonl("a.jsonl", [f"{number} {text}" for number in range(20) for text in texts]))
    words = [corpus, "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "out" / "x")]
    process = run([*words, "--workers", "2"])
    deadline = time.monotonic() + 30
    workers: list[psutil.Process] = []
    while len(workers) < 2 and time.monotonic() < deadline:
        workers = psutil.Process(process.pid).children()
    os.kill(workers[0].pid, signal.SIGKILL)
    assert process.wait(10) == 1
    assert process.stderr is not None
    assert b"was killed by signal 9 while it had" in process.stderr.read()
    assert not any(worker.is_running() for worker in workers)
    assert not idx_path(tmp_path / "out" / "x").exists()
    assert run(words).wait(60) == 0


def test_standard_input_goes_on_where_it_was_killed(tmp_path: Path, tokenizer_folder: Path, texts: list[str]) -> None:
    content = "".join(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(14) for text in texts).encode()
    words = ["-", "--tokenizer", str(tokenizer_folder), "--workers", "2"]
    whole = tmp_path / "whole"
    command = [sys.executable, "-c", SMALL_PIECES, *words]
    subprocess.run([*command, "--output", str(whole / "x")], input=content, check=True, stdout=subprocess.DEVNULL)
    cut = tmp_path / "cut"
    process = subprocess.Popen([*command, "--output", str(cut / "x")], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(content[: len(content) * 3 // 4])
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while not list(cut.glob("x.pieces/*-0*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in cut.glob("x.pieces/*-0*.json")}
    assert kept
    subprocess.run([*command, "--output", str(cut / "x")], input=content, check=True, stdout=subprocess.DEVNULL)
    assert digests(cut) == digests(whole)
