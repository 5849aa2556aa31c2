#!/usr/bin/env python3
"""Writes the tables of docs/migrating.md: `python tools/migrating_page.py > migrating.md`, then moved to its place.

What stands before the first table of arguments is the page's own and stays. The tables come from
megatron_cpt/planning/megatron_lm_arguments.tsv, which `megatron-cpt import-args` obeys.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_cpt.planning.megatron_lm_arguments import Argument, table

PAGE = Path(__file__).parents[1] / "docs/migrating.md"
TITLES = {
    "taken": "Arguments that become keys",
    "shape": "Arguments that describe the model",
    "refused": "Arguments that are refused",
    "equal": "Arguments that change nothing in what is trained",
}


def main() -> None:
    """Prints the page."""
    sys.stdout.write(page())


def page() -> str:
    """The page: its own text, then the tables."""
    before = PAGE.read_text().split(f"## {TITLES['taken']}")[0]
    taken = [each for each in table() if each.treatment in ("key", "steps", "rule")]
    parts = [
        f"## {TITLES['taken']}\n\nWhere several decide a key together, the second table of this page says how.\n",
        rows(
            ["argument", "default", "key"], ((code(one.flags), quoted(one.default), f"`{one.words}`") for one in taken)
        ),
        f"\n## {TITLES['shape']}\n\nThe Hugging Face folder's `config.json` has them; another value is refused.\n",
        rows(["argument", "compared with"], ((code(one.flags), f"`{one.words}`") for one in of("shape"))),
        f"\n## {TITLES['refused']}\n\nThe default alone is never refused.\n",
        rows(["argument", "why, and what to do"], grouped(of("refused"))),
        f"\n## {TITLES['equal']}\n",
        rows(["argument", "why"], grouped(of("equal"))),
    ]
    return before + "\n".join(parts) + "\n"


def of(treatment: str) -> list[Argument]:
    """The arguments of a treatment."""
    return [argument for argument in table() if argument.treatment == treatment]


def grouped(arguments: Sequence[Argument]) -> list[tuple[str, str]]:
    """Rows of arguments with the same words together."""
    words = dict.fromkeys(argument.words for argument in arguments)
    return [(code(each.flag for each in arguments if each.words == one), one) for one in words]


def code(names: Iterable[str]) -> str:
    """Names as code."""
    return ", ".join(f"`{name}`" for name in names)


def quoted(text: str) -> str:
    return f"`{text}`" if text else ""


def rows(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    marked = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "\n".join([f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}", *(f"| {line} |" for line in marked)])


if __name__ == "__main__":
    main()
