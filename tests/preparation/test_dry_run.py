"""`prepare --limit N`: what becomes of the first documents, and nothing written."""

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.manifest import load_manifest

WriteJsonl = Callable[..., Path]


def everything(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_first_documents_are_shown_as_they_would_be_taken_and_nothing_is_written(
    tmp_path: Path, tokenizer_folder: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl"
    lines = [json.dumps({"text": text, "score": number}) for number, text in enumerate(texts[:9])]
    lines[4:4] = ["", '{"text": "no end', '{"text": "not scored"}']
    first.write_bytes(gzip.compress("\n".join(lines).encode()))
    second.write_text("".join(json.dumps({"text": text, "score": 9}) + "\n" for text in texts[9:]))
    words = ["prepare", str(first), str(second), "--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet"]
    words += ["--output", f"{tmp_path}/out", "--where", "score > 0", "--max-rejected", "20%"]
    before = everything(tmp_path)
    assert main([*words, "--limit", "14"]) == 0
    assert everything(tmp_path) == before
    told = capsys.readouterr().out
    assert "dry run: 14 documents were read, nothing is written" in told
    assert "left out 1 documents by --where" in told and "rejected 2 documents:" in told
    assert f"{first}, line 6: broken JSON" in told
    assert f"{first}, line 7: no score, which --where asks for" in told
    assert f"--- {first}, line 2: {len(texts[1]):,} characters" in told and texts[1][:50] in told
    assert "warning" not in told

    # The counts are those of the dataset, where the input ends with the limit.
    kept = [*texts[1:9], *texts[9:12]]
    assert len(set(kept)) == len(kept)
    ended = tmp_path / "ended.jsonl"
    ended.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept))
    capsys.readouterr()
    assert main(["prepare", str(ended), *words[3:8], "--output", f"{tmp_path}/ended"]) == 0
    manifest = load_manifest(tmp_path / "ended")
    counts = f"{manifest.documents:,} documents, {manifest.tokens:,} tokens, {manifest.bytes:,} bytes of text"
    assert counts in capsys.readouterr().out and counts in told


def test_documents_cannot_steer_the_terminal(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"text": "red \x1b[31m text", "s": 1}, {"text": "x", "s": ["\x1b]0;title\x07"]}]
    (tmp_path / "a\x1b[2J.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--tokenizer", str(tokenizer_folder), "--output", f"{tmp_path}/out", "--where", "s == 1", "--limit", "9"]
    assert main(["prepare", str(tmp_path), *words]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told and "red \\x1b[31m text" in told


def test_a_dry_run_of_standard_input_and_of_what_would_fail(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["prepare", "-", "--tokenizer", str(tokenizer_folder), "--output", f"{tmp_path}/out", "--limit", "40"]
    stream = io.BytesIO(b'{"body": "one"}\n' * 3 + b'{"text": "two <|endoftext|> </s>"}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(stream)))
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "4 documents were read" in told and "line 3: no key 'text'" in told
    assert "more than --max-rejected, 1.00%" in told
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--shard", "1/2"]) == 2
    assert main([*words, "--where", "score >"]) == 2
