"""A run.yaml with a comment on each line, from keys and values: what `init` and `import-args` write.

A comment that the writer does not give is the first sentence of the key's meaning in config/schema.py.
"""

import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import yaml

from megatron_cpt.config.base_history import parameters_in_name, public_base_of
from megatron_cpt.config.checks import config_faults
from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.json_schema import meaning_of
from megatron_cpt.config.load import load_config
from megatron_cpt.config.units import LARGEST_COUNT, parse_count, short_count
from megatron_cpt.corpus.stream import prefix_of
from megatron_cpt.families.shape import read_shape
from megatron_cpt.families.size import parameter_count
from megatron_cpt.planning.inputs import missing_data

_COMMENT_COLUMN = 58
_LONGEST = 120
_INDENT = "  "
_ROUNDED = 0.2
"""How far the parameters in a model's name are off at most: open-llama-3b has 3.4B."""
_SHORT_NAMES = re.compile(r"[^\w-]+")


@dataclass(frozen=True)
class Entry:
    """A key of a run.yaml with its value."""

    key: str
    """Dotted, such as `data.sources.medicine.paths`. No part of it holds a dot."""
    value: Any
    """What the key gets, as YAML has it."""
    comment: str | None = None
    """What a reader is told beside it. None: the key's meaning."""


def run_text(header: Sequence[str], entries: Iterable[Entry]) -> str:
    """The text of a run.yaml.

    Args:
        header: lines of the comment at the top.
        entries: sections are made where an entry is the first of one; those of a section come one after another.
    """
    lines = [f"# {line}".rstrip() for line in header]
    before: list[str] = []
    for entry in entries:
        *sections, name = entry.key.split(".")
        shared = 0
        while shared < min(len(before), len(sections)) and before[shared] == sections[shared]:
            shared += 1
        if not shared:
            lines.append("")
        lines += [f"{_INDENT * (shared + depth)}{one}:" for depth, one in enumerate(sections[shared:])]
        lines += _line(_INDENT * len(sections), name, entry)
        before = sections
    return "\n".join([*lines, ""])


def next_lines(path: Path, ranks: int, assumed: Mapping[str, int]) -> Iterator[str]:
    """What to do with a run.yaml that was written, and what of it `plan` will refuse by the rules that need no data.

    Args:
        assumed: tokens of sources that are not there, by name.
    """
    missing: list[str] = []
    try:
        config = load_config(path)
        faults, missing = config_faults(config, ranks), missing_data(config)
    except BadInput as error:
        faults = list(error.faults)
    if faults:
        yield "to mend first, for `plan` refuses it:"
        yield from (f"  - {fault}" for fault in faults)
    sizes = [f"{name}={count_text(assumed[name]) if name in assumed else 'TOKENS'}" for name in missing]
    assume = f" --assume {' '.join(sizes)}" if sizes else ""
    yield f"next: megatron-cpt plan {path} --nproc {ranks}{assume}"


def _line(indent: str, name: str, entry: Entry) -> list[str]:
    """The key, its value, and the comment beside it, or above it where the line would be too long."""
    text = f"{indent}{name}: {_yaml(entry.value)}"
    comment = meaning_of(entry.key) if entry.comment is None else entry.comment
    if not comment:
        return [text]
    comment = comment[0].upper() + comment[1:]
    whole = f"{text:<{_COMMENT_COLUMN - 1}} # {comment}"  # without the space before it, `#` is of the value
    if len(whole) <= _LONGEST:
        return [whole]
    above = f"{indent}# "
    lines = textwrap.wrap(comment, _LONGEST, initial_indent=above, subsequent_indent=above, break_on_hyphens=False)
    return [*lines, text]


def _yaml(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def base_entries(model: str) -> Iterator[Entry]:
    """`base_history` of a model whose folder has the name of a public base, and no lineage.json that knows better.

    Its size must be that of the name.
    """
    name = public_base_of(model)
    if name is None or Path(model, "lineage.json").exists():
        return
    told = parameters_in_name(name)
    if told is None or isclose(parameter_count(read_shape(model)), told, rel_tol=_ROUNDED):
        comment = "by the name of the model's folder, for scaling laws; take it out if the weights are others"
        yield Entry("base_history", name, comment)


def log_spaced() -> Entry:
    """Evaluations that are dense where the stability gap is."""
    comment = "the stability gap is deepest in the first steps"
    return Entry("validation.eval_interval.log_spaced", "8 per decade to 1000 steps", comment)


def count_text(count: int) -> int | str:
    """A count as users write it, `5B`, where that is the same number; else the number."""
    short = short_count(count, zeros=False)
    return short if 1000 <= count <= LARGEST_COUNT and parse_count(short) == count else count


def rounded(count: float) -> int:
    """A count of at least 1 to two significant digits."""
    return max(1, int(float(f"{count:.1e}")))


def source_name(path: str) -> str:
    """The name of a source from the path of its dataset: `data/medicine_text_document` is `medicine`."""
    last = prefix_of(path.rstrip("/").rpartition("/")[2]).removesuffix(".selection.json")
    name = _SHORT_NAMES.sub("-", last.removesuffix("_document").removesuffix("_text")).strip("-")
    return name or "text"


def distinct_names(names: Iterable[str]) -> list[str]:
    """The names, no two alike: later ones get a number. They stand in file names, so that case tells none apart."""
    distinct: dict[str, str] = {}
    for name in names:
        made = name
        for number in itertools.count(2):
            if made.casefold() not in distinct:
                break
            made = f"{name}-{number}"
        distinct[made.casefold()] = made
    return list(distinct.values())
