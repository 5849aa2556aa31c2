import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import psutil
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.manifest import load_manifest
from tests.texts import save_tokenizer
from tests.tokenizer.kinds import write_kind


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The words of a call that prepares the interpreter's help topics, byte by byte."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["</s>", *alphabet])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"body": text}) + "\n" for text in topics.values() if len(text) < 6000))
    return [str(corpus), "--tokenizer", str(folder), "--output", str(tmp_path / "out"), "--text-key", "body"]


def test_prepare_select_inspect(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *words, "--holdout", "20%", "--quiet"]) == 0
    manifest = load_manifest(tmp_path / "out")
    told = capsys.readouterr().out
    assert f"out: {manifest.documents:,} documents, {manifest.tokens:,} tokens" in told
    assert "out.validation: " in told

    assert main(["prepare", *words, "--holdout", "0.2", "--quiet"]) == 0
    assert "nothing was done" in capsys.readouterr().out

    assert main(["inspect", str(tmp_path / "out"), "--show", "1", "--verify"]) == 0
    told = capsys.readouterr().out
    assert "verified" in told
    assert "*****" in told
    assert "score" not in told and told.count("#####") >= 1

    np.save(tmp_path / "out.quality.npy", np.arange(manifest.documents, dtype=np.float32))
    assert main(["inspect", str(tmp_path / "out"), "--show", "0"]) == 0
    assert "score quality\n  0 to " in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out"), "--show", "0", "--no-histograms"]) == 0
    assert "#####" not in capsys.readouterr().out

    chosen = ["--tokens", "10K", "--keep", "random", "--output", str(tmp_path / "half")]
    assert main(["select", str(tmp_path / "out"), *chosen]) == 0
    assert "half.selection.json: " in capsys.readouterr().out


def test_several_keys_give_a_dataset_each(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "two.jsonl"
    corpus.write_text("".join(json.dumps({"title": f"t{n}", "body": f"b{n} b"}) + "\n" for n in range(5)))
    asked = [str(corpus), *words[1:-2], "--quiet", "--order", "as_read", "--no-fast"]
    assert main(["prepare", *asked, "--text-key", "title", "body"]) == 0
    assert capsys.readouterr().out.count("5 documents") == 2
    for key in ("title", "body"):
        assert main(["prepare", *asked, "--text-key", key, "--overwrite"]) == 0
        for ending in ("bin", "idx", "documents.npy"):
            of_key = (tmp_path / f"out_{key}.{ending}").read_bytes()
            assert of_key == (tmp_path / f"out.{ending}").read_bytes()


def test_evaluation_items_are_left_out_and_told(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [json.loads(line)["body"] for line in Path(words[0]).read_text().splitlines()]
    lines = [{"task": "quiz", "question": text[:400], "choices": ["yes", "no"], "answer": 0} for text in texts[:3]]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = [*words, "--quiet", "--decontaminate", str(tmp_path / "quiz.jsonl")]
    assert main(["prepare", *asked, "--decontaminate-action", "count"]) == 0
    assert "overlap with quiz: 3 of 3 items, 3 documents kept" in capsys.readouterr().out
    assert main(["prepare", *asked]) == 2
    assert "made otherwise (other contaminated)" in capsys.readouterr().err
    assert main(["prepare", *asked, "--overwrite"]) == 0
    told = capsys.readouterr().out
    assert "overlap with quiz: 3 of 3 items, 3 documents left out" in told and "out.contaminated.jsonl" in told
    assert load_manifest(tmp_path / "out").contaminated == 3


def test_a_progress_bar_shows_bytes_and_documents(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *words]) == 0
    shown = capsys.readouterr().err
    assert "B/s" in shown
    assert "documents" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--holdout", "120%"], "--holdout 120%: is not a share."),
        (["--holdout", "5"], "--holdout 5: may be meant as a percentage or as a number of tokens. Write 5%"),
        (["--output", "results/"], "--output results/: is a folder. Give a prefix in it, such as results/corpus."),
        (["--eod", "<eod>"], "--eod <eod>: is no token"),
        (["--bos", "always"], "--bos always: needs a bos_token"),
        (["--text-key", "text"], "were rejected"),
        (["--tokenizer", "nowhere"], "nowhere: is not a tokenizer folder"),
    ],
)
def test_bad_input_returns_2_and_says_what_to_do(
    words: list[str], change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *words, *change, "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_a_broken_dataset_returns_3(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *words, "--quiet"]) == 0
    data = tmp_path / "out.bin"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    assert main(["inspect", str(tmp_path / "out"), "--show", "0"]) == 0
    assert main(["inspect", str(tmp_path / "out"), "--verify"]) == 3
    assert "out.bin" in capsys.readouterr().err


@pytest.mark.parametrize("budget", ["many", "1e30", "0"])
def test_an_impossible_budget_returns_2(words: list[str], tmp_path: Path, budget: str) -> None:
    assert main(["prepare", *words, "--quiet"]) == 0
    output = str(tmp_path / "s")
    assert main(["select", str(tmp_path / "out"), "--tokens", budget, "--keep", "random", "--output", output]) == 2


def test_documents_cannot_steer_the_terminal(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(words[0]).write_text(json.dumps({"body": "red \x1b[31m text"}) + "\n")
    assert main(["prepare", *words, "--quiet"]) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "red \\x1b[31m text" in told


def test_text_that_a_tokenizer_cannot_say_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BPE without a token for it drops it, word pieces put the unknown token, and bytes say everything."""
    texts = ["a stroke of the brain 漢字漢字 наука"] * 30
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"{text} {n}"}) + "\n" for n, text in enumerate(texts))
    )
    silent = tokenizers.Tokenizer(models.BPE())
    silent.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False)
    silent.train_from_iterator([text.replace("漢字", "").replace("наука", "0123456789") for text in texts], trainer)
    save_tokenizer(tmp_path / "silent", silent, {"eos_token": "</s>"})
    for kind in ("byte_level", "byte_fallback", "unigram", "word_pieces"):
        write_kind(kind, tmp_path / kind)
    told, manifests = {}, {}
    for kind in ("silent", "byte_level", "byte_fallback", "unigram", "word_pieces"):
        words = [
            str(tmp_path / "a.jsonl"),
            "--tokenizer",
            str(tmp_path / kind),
            "--output",
            str(tmp_path / "out" / kind),
        ]
        assert main(["prepare", *words, "--quiet", "--no-fast"]) == 0
        told[kind] = capsys.readouterr().out
        manifests[kind] = load_manifest(tmp_path / "out" / kind)
        assert "tokens a word" in told[kind] and "bytes a token" in told[kind]
        assert main(["inspect", words[-1], "--show", "0"]) == 0
        assert "lost_share" in capsys.readouterr().out
    for kind in ("byte_level", "byte_fallback"):
        assert (manifests[kind].unknown_share or 0, manifests[kind].lost_share) == (0, 0)
        assert "warning" not in told[kind]
    # 22 of some 41 bytes that are no blanks.
    for kind in ("silent", "unigram", "word_pieces"):
        assert 0.5 < (manifests[kind].lost_share or 0) < 0.65
        assert "of the text, in bytes, does not come back from its tokens" in told[kind]
    assert manifests["silent"].unknown_share is None or manifests["silent"].unknown_share == 0
    for kind in ("unigram", "word_pieces"):
        assert (manifests[kind].unknown_share or 0) > 0.01
        assert "of the tokens stand for text that the tokenizer cannot say" in told[kind]


def test_a_word_model_without_its_unknown_token_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "known": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    save_tokenizer(tmp_path / "words", backend, {"eos_token": "</s>"})
    (tmp_path / "a.jsonl").write_text('{"text": "known unknown"}\n')
    words = [str(tmp_path / "a.jsonl"), "--tokenizer", str(tmp_path / "words"), "--output", str(tmp_path / "out")]
    assert main(["prepare", *words, "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "words: cannot say every text (WordLevel error" in told and "Traceback" not in told


def test_a_name_that_is_no_text_is_named(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    shutil.copy(words[0], odd)
    assert main(["prepare", odd, *words[1:], "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "\\udcff.jsonl': has a name that is not UTF-8 text." in told


def test_ctrl_c_ends_every_process_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    """As a terminal sends it: to the whole process group."""
    text = Path(words[0]).read_text()
    Path(words[0]).write_text("".join(line.replace('{"', f'{{"n": {n}, "') for n in range(240) for line in [text]))
    command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "prepare", *words, "--no-fast", "--workers", "2"]
    command += ["--keep-duplicates"]
    # What a shell starts in the background ignores the signal, and so would what the tests start there.
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard
    ) as process:
        deadline = time.monotonic() + 60
        while len(psutil.Process(process.pid).children()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        workers = psutil.Process(process.pid).children()
        os.killpg(process.pid, signal.SIGINT)
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in told
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize("keep", ["lowest", "gumbel"])
def test_infinite_scores_are_refused(
    words: list[str], tmp_path: Path, keep: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *words, "--quiet"]) == 0
    scores = np.arange(load_manifest(tmp_path / "out").documents, dtype=np.float32)
    scores[3] = np.inf
    np.save(tmp_path / "out.q.npy", scores)
    chosen = ["--share", "50%", "--keep", keep, "--by", "q", "--output", str(tmp_path / "s")]
    assert main(["select", str(tmp_path / "out"), *chosen]) == 2
    assert "score q: is infinite for 1 documents of" in capsys.readouterr().err
