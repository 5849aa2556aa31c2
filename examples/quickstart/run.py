"""The main job, end to end, on text that every machine has: `make quickstart`.

Each stage is a command that a user types, shown before it runs; what is whole already is used again.
Everything is written under ./quickstart.
"""

import subprocess
import sys
import time
from pathlib import Path

from corpora import standard_library, write_corpora
from tokenizer import write_base_folder

HERE = Path(__file__).parent
OUT = Path("quickstart")
COMMAND = str(Path(sys.executable).with_name("megatron-cpt"))
CORPORA = ("general", "domain")
SUBSET_TOKENS = "120K"


def main() -> None:
    """Runs all stages from the repository's root."""
    started = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    make_corpora()
    for name in CORPORA:
        prepare(name)
    select_subset()
    train("base", "pretrain the base model on general text; 2 processes", processes=2)
    train("naive", "continue it on the whole domain, no replay")
    train("mitigated", "continue it on a subset for several epochs, with replay; 2 processes", processes=2)
    stage("compare the exported model's logits in transformers with Megatron's")
    newest = sorted((OUT / "mitigated/checkpoints").glob("step-*"))[-1]
    call("convert", "verify", str(newest), str(OUT / "mitigated/hf"))
    stage("report")
    call("report", str(OUT / "naive"), str(OUT / "mitigated"), "--output", str(OUT), "--png")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Open {OUT / 'report.html'}")


def make_corpora() -> None:
    """Writes both corpora, and the tokenizer and model description made from them."""
    stage("corpora from Python's own standard library, and a tokenizer")
    corpora = [OUT / "text" / f"{name}.jsonl" for name in CORPORA]
    if not all(corpus.is_file() for corpus in corpora):
        write_corpora(standard_library(), OUT / "text")
    if not (OUT / "base-config/config.json").is_file():
        write_base_folder(corpora, OUT / "base-config")
    for corpus in corpora:
        print(f"{corpus}: {corpus.stat().st_size / 1e6:.1f} MB")


def prepare(name: str) -> None:
    """Documents to tokens, 4 % of the documents held out for validation."""
    stage(f"prepare {name}")
    corpus, prefix = OUT / "text" / f"{name}.jsonl", OUT / "data" / name
    call("prepare", str(corpus), "--tokenizer", str(OUT / "base-config"), "--output", str(prefix), "--holdout", "4%")


def select_subset() -> None:
    """A fixed random subset of the domain. (With a score beside the dataset: `--by ngram --keep lowest`.)"""
    name = OUT / "data/domain-subset"
    stage("select a subset of the domain")
    if name.with_name(f"{name.name}.selection.json").is_file():
        print(f"{name}.selection.json is there")
        return
    call("select", str(OUT / "data/domain"), "--tokens", SUBSET_TOKENS, "--keep", "random", "--output", str(name))


def train(name: str, what: str, processes: int = 1) -> None:
    """One run, described by NAME.yaml beside this file."""
    stage(what)
    call("train", str(HERE.relative_to(Path.cwd()) / f"{name}.yaml"), "--nproc", str(processes))


def stage(title: str) -> None:
    """Says what comes next."""
    print(f"\n== {title}", flush=True)


def call(*words: str) -> None:
    """Shows and runs a megatron-cpt command; its failure ends the quickstart with its exit code."""
    print(f"$ megatron-cpt {' '.join(words)}", flush=True)
    code = subprocess.call([COMMAND, *words])
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
