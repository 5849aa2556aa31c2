"""What every command says where a disk is full, a place is closed, a reader has gone or a library is missing."""

import gzip
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest

from megatron_cpt import __version__
from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.indexed import IndexedDataset, IndexedWriter
from megatron_cpt.runs.folder import read_status
from tests.workshop import Workshop, write_tokenizer_of

DISPATCH = [sys.executable, "-m", "megatron_cpt.commands.dispatch"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets no file of this process and those that it starts grow beyond some bytes, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("packed", [True, False])
def test_a_full_disk_is_not_blamed_on_the_input(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool
):
    corpus = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    text = (workshop.folder / "domain.jsonl").read_bytes()
    corpus.write_bytes(gzip.compress(text) if packed else text)
    words = ["prepare", str(corpus), "--tokenizer", str(workshop.hf), "--output", str(tmp_path / "x"), "--quiet"]
    with largest_file(20_000):
        assert main(words) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and f"{tmp_path}/x.pieces/" in told and "cannot be written: File too large" in told
    # With room again it goes on.
    assert main(words) == 0


@pytest.mark.ci
def test_a_run_whose_disk_is_full_says_so_in_its_status(workshop: Workshop, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        config = workshop.write_config(disk / "run")
        code = subprocess.run([sys.executable, "-m", "megatron_cpt.train", config], capture_output=True).returncode
        status = read_status(disk / "run" / "status.json")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert code == 1 and status is not None
    assert (status.state, status.exit_code) == ("failed", 1)
    assert status.message is not None and "be written" in status.message


def test_what_a_full_disk_stops_leaves_what_was_there(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["select", workshop.prefix("domain"), "--keep", "random", "--output", str(tmp_path / "s"), "--tokens"]
    assert main([*words, "400"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with largest_file(1000):
        assert main([*words, "10K", "--overwrite"]) == 1
    assert "s.selection.npy: cannot be written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    with IndexedWriter(tmp_path / "pair", np.uint16) as writer:
        writer.add(np.arange(9))
    with (
        largest_file(1000),
        pytest.raises(OSError, match=r"pair\.idx"),
        IndexedWriter(tmp_path / "pair", "u2") as writer,
    ):
        for _ in range(100):
            writer.add(np.arange(1))
    assert IndexedDataset(tmp_path / "pair").token_count == 9
    assert sorted(path.name for path in tmp_path.glob("pair*")) == ["pair.bin", "pair.idx"]


def test_the_version_is_that_of_the_package():
    done = subprocess.run([*DISPATCH, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"megatron-cpt {__version__}\n"
    citation = (Path(__file__).parents[2] / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation


def test_a_reader_that_has_enough_ends_a_command_without_a_word():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*DISPATCH, "--help"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_output_that_cannot_be_written_is_one_message():
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*DISPATCH, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


def test_a_place_that_cannot_be_written_to_is_one_message(workshop: Workshop, capsys: pytest.CaptureFixture[str]):
    domain, hf = workshop.prefix("domain"), str(workshop.hf)
    for words in (
        ["prepare", f"{domain}.jsonl", "--tokenizer", hf, "--output", "/dev/null/x", "--quiet"],
        ["select", domain, "--tokens", "500", "--keep", "random", "--output", "/dev/null/x"],
    ):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "/dev/null" in told


def test_a_library_that_is_missing_is_named_with_what_installs_it(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    monkeypatch.delitem(sys.modules, "megatron_cpt.preparation.table", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    words = ["prepare", str(tmp_path / "a.parquet"), "--tokenizer", str(workshop.hf), "--output", str(tmp_path / "x")]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "pip install pyarrow" in told


def test_names_and_words_that_are_no_text_are_one_message(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokenizer = ["--tokenizer", str(workshop.hf)]
    corpus = f"{tmp_path}/corpus\udcff.jsonl"
    Path(corpus).write_text('{"text": "the river"}\n')
    config = tmp_path / "run.yaml"
    config.write_text('run:\n  folder: "a\\ud800"\n')
    for words, said in (
        (["prepare", corpus, *tokenizer, "--output", str(tmp_path / "out")], "not UTF-8 text"),
        (["train", str(config)], "line 2, column 11: the text holds half a character ('\\ud800')"),
        (["convert", "extend", str(workshop.hf), str(tmp_path / "hf"), "--new-tokens", "a\udcff"], "not UTF-8 text"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error


def test_a_config_of_absurd_sizes_is_one_message(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "hf"
    folder.mkdir()
    write_tokenizer_of(workshop, folder)
    config = orjson.loads((workshop.hf / "config.json").read_bytes())
    (folder / "config.json").write_bytes(orjson.dumps(config | {"hidden_size": 10**12, "vocab_size": 10**12}))
    path = workshop.write_config(tmp_path / "run", model={"hf": str(folder), "weights": "random"})
    for words in (
        ["plan", str(path)],
        ["train", str(path)],
        ["convert", "from-hf", str(folder), str(tmp_path / "out")],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "hidden_size = 1000000000000: no model has more than 1,000,000" in error
        assert "vocab_size = 1000000000000: no model has more than 100,000,000" in error
        assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "x", "--shots", "5"], "evaluate --shots: is called `--num-fewshot` since version 0.2."),
        (["evaluate", "x", "--examples=a.jsonl"], "evaluate --examples: is called `--fewshot-file` since version 0.2."),
        (["average", "x", "y", "--shares", "1", "2", "--output", "z"], "average --shares: is called `--weights`"),
        (["evaluate", "x", "--harness", "arc_easy"], "evaluate --harness: is called `--lm-eval` since version 0.2."),
        (["convert", "record", "run.yaml", "out.json"], "convert record: is called `record-reference`"),
    ],
)
def test_an_old_flag_names_the_new_one(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
    new = told.split("`")[1]
    with pytest.raises(SystemExit):  # argparse's help
        main([*words[:1], *([new] if words[0] == "convert" else []), "--help"])
    assert new in capsys.readouterr().out


@pytest.mark.parametrize("words", [["law", "fit", "a.csv"], ["report", "x"], ["evaluate", "x"], ["sweep", "arms.yaml"]])
def test_only_datasets_are_replaced_by_a_flag(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--overwrite"]) == 2
    assert "Remove the result first, or give another name." in capsys.readouterr().err
    with pytest.raises(SystemExit):  # argparse's help
        main(["score", "--help"])
    assert "--overwrite" in capsys.readouterr().out
