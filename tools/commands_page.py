#!/usr/bin/env python3
"""Writes docs/commands.md from the commands' parsers: `python tools/commands_page.py > docs/commands.md`."""

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module

from megatron_cpt.commands.dispatch import COMMANDS

INTRODUCTION = """\
# Commands

Written by `tools/commands_page.py` from the command lines of [`megatron_cpt/commands`](../megatron_cpt/commands).

`megatron-cpt COMMAND --help` prints the same. `megatron-cpt --print-completion bash` (or `zsh`) prints a completion
script. Every command ends with one of these exit codes:

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | any other error; a run that hung, a rank that was killed, a second Ctrl-C; a command ended by Ctrl-C |
| 2 | bad input: configuration, data or arguments; nothing was changed |
| 3 | integrity: a file does not hold the bytes that were written |
| 4 | numerics: a loss or gradient that is not finite, a loss spike with `on_spike: stop`, a failed initial loss check |
| 75 | stopped by a signal (Ctrl-C is one) or a time limit, and saved; the same command goes on |
"""


def main() -> None:
    """Prints the page."""
    parts = [INTRODUCTION]
    for name, summary in COMMANDS.items():
        parser = import_module(f"megatron_cpt.commands.{name.replace('-', '_')}").parser()
        parts += [f"## {name}\n\n{sentence(summary)}\n", *sections(parser)]
    sys.stdout.write("\n".join(parts))


def sections(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The examples and options of a command, and of each of its actions."""
    examples = (parser.epilog or "").splitlines()[1:]
    if examples:
        yield "\n".join(["```bash", *(line.strip() for line in examples), "```\n"])
    rows = [row(action) for action in parser._actions if action.help != argparse.SUPPRESS and shown(action)]
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows, ""])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            meanings = {choice.dest: choice.help for choice in action._choices_actions}
            for name, inner in action.choices.items():
                yield f"### {inner.prog.removeprefix('megatron-cpt ')}\n\n{sentence(meanings.get(name) or '')}\n"
                yield from sections(inner)


def shown(action: argparse.Action) -> bool:
    """Whether an action is an argument with a meaning of its own."""
    return not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def row(action: argparse.Action) -> str:
    """An argument as a row of a table."""
    formatter = argparse.HelpFormatter("")
    if action.option_strings:
        name = formatter._get_default_metavar_for_optional(action)
    else:
        name = formatter._get_default_metavar_for_positional(action)
    value = "" if action.nargs == 0 else formatter._format_args(action, name)
    words = " ".join(filter(None, [", ".join(action.option_strings), value]))
    meaning = " ".join(formatter._expand_help(action).split()) if action.help else ""
    needed = " (needed)" if action.option_strings and action.required else ""
    cells = [f"`{words}`{needed}", sentence(meaning)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sentence(text: str) -> str:
    """A summary with a capital letter at its beginning and a full stop, or an ellipsis, at its end."""
    return text and text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


if __name__ == "__main__":
    main()
