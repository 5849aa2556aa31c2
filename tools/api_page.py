#!/usr/bin/env python3
"""Writes docs/api.md from the docstrings of megatron_cpt/api.py: `python tools/api_page.py > docs/api.md`."""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator

from megatron_cpt import api

INTRODUCTION = """\
# Python interface

Written by `tools/api_page.py` from the docstrings of [`megatron_cpt/api.py`](../megatron_cpt/api.py) and of what it
names. These names stay; a change of one is in [CHANGELOG.md](../CHANGELOG.md). Other modules may change in any version.

```python
from megatron_cpt import api

api.prepare(["law.jsonl"], "Llama-3.2-1B", "data/law")
plan = api.make_plan(api.load_config("run.yaml"))
print(plan.table())
first = plan.blend.order.locate(range(8))  # source, epoch and sequence of the first eight sequences
```

Importing `api` imports no torch. Arrays are NumPy's; their shapes stand in brackets.
"""
SECTIONS = {
    "Datasets": ["prepare", "PrepareSettings", "Prepared", "open_dataset", "IndexedDataset"],
    "Plans and order": ["load_config", "RunConfig", "make_plan", "RunPlan", "BlendPlan", "SampleOrder", "Located"],
    "Stability gap": ["gap_of_run", "gap_figures", "GapFigures", "LossCurve"],
    "Scaling laws": ["read_run", "read_csv", "Curve", "LAWS", "fit_law", "Fit"],
    "Conversion": ["convert_from_hf", "convert_to_hf", "verify_conversion"],
    "Errors": ["Fault", "BadInput", "IntegrityFault", "NumericsFault", "StorageFault", "WorkerDied"],
}


def main() -> None:
    """Prints the page."""
    sys.stdout.write(page())


def page() -> str:
    """The whole page. Raises ValueError where it would not hold what api.py names."""
    named = [name for names in SECTIONS.values() for name in names]
    if sorted(named) != sorted(api.__all__):
        raise ValueError(f"SECTIONS and api.__all__ differ: {set(named) ^ set(api.__all__)}")
    parts = [INTRODUCTION]
    for title, names in SECTIONS.items():
        parts += [f"## {title}\n", *(entry(name) for name in names)]
    return "\n".join(parts)


def entry(name: str) -> str:
    """What one name is."""
    value = getattr(api, name)
    if isinstance(value, dict):
        keys = ", ".join(f"`{key}`" for key in sorted(value))
        return f"### `{name}`\n\nThe laws that `fit_law` takes, by name: {keys}.\n"
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    if isinstance(node, ast.FunctionDef):
        return f"### `{name}`\n\n```python\n{signature(node)}\n```\n\n{text(node)}\n"
    assert isinstance(node, ast.ClassDef)
    parts = [f"### `{name}`\n\n{text(node)}\n"]
    # The fields of a configuration have a page of their own.
    rows = [] if name == "RunConfig" else list(field_rows(node))
    if rows:
        parts += ["| field | type | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"]
    if methods := list(method_lines(node)):
        parts += ["\n".join(methods) + "\n"]
    return "\n".join(parts)


def signature(node: ast.FunctionDef) -> str:
    """A function's head, one argument a line where it is long."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = [text.replace("=", " = ") for text in each_argument(node.args)]
    head = f"{node.name}({', '.join(arguments)}){returns}"
    return (
        head if len(head) <= 100 else "\n".join([f"{node.name}(", *(f"    {one}," for one in arguments), f"){returns}"])
    )


def each_argument(arguments: ast.arguments) -> Iterator[str]:
    """Arguments as they are written, with `*` before those that are given by name."""
    without = [None] * (len(arguments.args) - len(arguments.defaults))
    for argument, value in zip(arguments.args, [*without, *arguments.defaults], strict=True):
        yield ast.unparse(argument) + (f"={ast.unparse(value)}" if value else "")
    if arguments.kwonlyargs:
        yield "*"
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield ast.unparse(argument) + (f"={ast.unparse(value)}" if value else "")


def text(node: ast.FunctionDef | ast.ClassDef) -> str:
    """A docstring as Markdown: what stands under Args, Returns and Raises as lists."""
    lines: list[str] = []
    inside = ""
    for line in (ast.get_docstring(node) or "").splitlines():
        if line in ("Args:", "Returns:", "Raises:", "Yields:"):
            lines += ["", f"{line}", ""]
            inside = line
        elif inside in ("Returns:", "Yields:") and line:
            lines.append(line.strip())
        elif inside and re.match(r"    \S", line):
            lines.append("- " + re.sub(r"^(\w+):", r"`\1`:", line.strip()))
        elif inside and line.startswith("     "):
            lines.append("  " + line.strip())
        else:
            inside = "" if line else inside
            lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def field_rows(node: ast.ClassDef) -> Iterator[str]:
    """Rows of a dataclass's fields; the meaning is the string under each."""
    for place, item in enumerate(node.body):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            after = node.body[place + 1] if place + 1 < len(node.body) else None
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meaning = " ".join(str(after.value.value).split()) if documented else ""
            kind = ast.unparse(item.annotation).strip("'\"").replace("|", r"\|").replace("'", '"')
            yield f"| `{item.target.id}` | `{kind}` | {meaning} |"


def method_lines(node: ast.ClassDef) -> Iterator[str]:
    """A list of a class's public methods and properties that have a docstring."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and ast.get_docstring(item):
            is_property = any("property" in ast.unparse(mark) for mark in item.decorator_list)
            arguments = "" if is_property else f"({', '.join(argument.arg for argument in item.args.args[1:])})"
            meaning = " ".join((ast.get_docstring(item) or "").split("\n\n")[0].split())
            yield f"- `{item.name}{arguments}`: {meaning}"


if __name__ == "__main__":
    main()
