"""PREFIX.pieces has one owner, and what it holds is of one job and what was written, or is not used."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.manifest import verify_dataset
from megatron_cpt.preparation import pieces
from megatron_cpt.preparation.contamination import EvaluationItem, EvaluationSet
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import Shard, merge, prepare, prepare_shard
from megatron_cpt.tokenizer.tokenizer import Tokenizer
from tests.preparation.test_interruptions import SMALL_PIECES

WriteJsonl = Callable[..., Path]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_second_call_into_a_prefix_is_refused_and_the_first_keeps_its_corpus(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    """The first is held in the middle, as a slow corpus would hold it, and goes on when the second is gone."""
    first = write_jsonl("a.jsonl", [f"{n} {text}" for n in range(8) for text in texts])
    second = write_jsonl("b.jsonl", [f"other {text}" for text in texts])
    words = ["--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "z"), "--workers", "1"]
    command = [sys.executable, "-c", SMALL_PIECES]
    with subprocess.Popen([*command, str(first), *words], stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: list(tmp_path.glob("z.pieces/*-0*.json")))
        process.send_signal(signal.SIGSTOP)
        for more in ([], ["--overwrite"], ["--shard", "1/2"]):
            refused = subprocess.run([*command, str(second), *words, *more], capture_output=True, text=True)
            assert refused.returncode == 2
            assert f"z: is being prepared by process {process.pid} on" in refused.stderr
            assert refused.stderr.count("\n") == 1
        process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    manifest = verify_dataset(tmp_path / "z")
    assert manifest.sources is not None and [source.path for source in manifest.sources] == [str(first)]
    assert manifest.documents == 8 * len(texts)
    assert not (tmp_path / "z.pieces").exists()


def test_pieces_of_another_job_are_not_taken(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    """Where a file system has no locks, and two shards of different calls write into one folder."""
    one, other = write_jsonl("a.jsonl", texts[:40]), write_jsonl("b.jsonl", texts[40:])
    prepare_shard([str(one)], tokenizer_folder, tmp_path / "z", None, Shard(1, 1))
    prepare_shard([str(other)], tokenizer_folder, tmp_path / "y", None, Shard(1, 1))
    for path in (tmp_path / "y.pieces").iterdir():
        shutil.copy(path, tmp_path / "z.pieces" / path.name)
    # The description is now of the other call, and so is what is joined.
    assert merge(tmp_path / "z").training.documents == len(texts) - 40


def test_a_folder_that_prepare_did_not_make_is_left_alone(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path
) -> None:
    (tmp_path / "z.pieces").mkdir()
    (tmp_path / "z.pieces" / "thesis.md").write_text("the only copy")
    corpus = [str(write_jsonl("a.jsonl", ["one"]))]
    with pytest.raises(BadInput, match=r"z\.pieces: is where pieces would be kept, and holds .* such as thesis\.md"):
        prepare(corpus, tokenizer_folder, tmp_path / "z")
    assert [path.name for path in (tmp_path / "z.pieces").iterdir()] == ["thesis.md"]


def test_what_nfs_keeps_of_open_files_is_no_obstacle(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path
) -> None:
    corpus = [str(write_jsonl("a.jsonl", ["one", "two"]))]
    prepare_shard(corpus, tokenizer_folder, tmp_path / "z", None, Shard(1, 2))
    (tmp_path / "z.pieces" / ".nfs00000000039a1c5500000001").touch()
    prepare_shard(corpus, tokenizer_folder, tmp_path / "z", None, Shard(2, 2))
    assert merge(tmp_path / "z").training.documents == 2


def test_a_tokenizer_may_be_in_another_folder_on_another_machine(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = [str(write_jsonl("a.jsonl", texts))]
    copy = shutil.copytree(tokenizer_folder, tmp_path / "copy")
    prepare_shard(corpus, tokenizer_folder, tmp_path / "z", None, Shard(1, 2))
    prepare_shard(corpus, copy, tmp_path / "z", None, Shard(2, 2))
    assert merge(tmp_path / "z").training.documents == len(texts)
    assert Tokenizer.load(copy).identity == verify_dataset(tmp_path / "z").tokenizer


@pytest.mark.parametrize("kind", ["job.json", "0-000000.json", "1.end.json", "evaluation.json"])
def test_a_changed_bit_in_a_description_costs_no_document(
    tmp_path: Path,
    tokenizer_folder: Path,
    texts: list[str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its bytes in turn, some at a time: merge refuses, and the shard run again brings the same dataset."""
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 20_000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join([*lines[:30], "{broken"]))
    (folder / "b.jsonl").write_text("\n".join([*lines[30:], "[]"]))
    subprocess.run(["gzip", "-n", "b.jsonl"], cwd=folder, check=True)
    evaluation = [EvaluationSet("planted", "planted.jsonl", "0", (EvaluationItem("q", (texts[3][:600],)),))]
    settings = PrepareSettings(max_rejected=0.5, contaminated="count")

    def shard() -> None:
        asked = ([str(folder)], tokenizer_folder, tmp_path / "z", settings, Shard(1, 1))
        prepare_shard(*asked, evaluation=evaluation, workers=1, fast=False)

    shard()
    kept = shutil.copytree(tmp_path / "z.pieces", tmp_path / "kept")
    right = merge(tmp_path / "z").training
    (path,) = [path.relative_to(kept) for path in kept.iterdir() if path.name.endswith(kind)]
    content = (kept / path).read_bytes()
    refused = 0
    for place in range(1, len(content), max(11, len(content) // 8)):
        for ending in ("bin", "idx", "manifest.json", "documents.npy", "rejected.jsonl", "contaminated.jsonl"):
            (tmp_path / f"z.{ending}").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "z.pieces", ignore_errors=True)
        shutil.copytree(kept, tmp_path / "z.pieces")
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "z.pieces" / path).write_bytes(flipped)
        with pytest.raises((BadInput, IntegrityFault), match=r"damaged|is not what was written"):
            merge(tmp_path / "z")
        refused += 1
        if refused in (3, 6):
            shard()
            assert merge(tmp_path / "z").training == right
    assert refused > 5


@pytest.mark.parametrize("name", ["b.jsonl", "c.jsonl.gz"])
@pytest.mark.parametrize("ending", ["run", "found", "json"])
def test_a_damaged_piece_is_traced_to_its_shard(
    tmp_path: Path,
    tokenizer_folder: Path,
    texts: list[str],
    name: str,
    ending: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message names input, piece and the shard's command, and that command is all that it takes."""
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 20_000)
    lines = [json.dumps({"text": text}) for text in texts]
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, file in enumerate("abc"):
        (folder / f"{file}.jsonl").write_text("\n".join([*lines[number::3], ""]))
    subprocess.run(["gzip", "-n", "c.jsonl"], cwd=folder, check=True)
    items = tmp_path / "items.jsonl"
    # Of each file a document.
    items.write_text("".join(json.dumps({"text": text[:600]}) + "\n" for text in texts[3:6]))
    words = ["prepare", str(folder), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "z"), "--quiet"]
    words += ["--decontaminate", str(items), "--workers", "1", "--no-fast"]
    for shard in ("1/3", "2/3", "3/3"):
        assert main([*words, "--shard", shard]) == 0
    (digest,) = {path.name.partition("-")[0] for path in (tmp_path / "z.pieces").glob("*-*.run")}
    damaged = tmp_path / "z.pieces" / f"{digest}-00000{'abc'.index(name[0])}-000000.{ending}"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert main(["merge", str(tmp_path / "z")]) == 2
    told = capsys.readouterr().err
    assert "1 of " in told and f"piece 1 of {folder / name}: {damaged} is damaged." in told
    again = re.search(r"megatron-cpt prepare \.\.\. --output (\S+) --shard (\d/3); then merge", told)
    assert again and again[1] == str(tmp_path / "z")
    assert main([*words, "--shard", again[2]]) == main(["merge", str(tmp_path / "z")]) == 0
    assert main([*words[:5], str(tmp_path / "y"), *words[6:]]) == 0
    assert (tmp_path / "z.bin").read_bytes() == (tmp_path / "y.bin").read_bytes()


def test_the_checks_of_a_folder_are_of_this_very_file(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of one piece under the name of another: a copy that went wrong."""
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 20_000)
    corpus = [str(write_jsonl("a.jsonl", texts))]
    prepare_shard(corpus, tokenizer_folder, tmp_path / "z", None, Shard(1, 1))
    records = sorted((tmp_path / "z.pieces").glob("*-0*.json"))
    assert len(records) > 2
    for ending in (".json", ".run"):
        shutil.copy(records[0].with_suffix(ending), records[1].with_suffix(ending))
    with pytest.raises(BadInput, match=r"1 of .* are not tokenized yet or damaged"):
        merge(tmp_path / "z")


def test_a_killed_stream_leaves_nothing_that_a_later_call_reads(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    corpus = write_jsonl("a.jsonl.gz", [f"{n} {text}" for n in range(8) for text in texts])
    words = [str(corpus), "--tokenizer", str(tokenizer_folder), "--output", str(tmp_path / "z"), "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-c", SMALL_PIECES, *words], stdout=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("z.pieces/*-0*.json")))
    process.kill()
    process.wait()
    subprocess.run([sys.executable, "-c", SMALL_PIECES, *words], check=True, stdout=subprocess.DEVNULL)
    assert not (tmp_path / "z.pieces").exists()
    prepare([str(corpus)], tokenizer_folder, tmp_path / "whole")
    for ending in ("bin", "idx"):
        now, right = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("z", "whole"))
        assert hashlib.sha256(now).digest() == hashlib.sha256(right).digest()
