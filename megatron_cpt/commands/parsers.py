"""The command lines of all commands: one look of their help, types of arguments, completion for shells."""

import argparse
import importlib
import importlib.util
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.units import parse_count

Number = TypeVar("Number", int, float)

_SHELLS = ("bash", "zsh")
_WIDTH = 100
"""Characters of a line of help."""


def command_parser(name: str, description: str | None, *examples: str) -> argparse.ArgumentParser:
    """The parser of `megatron-cpt NAME`.

    Args:
        examples: whole command lines, shown at the end of the help as they are typed. The tests run them.
    """
    title = "example" if len(examples) == 1 else "examples"
    return argparse.ArgumentParser(
        prog=f"megatron-cpt {name}",
        description=textwrap.fill(" ".join((description or "").split()), _WIDTH),
        epilog="\n".join([f"{title}:", *(f"  {line}" for line in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(text: str) -> int:
    """A whole number of at least 1, as an argument's `type`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def add_assume(parser: argparse.ArgumentParser, text: str) -> None:
    """The option `--assume NAME=TOKENS ...`, which `assumed_tokens` reads; `text` is its help."""
    parser.add_argument("--assume", action="extend", nargs="+", default=[], metavar="NAME=TOKENS", help=text)


def assumed_tokens(words: Sequence[str]) -> dict[str, int]:
    """Tokens by name, of `--assume NAME=TOKENS ...`. Raises BadInput with every word that is not NAME=TOKENS."""
    found: dict[str, int] = {}
    faults = []
    for word in words:
        name, _, text = word.partition("=")
        if name in found:
            faults.append(Fault(f"--assume {word}", f"{name} is given twice.", "Give it once."))
        try:
            found[name] = parse_count(text)
            if not found[name]:
                faults.append(
                    Fault(f"--assume {word}", "is a dataset without tokens.", "Give its tokens, or leave it out.")
                )
        except ValueError:
            faults.append(Fault(f"--assume {word}", "is not NAME=TOKENS.", "Write, for example, medicine=5B."))
    refuse(faults)
    return found


def number_of(option: str, text: str, parse: Callable[[str], Number]) -> Number:
    """What an option says. Raises BadInput where `parse` raises ValueError with the rule, `; ` and the remedy."""
    try:
        return parse(text)
    except ValueError as error:
        rule, _, remedy = str(error).partition("; ")
        raise BadInput(Fault(f"{option} {text}", f"{rule}.", f"{remedy[:1].upper()}{remedy[1:]}.")) from error


def add_engine(parser: argparse.ArgumentParser, local: str) -> None:
    """The options `--engine` and `--address`; `local` says what this machine does without them."""
    text = f"ray: on the machines of a Ray cluster, which share a file system (default local: {local})"
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help=text)
    text = "of the Ray cluster, HOST:PORT (default: $RAY_ADDRESS, or one of this machine)"
    parser.add_argument("--address", help=text)


def refuse_address(args: argparse.Namespace) -> None:
    """Raises BadInput for an `--address` without a cluster, or that is empty."""
    if args.address == "":
        rule = "is empty; Ray would start a cluster of this machine alone."
        raise BadInput(Fault("--address", rule, "Give HOST:PORT, or leave --address out."))
    if args.address and args.engine != "ray":
        raise BadInput(Fault("--address", "is of a Ray cluster.", "Give --engine ray, or leave --address out."))


def completion(shell: str, commands: Mapping[str, str]) -> str:
    """The completion script of a shell for all commands (name to summary), made by shtab from their parsers.

    Raises BadInput for an unknown shell, and where shtab is not installed.
    """
    if shell not in _SHELLS:
        rule = f"is no shell that completions are written for: {', '.join(_SHELLS)}."
        raise BadInput(Fault(f"--print-completion {shell}", rule, "Write one of them."))
    if importlib.util.find_spec("shtab") is None:
        rule = "needs shtab, which is not installed."
        raise BadInput(Fault("--print-completion", rule, "Install it: pip install 'megatron-cpt[completion]'."))
    import shtab  # noqa: PLC0415

    top = argparse.ArgumentParser(prog="megatron-cpt")
    top.add_argument("--version", action="store_true", help="print the version")
    added = top.add_subparsers()
    for name, summary in commands.items():
        parser = importlib.import_module(f"megatron_cpt.commands.{name.replace('-', '_')}").parser()
        added.add_parser(name, help=summary, parents=[parser], add_help=False)
    return str(shtab.complete(top, shell=shell))
