"""`megatron-cpt COMMAND ...`: imports only the command that was asked for, runs it, turns errors into exit codes."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from megatron_cpt import __version__
from megatron_cpt.commands.parsers import completion
from megatron_cpt.config.errors import (
    BadInput,
    Fault,
    IntegrityFault,
    NumericsFault,
    StorageFault,
    WorkerDied,
    printable,
    refuse,
)
from megatron_cpt.runs.floors import floor_faults
from megatron_cpt.runs.folder import FULL, ExitCode, exit_code_of, explained, named_errors
from megatron_cpt.runs.library_warnings import take_warnings
from megatron_cpt.runs.processes import die_with_parent

# name -> one line of help. Each is a module of this folder with `parser() -> argparse.ArgumentParser` and
# `main(arguments: list[str]) -> int`; a dash in a name is an underscore in the module's.
COMMANDS = {
    "quickstart": "the whole job on text that every machine has: two runs and a report in minutes",
    "init": "write a run.yaml with comments, from a model and datasets",
    "import-args": "write a run.yaml from that of another program: Megatron-LM, NeMo, LLaMA-Factory, ...",
    "prepare": "documents to a Megatron dataset: PREFIX.bin, .idx, .manifest.json",
    "merge": "join the shards of a prepare on many machines",
    "score": "one number a document: perplexity, importance, class",
    "select": "choose documents of datasets by budget and score, without copying tokens",
    "inspect": "look at a dataset: text, counts, integrity",
    "plan": "what a run will do: blend, steps, evaluations, FLOPs, memory, warnings",
    "audit": "what Megatron-LM does with a --data-path blend, beside the order of this package",
    "train": "start torchrun on this machine and train; the exit code is the run's",
    "report": "one self-contained report.html and gap.json from run folders",
    "evaluate": "score tasks on a checkpoint, a run or a Hugging Face folder: tasks.json",
    "law": "laws of the loss: fit, compare, predict; choose peak rate, replay ratio, steps, schedule",
    "sweep": "overrides times seeds of one run: configurations and one resumable script",
    "convert": "Hugging Face in and out: from-hf, to-hf, verify",
    "average": "one model of several, by means or task vectors; or the losses between a run and its base",
    "doctor": "what this machine has, and which kernels will be used",
}
# (command, word of version 0.1) -> what it is called since.
_RENAMED = {
    ("evaluate", "--shots"): "--num-fewshot",
    ("evaluate", "--examples"): "--fewshot-file",
    ("average", "--shares"): "--weights",
    ("evaluate", "--harness"): "--lm-eval",
    ("convert", "record"): "record-reference",
}
_NEVER_REPLACE = ("evaluate", "report", "law", "sweep", "convert")
"""Commands without --overwrite, which those have whose result is several files of a dataset."""
_STANDARD_OUTPUT = "standard output"


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return (
        "usage: megatron-cpt COMMAND ...\n\n"
        + "\n".join(lines)
        + "\n\nmegatron-cpt COMMAND --help shows the options and examples.\n"
        'Completion: eval "$(megatron-cpt --print-completion bash)" (or zsh; needs shtab).'
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code (runs/folder.py)."""
    words = sys.argv[1:] if arguments is None else arguments
    name, rest = (words[0], words[1:]) if words else ("", [])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # a killed torchrun would leave its ranks behind
    try:
        if not name or name in ("-h", "--help"):
            print(usage(), flush=True)
            return ExitCode.DONE if name else ExitCode.BAD_INPUT
        if name == "--version":
            print(f"megatron-cpt {__version__}", flush=True)
            return ExitCode.DONE
        if name == "--print-completion":
            print(completion(rest[0] if rest else "", COMMANDS), flush=True)
            return ExitCode.DONE
        if name not in COMMANDS:
            raise BadInput(Fault(name, "is not a command.", f"Use one of: {', '.join(COMMANDS)}."))
        refuse(list(_renamed_words(name, rest)))
        if name != "doctor":  # which tells of it
            refuse(list(floor_faults()))
        take_warnings(lambda line: None)
        code = int(importlib.import_module(f"megatron_cpt.commands.{name.replace('-', '_')}").main(rest))
        with named_errors(Path(_STANDARD_OUTPUT)):
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _forget_output()  # Whoever read it has enough: `| head`.
        return ExitCode.OTHER
    except KeyboardInterrupt:
        if "TORCHELASTIC_RUN_ID" not in os.environ:  # the command that started the ranks says it
            print(f"megatron-cpt {name}: ended by Ctrl-C (SIGINT).", file=sys.stderr)
        return ExitCode.OTHER
    except Exception as error:
        return report_error(f"megatron-cpt {name}", error)


def _renamed_words(command: str, words: list[str]) -> Iterator[Fault]:
    """Flags and actions by the names that they had before."""
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    for (owner, before), now in _RENAMED.items():
        if owner == command and (before in flags or before in words[:1]):
            yield Fault(f"{command} {before}", f"is called `{now}` since version 0.2.", f"Write {now}.")
    if command in _NEVER_REPLACE and "--overwrite" in flags:
        rule = "is no flag of it: only prepare, merge, score and select replace what is there."
        yield Fault(f"{command} --overwrite", rule, "Remove the result first, or give another name.")


def _forget_output() -> None:
    """Lets what was not written yet go nowhere: the interpreter would try again at its end."""
    with suppress(OSError):  # an output without a file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(program: str, error: Exception) -> int:
    """Prints what went wrong, once and without a traceback where it is expected, and returns the exit code."""
    explanation = explained(error)
    if isinstance(explanation, (BadInput, IntegrityFault, NumericsFault, StorageFault, WorkerDied)):
        print(printable(f"{program}: {explanation}"), file=sys.stderr)  # names and values are foreign text
    else:
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in FULL and error.filename in (None, _STANDARD_OUTPUT):
        _forget_output()
    return exit_code_of(explanation)


if __name__ == "__main__":
    sys.exit(main())
