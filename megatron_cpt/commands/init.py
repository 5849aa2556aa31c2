"""`megatron-cpt init RUN.yaml --model HF_DIR --domain PREFIX... --replay PREFIX...`: a first run.yaml, with comments.

On a terminal it asks for what was not given.
"""

import argparse
import sys
from pathlib import Path

import orjson

from megatron_cpt.commands.parsers import command_parser, number_of
from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.json_schema import run_schema
from megatron_cpt.config.units import parse_count, parse_share
from megatron_cpt.planning.first_run import REPLAY_RATIO, FirstRun, first_run
from megatron_cpt.planning.run_file import next_lines, run_text
from megatron_cpt.runs.folder import ExitCode, refuse_to_replace, write_durably

_HEADER = (
    "A run of continual pretraining, written by `megatron-cpt init`. Every value may be changed;",
    "docs/configuration.md lists every key. Lengths are tokens (300M, 5B), or steps (100 steps).",
    "Completion in an editor: `megatron-cpt init --schema > run.schema.json`, and this line at the top:",
    "# yaml-language-server: $schema=run.schema.json",
)
_QUESTIONS = {
    "model": "Model (a local Hugging Face folder): ",
    "domain": "Datasets of new text (PREFIX of `megatron-cpt prepare`; several with blanks between): ",
    "replay": "Datasets of general text, for replay (none: press Enter): ",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = command_parser(
        "init",
        __doc__,
        "megatron-cpt init run.yaml --model Llama-3-8B --domain data/medicine --replay data/general",
        "megatron-cpt init --schema > run.schema.json",
    )
    top.add_argument("output", nargs="?", type=Path, metavar="RUN.yaml", help="the file to write (default: run.yaml)")
    top.add_argument("--model", metavar="HF_DIR", help="Hugging Face folder of the model")
    top.add_argument(
        "--domain",
        action="extend",
        nargs="+",
        metavar="PREFIX",
        help="datasets, selections or globs of new text, or NAME=PREFIX",
    )
    top.add_argument(
        "--replay", action="extend", nargs="+", metavar="PREFIX", help="the same of text like that of pretraining"
    )
    top.add_argument(
        "--replay-ratio", default=str(REPLAY_RATIO), metavar="SHARE", help=f"of all tokens (default {REPLAY_RATIO})"
    )
    top.add_argument("--tokens", metavar="COUNT", help="length of the run (default: the new text once)")
    top.add_argument("--folder", help="run folder (default: runs/ and the first source's name)")
    top.add_argument("--gpus", type=int, default=8, metavar="N", help="ranks of the run (default 8)")
    top.add_argument("--gpu", default="H100-80GB", metavar="CARD", help="their kind (default H100-80GB)")
    top.add_argument("--schema", action="store_true", help="print the JSON schema of every run.yaml instead")
    return top


def main(arguments: list[str]) -> int:
    """Writes the file and prints what comes next. Raises BadInput with everything that is missing or wrong."""
    args = parser().parse_args(arguments)
    if args.schema:
        print(orjson.dumps(run_schema(), option=orjson.OPT_INDENT_2).decode())
        return ExitCode.DONE
    output = args.output or Path("run.yaml")
    refuse_to_replace([output])
    if sys.stdin.isatty():
        _ask(args)
    written = first_run(_first_run(args))
    write_durably(output, run_text(_HEADER, written.entries))
    print(f"wrote {output}")
    for note in written.notes:
        print(f"note: {note}")
    print("\n".join(next_lines(output, args.gpus, {})))
    return ExitCode.DONE


def _ask(args: argparse.Namespace) -> None:
    """Asks for what was not given. Replay is not asked for where the other two were given."""
    if args.model is not None and args.domain is not None:
        return
    for name, question in _QUESTIONS.items():
        if getattr(args, name) is None:
            answer = input(question).strip()
            setattr(args, name, answer if name == "model" else answer.split())


def _first_run(args: argparse.Namespace) -> FirstRun:
    faults = [
        Fault(f"--{name}", "was not given.", remedy)
        for name, remedy in (
            ("model", "Name the Hugging Face folder of the model."),
            ("domain", "Name the PREFIX of a dataset of new text."),
        )
        if not getattr(args, name)
    ]
    faults += [
        Fault(f"--{name} {word}", "is no dataset.", "Name the file to write first: `init RUN.yaml --model`.")
        for name in ("domain", "replay")
        for word in getattr(args, name) or ()
        if word.endswith((".yaml", ".yml"))
    ]
    if args.gpus < 1:
        faults.append(Fault(f"--gpus {args.gpus}", "a run has at least one rank.", "Raise it."))
    refuse(faults)
    ratio = number_of("--replay-ratio", args.replay_ratio, parse_share)
    tokens = None if args.tokens is None else number_of("--tokens", args.tokens, parse_count)
    if not ratio < 1:
        raise BadInput(Fault(f"--replay-ratio {args.replay_ratio}", "leaves nothing for new text.", "Lower it."))
    return FirstRun(
        model=args.model,
        domain=args.domain,
        replay=args.replay or (),
        replay_ratio=ratio,
        tokens=tokens,
        folder=args.folder,
        gpus=args.gpus,
        gpu=args.gpu,
    )
