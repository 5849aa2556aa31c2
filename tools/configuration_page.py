#!/usr/bin/env python3
"""Writes docs/configuration.md from config/schema.py: `python tools/configuration_page.py > docs/configuration.md`."""

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Literal, get_origin

from megatron_cpt.config import schema

INTRODUCTION = """\
# Configuration

Written by `tools/configuration_page.py` from [`megatron_cpt/config/schema.py`](../megatron_cpt/config/schema.py).

A run is one YAML file. `section.key=value` on the command line replaces a value of it. An unknown key is an error that
names the nearest known key, and all faults of a run are listed at once. The resolved configuration is written to
`config.yaml` in the run folder; the run can be repeated from that file alone.

| type | values |
|---|---|
| `Count`, `CountOrZero` | a whole number above 0, or from 0; suffixes are allowed (`300K`, `5B`) |
| `Span`, `SpanOrZero` | a length in tokens (`300M`), or in steps (`100 steps`) |
| `Share` | a number from 0 to 1, or a percentage (`5%`) |
| `Positive`, `NotNegative` | a number above 0, or from 0 |
| `ShareOfPeak` | `0.2 of peak` or `20% of peak` |
| `EpochsOfSource` | `2 of NAME` |
| `WallTime` | a duration such as `3h50m` |
| `StepNumbers` | a step, or the first and last of several: `10`, `10-12` |
"""


def main() -> None:
    """Prints the page."""
    sys.stdout.write(page())


def page() -> str:
    """The whole page: one table for each section, in the order of the root, outer sections first."""
    tree = ast.parse(Path(inspect.getfile(schema)).read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    root = classes.pop("RunConfig")
    names = {annotation(item).removesuffix(" | None"): item.target.id for item in fields(root)}
    sections = list(names.values())
    while nested := nested_names(classes, names):
        names |= nested
    ordered = sorted(classes, key=lambda name: (sections.index(names[name].split(".")[0]), names[name]))
    tables = [table(names[name], classes[name]) for name in ordered]
    return "\n".join([INTRODUCTION, *tables])


def nested_names(classes: dict[str, ast.ClassDef], names: dict[str, str]) -> dict[str, str]:
    """Dotted names of sections inside sections that are not in `names` yet, such as `data.sources.NAME`."""
    found: dict[str, str] = {}
    for outer, node in classes.items():
        for item in fields(node):
            for inner in classes:
                if inner in annotation(item) and outer in names and inner not in names:
                    kind = annotation(item).split("[")[0]
                    step = item.target.id + {"dict": ".NAME", "list": ".N"}.get(kind, "")
                    found.setdefault(inner, f"{names[outer]}.{step}")
    return found


def table(name: str, node: ast.ClassDef) -> str:
    """One section as a Markdown table."""
    rows = [f"\n## `{name}`\n\n{ast.get_docstring(node)}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
    for item, text in zip(fields(node), docstrings(node), strict=True):
        meaning = " ".join(text.split()).replace("|", "\\|")
        kind = annotation(item).replace("|", "\\|")
        rows.append(f"| `{item.target.id}` | `{kind}` | {default(item)} | {meaning} |")
    return "\n".join(rows) + "\n"


def fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    """The fields of a dataclass."""
    return [item for item in node.body if isinstance(item, ast.AnnAssign) and "ClassVar" not in annotation(item)]


def docstrings(node: ast.ClassDef) -> list[str]:
    """The text under each field."""
    places = [place for place, item in enumerate(node.body) if item in fields(node)]
    return [ast.literal_eval(node.body[place + 1].value) for place in places]


def annotation(item: ast.AnnAssign) -> str:
    """A field's type as it is written, without what reads it; a Literal that has a name is spelled out."""
    written = re.sub(r"Annotated\[(\w+), \w+\(\w+\)\]", r"\1", ast.unparse(item.annotation))
    literals = {name: value for name, value in vars(schema).items() if get_origin(value) is Literal}
    return re.sub(r"\w+", lambda word: str(literals.get(word[0], word[0])).removeprefix("typing."), written)


def default(item: ast.AnnAssign) -> str:
    """A field's default as it is written; `needed` where there is none."""
    if item.value is None:
        return "needed"
    text = ast.unparse(item.value)
    for long, short in (("field(default_factory=dict)", "{}"), ("field(default_factory=list)", "[]")):
        text = text.replace(long, short)
    if text.startswith("field(default=Duration("):
        amount, unit = ast.literal_eval(text.removeprefix("field(default=Duration").removesuffix(")"))
        text = f"{amount} {unit}"
    return "its own defaults" if text.startswith("field(default_factory") else f"`{text}`"


if __name__ == "__main__":
    main()
