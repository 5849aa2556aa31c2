"""`megatron-cpt quickstart`: the main job, end to end, on text that every machine has.

Each stage is a command that a user types, shown before it runs; what is whole already is used again. Everything is
written under ./quickstart, the configurations of the three runs too.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from megatron_cpt.commands.parsers import command_parser
from megatron_cpt.quickstart.base_folder import write_base_folder
from megatron_cpt.quickstart.corpora import standard_library, write_corpora
from megatron_cpt.runs.folder import ExitCode, write_durably
from megatron_cpt.runs.processes import handle_stop_signals, restore_signal_handlers

_OUT = Path("quickstart")
_CORPORA = ("general", "domain")
_SUBSET_TOKENS = "120K"


class _StageFailed(Exception):
    """A command failed, and has said why; its exit code is the argument."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser("quickstart", __doc__, "megatron-cpt quickstart")
    top.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of all three runs")
    return top


def main(arguments: list[str]) -> int:
    """Runs all stages here. Returns the exit code of the first that fails."""
    args = parser().parse_args(arguments)
    try:
        _run_stages(args.overrides)
    except _StageFailed as failed:
        return int(failed.args[0])
    return ExitCode.DONE


def _run_stages(overrides: Sequence[str]) -> None:
    """Corpora, datasets, three runs, the comparison with transformers, the report."""
    started = time.perf_counter()
    _OUT.mkdir(exist_ok=True)
    _make_corpora()
    for name in _CORPORA:
        prepare(name)
    _select_subset()
    train("base", "pretrain the base model on general text; 2 processes", overrides, processes=2)
    train("naive", "continue it on the domain alone, no replay", overrides)
    train("mitigated", "continue it on a subset for several epochs, with replay; 2 processes", overrides, processes=2)
    stage("compare the exported model's logits in transformers with Megatron's")
    newest = sorted((_OUT / "mitigated/checkpoints").glob("step-*"))[-1]
    call("convert", "verify", str(newest), str(_OUT / "mitigated/hf"))
    stage("report")
    call("report", str(_OUT / "naive"), str(_OUT / "mitigated"), "--output", str(_OUT), "--png")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Open {_OUT / 'report.html'}")


def _make_corpora() -> None:
    """Writes both corpora, and the tokenizer and model description made from them."""
    stage("corpora from Python's own standard library, and a tokenizer")
    corpora = [_OUT / "text" / f"{name}.jsonl" for name in _CORPORA]
    if not all(corpus.is_file() for corpus in corpora):
        write_corpora(standard_library(), _OUT / "text")
    if not (_OUT / "base-config/config.json").is_file():
        write_base_folder(corpora, _OUT / "base-config")
    for corpus in corpora:
        print(f"{corpus}: {corpus.stat().st_size / 1e6:.1f} MB")


def prepare(name: str) -> None:
    """Documents to tokens, 4 % of the documents held out for validation."""
    stage(f"prepare {name}")
    corpus, prefix = _OUT / "text" / f"{name}.jsonl", _OUT / "data" / name
    call("prepare", str(corpus), "--tokenizer", str(_OUT / "base-config"), "--output", str(prefix), "--holdout", "4%")


def _select_subset() -> None:
    """A fixed random subset of the domain. (With a score beside the dataset: `--by ngram --keep lowest`.)"""
    name = _OUT / "data/domain-subset"
    stage("select a subset of the domain")
    if name.with_name(f"{name.name}.selection.json").is_file():
        print(f"{name}.selection.json is there")
        return
    call("select", str(_OUT / "data/domain"), "--tokens", _SUBSET_TOKENS, "--keep", "random", "--output", str(name))


def train(name: str, what: str, overrides: Sequence[str], processes: int = 1) -> None:
    """One run, described by NAME.yaml. A file that a user has changed stays as it is."""
    stage(what)
    config = _OUT / f"{name}.yaml"
    if not config.exists():
        write_durably(config, files("megatron_cpt.quickstart").joinpath(config.name).read_text())
    call("train", str(config), *overrides, "--nproc", str(processes))


def stage(title: str) -> None:
    """Says what comes next."""
    print(f"\n== {title}", flush=True)


def call(*words: str) -> None:
    """Shows and runs a megatron-cpt command, and waits for it when it is asked to stop: a run saves then.

    Raises _StageFailed with its exit code.
    """
    print(f"$ megatron-cpt {' '.join(words)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "megatron_cpt.commands.dispatch", *words])
    # SIGTERM for Ctrl-C too, which the command hears from the terminal itself: a second one would end it at once.
    before = handle_stop_signals(lambda *_: process.terminate())
    try:
        code = process.wait()
    finally:
        restore_signal_handlers(before)
    if code:
        raise _StageFailed(code if code > 0 else ExitCode.OTHER)
