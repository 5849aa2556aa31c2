#!/usr/bin/env python3
"""Compares megatron_cpt/planning/megatron_lm_arguments.tsv with the parser of a checkout of Megatron-LM.

    PYTHONPATH=CHECKOUT python tools/megatron_lm_arguments.py CHECKOUT

CHECKOUT is a clone at the tag of a release (core_v0.16.1). Prints what is missing, surplus or has another default, and
ends with 1 where something is. Only megatron/training/arguments.py is imported, not the training program.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import megatron_cpt.parallel  # noqa: F401  (the CPU platform, before Megatron-Core)
from megatron_cpt.planning.megatron_lm_arguments import by_flag


def main(arguments: list[str]) -> int:
    """Prints the differences."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("checkout", type=Path, metavar="CHECKOUT")
    found = list(differences(parser_of(top.parse_args(arguments).checkout)))
    print("\n".join(found) or "the table has every argument with its default")
    return 1 if found else 0


def parser_of(checkout: Path) -> argparse.ArgumentParser:
    """The parser that the checkout's arguments.py makes."""
    package = ModuleType("megatron.training")
    package.__path__ = [str(checkout / "megatron/training")]
    for name in ("get_args", "get_timers", "get_adlr_autoresume"):  # what its utils.py imports of the package
        setattr(package, name, None)
    sys.modules["megatron.training"] = package
    parser = argparse.ArgumentParser(allow_abbrev=False)
    import_module("megatron.training.arguments").add_megatron_arguments(parser)
    return parser


def differences(parser: argparse.ArgumentParser) -> list[str]:
    """What the table does not have as the parser has it."""
    theirs = {
        flag: action for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")
    }
    ours = by_flag()
    lines = [f"missing: {flag}" for flag in theirs if flag not in ours]
    lines += [f"surplus: {flag}" for flag in ours if flag not in theirs]
    for flag, action in theirs.items():
        if flag in ours and (found := _default(action)) != ours[flag].default:
            lines.append(f"default of {flag}: {found!r} there, {ours[flag].default!r} in the table")
        if flag in ours and ours[flag].dest != action.dest:
            lines.append(f"attribute of {flag}: {action.dest} there, {ours[flag].dest} in the table")
    return lines


def _default(action: argparse.Action) -> str:
    """A default as it is typed."""
    match action.default:
        case None:
            return ""
        case bool() as value:
            return str(value).lower()
        case list() as values:
            return " ".join(map(str, values))
        case value:
            return str(getattr(value, "name", value))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
