#!/usr/bin/env python3
"""Writes the tables of docs/migrating.md: `python tools/migrating_page.py > migrating.md`, then moved to its place.

What stands before the first table of arguments is the page's own and stays. The tables come from
megatron_cpt/planning/megatron_lm_arguments.tsv and *_keys.tsv, which `megatron-cpt import-args` obeys.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_cpt.planning.config_file import PROGRAMS
from megatron_cpt.planning.config_keys import Key, rows_of
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
        f"## {TITLES['taken']}\n\nWhere several decide a key together, see what differs in meaning, above.\n",
        rows(
            ["argument", "default", "key"], ((code(one.flags), quoted(one.default), f"`{one.words}`") for one in taken)
        ),
        f"\n## {TITLES['shape']}\n\nThe Hugging Face folder's `config.json` has them; another value is refused.\n",
        rows(["argument", "compared with"], ((code(one.flags), f"`{one.words}`") for one in of("shape"))),
        f"\n## {TITLES['refused']}\n\nThe default alone is never refused.\n",
        rows(["argument", "why, and what to do"], grouped(of("refused"))),
        f"\n## {TITLES['equal']}\n",
        rows(["argument", "why"], grouped(of("equal"))),
        *(section(title, name) for name, title in _key_tables().items()),
    ]
    return before + "\n".join(parts) + "\n"


def _key_tables() -> dict[str, str]:
    """Titles of the tables of keys, each once, by their names."""
    found: dict[str, str] = {}
    for program in PROGRAMS.values():
        found.setdefault(program.tables[0], f"{program.title}, {program.version}")
    return found


def section(title: str, name: str) -> str:
    """The keys of a program: those that become keys, that are refused, and that change nothing."""
    keys = rows_of(name)
    taken = [key for key in keys if key.treatment in ("key", "steps", "rule", "same", "shape")]
    told = {"same": "as `{}`", "shape": "compared with `{}` of config.json"}
    return "\n".join(
        [
            f"\n## Keys of {title}\n",
            rows(
                ["key", "default", "here"],
                (
                    (f"`{key.name}`", quoted(key.default), told.get(key.treatment, "`{}`").format(key.words))
                    for key in taken
                ),
            ),
            "\nRefused, save at the default:\n",
            rows(["key", "why, and what to do"], by_words(keys, "refused")),
            "\nWithout a change in what is trained:\n",
            rows(["key", "why"], by_words(keys, "equal")),
        ]
    )


def by_words(keys: Sequence[Key], treatment: str) -> list[tuple[str, str]]:
    """Rows of keys of a treatment, those with the same words together."""
    chosen = [key for key in keys if key.treatment == treatment]
    words = dict.fromkeys(key.words for key in chosen)
    return [(code(key.name for key in chosen if key.words == one), one) for one in words]


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
