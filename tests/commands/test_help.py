"""The commands of README.md, and the examples in the help of every command, run as printed.

One world serves all: a model folder, compressed text, questions and loss curves under the names that README and help
use. README's commands come first, in bash; the examples then run in what they left. Two things differ from what is
printed: `hf download` is left out (no network), and 8 processes are 2. README's run takes half a minute: commands that
nobody runs as they are printed stop being right.
"""

import argparse
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import orjson
import pytest
import yaml
import zstandard

from megatron_cpt.commands.dispatch import COMMANDS, main, usage
from megatron_cpt.runs.folder import read_status
from tests.workshop import WORDS, Workshop, sentences

ROOT = Path(__file__).parents[2]
FEWER = {"--nproc 8": "--nproc 2", "--train-samples 120000 --seq-length 8192": "--train-samples 300 --seq-length 64"}
"""What is smaller here than printed: processes, and a blend of tiny datasets."""
STARTS_PROCESSES = ("train", "evaluate")
ORDER = [name for name in COMMANDS if name != "quickstart"]  # tests/quickstart runs it

SCRIPT = """#!/bin/bash
DATA="0.7 data/medicine 0.3 data/general"
ARGS=(--num-layers 4 --seq-length 64 --train-iters 20 --lr 3e-5 --global-batch-size 8 --micro-batch-size 1 --bf16)
torchrun --nproc_per_node 8 pretrain_gpt.py ${ARGS[@]} --data-path $DATA
"""

LLAMA_FACTORY = """stage: pt
finetuning_type: full
dataset: medicine
cutoff_len: 64
per_device_train_batch_size: 1
num_train_epochs: 1
bf16: true
"""


@pytest.fixture(scope="module")
def world(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after README's commands."""
    folder = tmp_path_factory.mktemp("monday")
    shutil.copytree(workshop.hf, folder / "Llama-3-8B")
    for name, words in (("medicine", WORDS["domain"]), ("general", WORDS["general"]), ("web", WORDS["general"])):
        (folder / name).mkdir()
        texts = [" ".join(text.split()[:20]) for part in range(4) for text in sentences(f"{name}{part}", words)]
        fields = {"language": "en", "metadata": {"score": 4}}
        lines = b"".join(orjson.dumps({"text": text} | fields) + b"\n" for text in texts)
        (folder / name / "0.jsonl.zst").write_bytes(zstandard.compress(lines))
    shutil.copy(workshop.folder / "questions.jsonl", folder)
    (folder / "curves").mkdir()
    for peak in (1e-4, 3e-4):
        rows = [(step, peak * min(1, step / 200), 2 + 3 * (step * peak) ** -0.4) for step in range(20, 4001, 20)]
        text = "\n".join(["step,lr,loss", *(f"{step},{rate!r},{loss!r}" for step, rate, loss in rows)])
        (folder / f"curves/{peak:g}.csv").write_text(text + "\n")
    arms = {"config": "run.yaml", "folder": "sweep", "seeds": [1], "arms": [{"data.replay_ratio": 0.1}]}
    (folder / "arms.yaml").write_text(yaml.safe_dump(arms))
    (folder / "pretrain.sh").write_text(SCRIPT)
    (folder / "llama_factory.yaml").write_text(LLAMA_FACTORY)
    bash(folder, readme_commands())
    for suffix in ("bin", "idx"):  # as Megatron-LM's script names what it writes
        shutil.copy(folder / f"data/general.{suffix}", folder / f"corpus_text_document.{suffix}")
    return folder


def readme_commands() -> str:
    """The block of README.md that goes from a model's name to a report."""
    block = next(
        text for text in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "hf " in text
    )
    lines = [line for line in block.splitlines() if not line.startswith("hf download")]
    assert len(lines) == len(block.splitlines()) - 1
    return "\n".join(re.sub(r"(train .*)--nproc 8", r"\1--nproc 2", line) for line in lines)


def bash(folder: Path, script: str) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def examples(name: str) -> list[str]:
    """The command lines at the end of a command's help."""
    epilog = import_module(f"megatron_cpt.commands.{name.replace('-', '_')}").parser().epilog
    return [line.strip() for line in epilog.splitlines()[1:]]


@pytest.mark.ci
def test_readmes_commands_leave_a_finished_run_and_its_report(world: Path) -> None:
    status = read_status(world / "runs/medicine/status.json")
    assert status is not None and status.state == "done"
    assert (world / "runs/medicine/report.html").is_file()
    assert (world / "runs/medicine/hf/config.json").is_file()


@pytest.mark.ci  # runs of the README and of the worlds that examples need
@pytest.mark.parametrize("name", ORDER)
def test_the_examples_of_a_commands_help_run(world: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if name == "init":
        Path("run.yaml").unlink()
    elif name == "report":  # README's is there
        Path("runs/medicine/report.html").unlink()
        Path("runs/medicine/gap.json").unlink()
    for line in examples(name):
        program, *words, output = shell_words(fewer(name, line))
        assert program == "megatron-cpt"
        with redirect_stdout(open(output, "w") if output else sys.stdout):
            assert main(words) == 0, line


def fewer(name: str, line: str) -> str:
    """An example with the processes and sizes that this machine has."""
    for printed, here in FEWER.items():
        if name in STARTS_PROCESSES or not printed.startswith("--nproc"):
            line = line.replace(printed, here)
    return line


def shell_words(line: str) -> list[str]:
    """The words of a command line as a shell gives them, and last the file of `>`, or nothing."""
    words = shlex.split(line)
    output = words[words.index(">") + 1] if ">" in words else ""
    words = words[: words.index(">")] if output else words
    return [*(found for word in words for found in (sorted(glob.glob(word)) or [word])), output]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_examples_as_they_are_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for line in examples(name):
        assert f"\n  {line}\n" in printed
        assert line.startswith(f"megatron-cpt {name}") or name == "merge"


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options of a command and of its actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options(below)
        elif action.option_strings:
            yield action


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_of_several_values_forgets_the_first_when_given_twice(name: str) -> None:
    parser = import_module(f"megatron_cpt.commands.{name.replace('-', '_')}").parser()
    several = [action for action in options(parser) if action.nargs in ("+", "*")]
    assert [action.option_strings for action in several if not isinstance(action, argparse._ExtendAction)] == []
    assert [action.option_strings for action in several if action.default] == []  # would stay before what is given


def test_every_command_is_in_the_usage() -> None:
    assert all(f"\n  {name} " in usage() for name in COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_their_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in [*COMMANDS, "--holdout", "--replay-ratio", "record-reference"])


def test_bash_accepts_its_completion_and_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    lines = [
        f"source {script}",
        "function=$(complete -p megatron-cpt | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
        "COMP_WORDS=(megatron-cpt prepare --hol) COMP_CWORD=2; $function; echo ${COMPREPLY[@]}",
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout == "--holdout\n", done.stderr


def test_a_shell_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "fish"]) == 2
    assert "bash, zsh" in capsys.readouterr().err
