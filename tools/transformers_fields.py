#!/usr/bin/env python3
"""Writes which fields of config.json transformers reads, family by family, from the transformers that is installed.

    python tools/transformers_fields.py > megatron_cpt/families/transformers_fields.py

A name counts as read that the config class declares, or that its file, the model's file or a file that all models share
takes from a config or from what config.json holds beyond the declared. More names than matter are found so, and none is
missed: a name that is in no such place cannot change what the model computes.
"""

import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedConfig

from megatron_cpt.families.shape import FAMILIES

SHARED = (
    "cache_utils.py",
    "configuration_utils.py",
    "masking_utils.py",
    "modeling_layers.py",
    "modeling_rope_utils.py",
    "modeling_utils.py",
    "integrations/moe.py",
    "integrations/sdpa_attention.py",
)
READS = re.compile(
    r"config\.([a-z_]\w*)"
    r'|(?:getattr|hasattr)\(\s*(?:\w+\.)*(?:\w*config|self)\s*,\s*"(\w+)"'
    r'|kwargs(?:\.(?:pop|get)\(|\[)\s*"(\w+)"'
    r'|"(\w+)" in kwargs'
)


def main() -> None:
    """Prints the module."""
    sys.stdout.write(module())


def module() -> str:
    """The text of families/transformers_fields.py."""
    root = Path(inspect.getfile(transformers)).parent
    shared = declared(PreTrainedConfig)
    for pattern in SHARED:
        for path in root.glob(pattern):
            shared |= read_in(path)
    own = {name: read_by(name) - shared for name in sorted(FAMILIES)}
    lines = [
        '"""Which fields of config.json transformers reads. Written by tools/transformers_fields.py."""',
        "",
        f'VERSION = "{transformers.__version__}"',
        "",
        "# fmt: off",
        *entry("READ_BY_ALL = frozenset({", shared, "})"),
        "READ_BY: dict[str, frozenset[str]] = {",
        *(line for name, names in own.items() for line in entry(f'"{name}": frozenset({{', names, "}),")),
        "}",
        "# fmt: on",
    ]
    return "\n".join(lines) + "\n"


def entry(opening: str, names: set[str], closing: str) -> list[str]:
    """The lines of one set."""
    words = " ".join(f'"{name}",' for name in sorted(names))
    return [opening, *textwrap.wrap(words, 120, initial_indent="    ", subsequent_indent="    "), closing]


def read_by(model_type: str) -> set[str]:
    """What transformers reads of a family's config.json, in the files that are its own."""
    config = type(AutoConfig.for_model(model_type))
    names = declared(config) | set(config.attribute_map) | set(config.attribute_map.values())
    folder = Path(inspect.getfile(config)).parent
    for path in (*folder.glob("configuration_*.py"), *folder.glob("modeling_*.py")):
        names |= read_in(path)
    return names


def declared(config: type[PreTrainedConfig]) -> set[str]:
    """The fields of a config class."""
    return {field.name for field in dataclasses.fields(config)}


def read_in(path: Path) -> set[str]:
    """The names that a file takes from a config."""
    found = {name for names in READS.findall(path.read_text()) for name in names if name}
    return {name for name in found if name[0] != "_" and not inspect.isroutine(getattr(PreTrainedConfig, name, None))}


if __name__ == "__main__":
    main()
